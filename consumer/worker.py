"""One worker: the daemon's loop between Kafka and Kafka, and what becomes of trouble.

- Settings or artifact that cannot be used, and a broker that refuses at the first start: the
  process ends and says why.
- A broker or a registry that does not answer at the first start is asked again, after the pauses
  told below.
- Broker or authorisation trouble later on: nothing more is read or written; the clients are closed
  and made anew after a pause that grows up to 20 s, until it works or the process is told to stop.
  Positions are read back each time, so nothing is skipped or repeated. A secret's file that cannot
  be read by then is such trouble too: it may be in exchange.
- `WorkerLostError`, or an error of our own making: the process ends with code 1; its supervisor
  starts another one in its slot.
- `HaltedError`: nothing more is read; the process stays, not ready, its metrics and its log telling
  why, until it is told to stop; its code is 3.
"""

import gc
import logging
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from threading import Event
from typing import Protocol

import torch
from prometheus_client import CollectorRegistry

from consumer.backoff import backoff_s
from consumer.breaker import Breaker
from consumer.daemon import Guard, StepFunction, Tally, run
from consumer.errors import (
    BrokerError,
    HaltedError,
    NoAnswerError,
    SettingsError,
    WorkerLostError,
)
from consumer.gallery import Follower, Gallery, open_page
from consumer.health import Health, serve
from consumer.in_hand import InHand, notes_folder
from consumer.kafka import KafkaSource
from consumer.kafka_sink import KafkaSink, PlainSink
from consumer.message import STEP_AT_ONCE, Sink, Window
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.process import start_logging, stop_on_signals
from consumer.registry import RegistryError, register_summaries
from consumer.sections import ArtifactSettings
from consumer.settings import Settings
from consumer.shadow import Report, Shadowed, with_shadow
from consumer.start_checks import Clusters, check_clients, check_topics
from consumer.starts import find_absent
from consumer.step import Step, Watch
from consumer.summaries import SummaryForm
from consumer.tracing import Traces, open_traces
from consumer.two_cluster_sink import TwoClusterSink
from sedflow_core import Artifact, load_artifact
from sedflow_core.errors import SedflowError
from sedflow_core.memory import keep_freed_memory

LOG = logging.getLogger("sedflow.worker")

LONGEST_PAUSE_S = 20.0
LONG_LIFE_S = 60.0
LOST, HALTED = 1, 3


def run_kafka(settings: Settings) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit code as told above.

    Raises SettingsError or ArtifactError when it cannot start.
    """
    stop = Event()
    stop_on_signals(stop)
    return run_worker(settings, stop)


def run_worker(
    settings: Settings, stop: Event, tell_port: Callable[[int], None] | None = None
) -> int:
    """Run the daemon until `stop` is set; tell a parent the port; return the exit code.

    Raises as `run_kafka` does.
    """
    start_logging(settings.log)
    torch.set_num_threads(1)
    keep_freed_memory()
    with open_traces(settings) as traces:
        worker = Worker(settings, stop, traces)
        recent = Follower(worker.gallery)
        with open_page(settings, worker.registry, recent, worker.health):
            return attend(worker, settings, tell_port)


def attend(
    worker: "Worker", settings: Settings, tell_port: Callable[[int], None] | None = None
) -> int:
    """Answer over HTTP while the worker starts and works; return its exit code.

    A parent, who is told the port, can read the latest summaries there; without one nobody can.
    """
    http, gallery = settings.http, worker.gallery if tell_port else None
    with serve(worker.health, worker.registry, http.host, http.port, gallery) as port:
        LOG.info("started", extra={"fields": {"http_port": port, "slot": settings.output.slot}})
        if tell_port is not None:
            tell_port(port)
        try:
            worker.start()
            worker.work()
        except NoAnswerError as error:  # told to stop before anybody answered
            LOG.info("stopped", extra={"fields": {"messages": 0, "error": str(error)}})
            return 0
        except BrokerError as error:
            LOG.error("stopped by the broker", extra={"fields": {"error": str(error)}})
            return LOST
        except HaltedError as error:
            worker.halt(error)
            return HALTED
        except SedflowError:
            raise
        except Exception:
            LOG.critical("crashed", exc_info=True)
            return LOST
    LOG.info(
        "stopped", extra={"fields": {"messages": worker.published.messages, **worker.compare()}}
    )
    return 0


class WorkerHealth(Health):
    """Health that knows of trouble: while there is any, the worker is not ready."""

    trouble: str | None = None

    def ready(self) -> tuple[bool, str]:
        """Whether alerts are answered now, and why not."""
        return super().ready() if self.trouble is None else (False, self.trouble)


class SummaryStep(StepFunction, Protocol):
    """A step that is told how summaries are written once a sink is there."""

    form: SummaryForm


class Worker:
    """What a worker keeps while its connections come and go."""

    _step: SummaryStep
    _answer: StepFunction
    """The step, and what runs beside it."""
    _schema_id: int
    _clusters: Clusters
    _absent: Collection[str] = ()
    """Of the input's topics, those that were not there yet when this process began."""
    _source: KafkaSource | None = None
    _at_once = STEP_AT_ONCE

    def __init__(self, settings: Settings, stop: Event, traces: Traces | None = None) -> None:
        self.registry = CollectorRegistry()
        self.health = WorkerHealth()
        self.gallery = Gallery()
        self.published = Tally()
        self._metrics = Metrics(self.registry, settings.input.entry_of)
        self.registry.register(self.health)
        self._settings = settings
        self._stop = stop
        self._traces = traces
        self._metrics.slot_info.labels(settings.input.group, settings.output.slot).set(1)
        self._breaker = Breaker(settings.breaker)
        self._notes = notes_folder(settings)

    def start(self) -> None:
        """Load and warm the artifact, look at the topics.

        Raises SettingsError, ArtifactError or BrokerError.
        """
        beat = self.health.beat
        artifact = load_served(self._settings.artifact)
        beat()
        watch: Watch = self._metrics.time
        if self._traces is not None:
            watch = self._traces.watch(watch)
        self._step = step = Step(artifact, self._settings, watch)
        self._at_once = step.at_once
        self._metrics.set_artifact(artifact)
        check_clients(self._settings)
        self._schema_id = self._find_services()
        step.warm_up(beat)
        self._answer = with_shadow(step, self._settings, self.registry, watch, beat)
        self.health.warmed = True
        LOG.info("artifact warm", extra={"fields": {"artifact": artifact.name}})

    def work(self) -> None:
        """Serve until told to stop. Raises WorkerLostError or HaltedError."""
        failures, connected = 0, False
        while not self._stop.is_set():
            connected = connected or self._source is not None
            begin_s, self._source = time.monotonic(), None
            if failures:
                gc.collect()  # clients of the failed attempt, which its exception's frames keep
            try:
                self._serve()
            except WorkerLostError:
                raise
            except (BrokerError, SettingsError) as error:
                if isinstance(error, SettingsError) and not connected:
                    raise
                served = self._source is not None and self._source.served
                worked = served and time.monotonic() - begin_s > LONG_LIFE_S
                failures = 1 if worked else failures + 1
                self._wait(error, failures)

    def compare(self) -> Report:
        """Return what a shadow said otherwise; empty without one."""
        return self._answer.report() if isinstance(self._answer, Shadowed) else {}

    def halt(self, error: HaltedError) -> None:
        """Do nothing but say so until told to stop."""
        LOG.critical("halted", extra={"fields": {"error": str(error)}})
        self._hold_nothing(f"halted: {error}")
        self._metrics.halted.set(1)
        while not self._stop.wait(1.0):
            self.health.beat()

    def _find_services(self) -> int:
        """Look at the topics; return the schema id of summaries. Again while nobody answers.

        Raises what `check_topics` and `register_summaries` do, NoAnswerError once told to stop.
        """
        failures = 0
        while True:
            try:
                self._clusters = check_topics(self._settings)
                self._absent = self._absent or find_absent(self._settings.input)
                return register_summaries(self._settings)
            except NoAnswerError as error:
                failures += 1
                self._wait(error, failures)
                if self._stop.is_set():
                    raise

    def _serve(self) -> None:
        """Connect and run the loop."""
        settings, metrics = self._settings, self._metrics
        in_hand = InHand(self._notes)
        with ExitStack() as open_ends:
            source = self._source = KafkaSource(settings, metrics, self.health, self._absent)
            open_ends.enter_context(closing(source))
            sink = make_sink(settings, metrics, source, self._clusters)
            open_ends.enter_context(closing(sink))
            self._step.form = SummaryForm(self._schema_id, sink.limits.summary)
            self._subscribe(source, sink, in_hand, open_ends)
            traced, answer = self._with_traces(sink)
            run(
                source,
                traced,
                answer,
                self._stop,
                max_batch=settings.batch.max_size,
                max_delay_s=settings.batch.max_delay_s,
                metrics=metrics,
                health=self.health,
                at_once=self._at_once,
                guard=Guard(self._breaker, in_hand, source.keep_alive),
                note=self._note,
            )

    def _subscribe(
        self, source: KafkaSource, sink: Sink, in_hand: InHand, open_ends: ExitStack
    ) -> None:
        """Begin to read where the positions say that are kept with the output."""
        if isinstance(sink, TwoClusterSink):
            source.subscribe(sink, in_hand)
        else:
            source.subscribe(None, in_hand, self._open_log(open_ends))

    def _with_traces(self, sink: Sink) -> tuple[Sink, StepFunction]:
        """Return what publishes and what answers."""
        if self._traces is None:
            return sink, self._answer
        return self._traces.through(sink), self._traces.over(self._answer)

    def _note(self, window: Window) -> None:
        """Count a published window, show it, count what a shadow says of it."""
        self.published.add(window)
        self.gallery.add(window)
        if isinstance(self._answer, Shadowed):
            self._answer.count(window)

    def _open_log(self, open_ends: ExitStack) -> PositionLog | None:
        """Return what remembers the positions that the group may forget, if its topic is there."""
        if not self._clusters.remembers:
            fields = {"topic": self._settings.output.offsets_topic_name}
            LOG.warning("no topic that remembers positions", extra={"fields": fields})
            return None
        log = PositionLog(self._settings, self._clusters.input, self.health.beat)
        open_ends.enter_context(closing(log))
        return log

    def _wait(self, error: BrokerError | SettingsError, failures: int) -> None:
        pause_s = backoff_s(failures, LONGEST_PAUSE_S)
        fields = {"error": str(error), "pause_s": round(pause_s, 1), "failures": failures}
        target = "registry" if isinstance(error, RegistryError) else "broker"
        LOG.error(f"{target} trouble", extra={"fields": fields})
        self._metrics.retries.labels(target).inc()
        self._hold_nothing(str(error))
        self.health.beat()
        self._stop.wait(pause_s)
        self.health.beat()
        self.health.trouble = None

    def _hold_nothing(self, trouble: str) -> None:
        """Be not ready; what is unread of its partitions is told by whoever gets them."""
        self.health.assigned = False
        self.health.trouble = trouble
        self._metrics.set_lag({}, datetime.now(UTC))
        self._metrics.partitions_paused.set(0)


def load_served(settings: ArtifactSettings) -> Artifact:
    """Load the artifact that is to be served.

    Raises ArtifactError where it cannot be used or has not passed its validation, SettingsError
    where the settings do not say which artifact exactly.
    """
    artifact = load_artifact(settings.name, settings.device)
    if not settings.allow_unvalidated:
        artifact.check_validated()
    if settings.sha256 is None and not settings.allow_unpinned:
        raise SettingsError(
            f"artifact.sha256: expected the digest of the artifact to serve, got none; that of "
            f"{artifact.name} {artifact.version} is {artifact.sha256}: set it, or "
            "artifact.allow_unpinned to serve whatever is there"
        )
    return artifact


def make_sink(
    settings: Settings, metrics: Metrics, source: KafkaSource, clusters: Clusters
) -> KafkaSink | PlainSink | TwoClusterSink:
    """Return the sink that keeps what `output.delivery` promises."""
    if settings.output.delivery == "at-least-once":
        return PlainSink(settings, source)
    if clusters.apart:
        return TwoClusterSink(settings, metrics, source, clusters.input)
    return KafkaSink(settings, metrics, source)
