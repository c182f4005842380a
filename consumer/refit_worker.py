"""The process of the slow lane: `sedflow-consumer refit`.

It reads what the fast lane publishes, as a group of its own, and publishes second opinions with the
same transactions, so each is there exactly once. The fast lane never waits for it: it is another
process, gives way to others on the processor, and shares nothing with it but the topic it reads.
Trouble, halts and exit codes are those of `worker.py`.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from threading import Event

import torch

from consumer.avro import schema_text
from consumer.daemon import Guard, Tally, run
from consumer.errors import BrokerError, HaltedError, SettingsError
from consumer.health import serve
from consumer.in_hand import InHand
from consumer.kafka import KafkaSource
from consumer.kafka_client import check_topics
from consumer.message import Message
from consumer.process import start_logging, stop_on_signals
from consumer.refit import RefitMetrics, RefitStep
from consumer.registry import open_registry
from consumer.settings import Settings
from consumer.slow_settings import slow_settings
from consumer.worker import HALTED, LOST, Worker, make_sink
from sedflow_core import Artifact, load_artifact
from sedflow_core.errors import MissingExtraError
from sedflow_core.simulated import forward_model
from sedflow_core.simulation import ForwardModel

LOG = logging.getLogger("sedflow.refit")


def run_refit(settings: Settings) -> int:
    """Run the slow lane until SIGTERM or SIGINT; return the exit code.

    Raises SettingsError or ArtifactError when it cannot start, MissingExtraError without emcee.
    """
    stop = Event()
    stop_on_signals(stop)
    start_logging(settings.log)
    os.nice(settings.refit.niceness)
    torch.set_num_threads(1)
    slow = slow_settings(settings)
    worker = RefitWorker(slow, stop)
    with serve(worker.health, worker.registry, slow.http.host, slow.http.port) as port:
        LOG.info("started", extra={"fields": {"http_port": port, "topic": slow.output.topic}})
        try:
            worker.start()
            worker.work()
        except BrokerError as error:
            LOG.error("stopped by the broker", extra={"fields": {"error": str(error)}})
            return LOST
        except HaltedError as error:
            worker.halt(error)
            return HALTED
    LOG.info("stopped", extra={"fields": {"messages": worker.published}})
    return 0


class RefitWorker(Worker):
    """A worker whose step is the slow lane's."""

    def start(self) -> None:
        """Load the artifact, look at the topics.

        Raises SettingsError, ArtifactError, MissingExtraError or BrokerError.
        """
        import sedflow_core.ensemble  # noqa: F401  # a missing sampler is told now

        settings = self._settings
        artifact = load_artifact(settings.artifact.name)
        pinned = settings.artifact.sha256
        if pinned is not None and pinned != artifact.sha256:
            raise SettingsError(f"artifact.sha256: expected {pinned}, got {artifact.sha256}")
        self._metrics.set_artifact(artifact)
        self._clusters = check_topics(settings)
        metrics = RefitMetrics(self.registry)
        model = _find_model(artifact)
        self._refit = RefitStep(artifact, model, settings, metrics, self._stop)
        registry = open_registry(settings.registry)
        if registry is not None and settings.registry.register_output:
            text = schema_text("posteriorSummary")
            self._refit.summary_id = registry.register(settings.output.topic, text)
        self.health.warmed = True
        LOG.info("artifact loaded", extra={"fields": {"artifact": artifact.name}})

    def _serve(self) -> Tally:
        """Connect and run the loop."""
        settings, metrics = self._settings, self._metrics
        in_hand = InHand(settings.state.folder)
        with ExitStack() as open_ends:
            source = KafkaSource(settings, metrics, self.health)
            open_ends.enter_context(closing(source))
            sink = make_sink(settings, metrics, source, self._clusters)
            open_ends.enter_context(closing(sink))
            source.subscribe(None, in_hand)
            self._refit.keep_alive = partial(self._keep_alive, source)
            return run(
                source,
                sink,
                self._refit,
                self._stop,
                max_batch=settings.batch.max_size,
                max_delay_s=settings.batch.max_delay_s,
                metrics=metrics,
                health=self.health,
                guard=Guard(self._breaker, in_hand, source.keep_alive),
            )

    def _keep_alive(self, source: KafkaSource, messages: Sequence[Message]) -> None:
        self.health.beat()
        source.keep_alive(messages)


def _find_model(artifact: Artifact) -> ForwardModel | None:
    """Return the simulator that the artifact's emulator stands for, None without the extra sim."""
    try:
        return forward_model(artifact)
    except MissingExtraError as error:
        LOG.warning("the emulator stays uncorrected", extra={"fields": {"reason": str(error)}})
        return None
