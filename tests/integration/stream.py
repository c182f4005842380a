"""A live page without a broker: a test says which alerts pass."""

from collections.abc import Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry

from consumer.avro import encode
from consumer.gallery import Follower, Gallery
from consumer.health import Health
from consumer.message import Message
from consumer.metrics import Metrics
from consumer.page import Page
from consumer.settings import Settings
from consumer.step import Step
from sedflow_core import Artifact

from .traffic import make_alert


class Stream:
    """A page, and the alerts that pass before it."""

    def __init__(self, artifact: Artifact, n_samples: int = 64) -> None:
        settings = Settings.model_validate({"artifact": {"n_samples": n_samples}})
        self.health, self.metrics, self.gallery = Health(), Metrics(CollectorRegistry()), Gallery()
        self._step = Step(artifact, settings)
        self.metrics.set_artifact(artifact)
        self.page = Page(self.metrics.registry, Follower(self.gallery), self.health)
        self.health.warmed = self.health.assigned = True

    def send(self, messages: Sequence[Message]) -> None:
        """Let the messages pass."""
        now = datetime.now(UTC)
        window = self._step(messages, replay=False, now=lambda: now)
        self.gallery.add(window)
        self.metrics.count_window(window, now)

    def send_some(self, first: int, n: int) -> None:
        """Let `n` of the alerts of `traffic` pass."""
        stamp = int(datetime.now(UTC).timestamp() * 1e3) - 700
        values = [encode(make_alert(i), "hostAlert") for i in range(first, first + n)]
        self.send([Message(value, topic="hosts", timestamp_ms=stamp) for value in values])
