"""The loop of the consumer: poll, step, publish; and the process around it for Kafka."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event
from typing import Protocol

import torch
from prometheus_client import CollectorRegistry

from consumer.errors import BrokerError, WindowAbortedError
from consumer.health import Health, serve
from consumer.kafka import KafkaSink, KafkaSource
from consumer.kafka_client import check_topics
from consumer.message import Message, Sink, Source, Window
from consumer.metrics import Metrics
from consumer.process import start_logging, stop_on_signals
from consumer.settings import Settings
from consumer.step import Step
from sedflow_core import load_artifact

LOG = logging.getLogger("sedflow.daemon")

MAX_ABORTS_IN_A_ROW = 5
FIRST_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Tally:
    """What was published."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Summaries by status."""
    stages: Counter[str] = field(default_factory=Counter)
    """Dead letters by stage."""

    @property
    def messages(self) -> int:
        """Number of messages: each led to a summary or to a dead letter."""
        return self.statuses.total() + self.stages.total()

    def add(self, window: Window) -> None:
        """Count a window."""
        self.statuses.update(result.status for result in window.results)
        self.stages.update(letter.stage for letter in window.rejected)


class StepFunction(Protocol):
    """What turns a batch of messages into the window to publish."""

    def __call__(
        self, messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
    ) -> Window:
        """Return one result or dead letter for each message."""


def run(
    source: Source,
    sink: Sink,
    step: StepFunction,
    stop: Event,
    *,
    max_batch: int,
    max_delay_s: float,
    metrics: Metrics,
    health: Health,
    replay: bool = False,
) -> Tally:
    """Poll up to `max_batch` messages or `max_delay_s`, step, publish; return what was published.

    Ends when `stop` is set or the source is exhausted, in this order: the window in hand is stepped
    and published; then the caller closes the sink, then the source. An input position moves only
    inside `sink.publish`.

    Raises BrokerError when a window was rolled back five times in a row, and whatever else source,
    step or sink raise: the window is then not published, and is read again at the next start.
    """
    tally, aborts = Tally(), 0
    while not (stop.is_set() or source.exhausted):
        health.beat()
        with metrics.time("poll"):
            messages = source.poll(max_batch, max_delay_s)
        if not messages:
            continue
        with metrics.time("step"):
            window = step(messages, replay=replay, now=_utc_now)
        try:
            with metrics.time("publish"):
                sink.publish(window)
        except WindowAbortedError as error:
            aborts += 1
            _wait_or_give_up(aborts, error, metrics)
            source.rewind(window)
            continue
        aborts = 0
        tally.add(window)
        metrics.count_window(window, _utc_now())
    return tally


def _wait_or_give_up(aborts: int, error: WindowAbortedError, metrics: Metrics) -> None:
    metrics.commit_failures.inc()
    LOG.warning("window rolled back", extra={"fields": {"error": str(error), "aborts": aborts}})
    if aborts >= MAX_ABORTS_IN_A_ROW:
        raise BrokerError(f"expected a window to commit, got {aborts} aborts in a row") from error
    time.sleep(FIRST_PAUSE_S * 2**aborts)


def run_kafka(settings: Settings) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit code, 1 after broker trouble.

    Raises SettingsError or ArtifactError when it cannot start.
    """
    stop = Event()
    stop_on_signals(stop)
    return run_worker(settings, stop, lambda _: None)


def run_worker(settings: Settings, stop: Event, tell_port: Callable[[int], None]) -> int:
    """Run the daemon until `stop` is set; tell the port it answers at; return the exit code.

    Raises as `run_kafka` does.
    """
    start_logging(settings.log)
    torch.set_num_threads(1)
    metrics = Metrics(CollectorRegistry())
    health = Health()
    metrics.registry.register(health)
    try:
        with serve(health, metrics.registry, settings.http.host, settings.http.port) as port:
            LOG.info("started", extra={"fields": {"http_port": port, "slot": settings.output.slot}})
            tell_port(port)
            tally = _serve_topics(settings, stop, metrics, health)
    except BrokerError as error:
        LOG.error("stopped by the broker", extra={"fields": {"error": str(error)}})
        return 1
    LOG.info("stopped", extra={"fields": {"messages": tally.messages}})
    return 0


def _serve_topics(settings: Settings, stop: Event, metrics: Metrics, health: Health) -> Tally:
    artifact = load_artifact(settings.artifact.name)
    step = Step(artifact, settings)
    metrics.set_artifact(artifact.name, artifact.version, artifact.sha256)
    check_topics(settings)
    step.warm_up()
    health.warmed = True
    LOG.info("artifact warm", extra={"fields": {"artifact": artifact.name}})
    with ExitStack() as open_ends:
        source = open_ends.enter_context(closing(KafkaSource(settings, metrics, health)))
        sink = open_ends.enter_context(closing(KafkaSink(settings, metrics, source)))
        return run(
            source,
            sink,
            step,
            stop,
            max_batch=settings.batch.max_size,
            max_delay_s=settings.batch.max_delay_s,
            metrics=metrics,
            health=health,
        )


def _utc_now() -> datetime:
    return datetime.now(UTC)
