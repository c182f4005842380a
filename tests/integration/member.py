"""A member of a group in this process: the loop around a step that echoes."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from threading import Event, Thread

from prometheus_client import CollectorRegistry

from consumer.daemon import Guard, Tally, run
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.kafka_sink import KafkaSink
from consumer.message import Message, Result, Sink, Window
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.two_cluster_sink import TwoClusterSink

from .conftest import Topics
from .daemons import READY_TIMEOUT_S, wait_for
from .traffic import read_committed

MAX_BATCH = 200


class Member:
    """The loop between Kafka and Kafka, around a step that echoes once `may_step` lets it."""

    def __init__(
        self, settings: Settings, *, two_clusters: bool = False, absent: Collection[str] = ()
    ) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.stop, self.may_step, self.steps = Event(), Event(), Event()
        self.slow_s = 0.0
        self._settings, self._two_clusters, self._absent = settings, two_clusters, absent

    def serve(self, *, keep_alive: bool) -> Tally:
        """Run until stopped."""
        health = Health()
        with self._connect(health) as (source, sink):
            guard = Guard(keep_alive=source.keep_alive) if keep_alive else None
            limits = {"max_batch": MAX_BATCH, "max_delay_s": 1.0}
            rest = {"metrics": self.metrics, "health": health, "guard": guard}
            return run(source, sink, self._step, self.stop, **limits, **rest)  # type: ignore[arg-type]

    @contextmanager
    def _connect(self, health: Health) -> Iterator[tuple[KafkaSource, Sink]]:
        with ExitStack() as open_ends:
            source = KafkaSource(self._settings, self.metrics, health, self._absent)
            open_ends.enter_context(closing(source))
            if self._two_clusters:
                positions = TwoClusterSink(self._settings, self.metrics, source, "elsewhere")
                open_ends.enter_context(closing(positions))
                source.subscribe(positions)
                yield source, positions
            else:
                sink = KafkaSink(self._settings, self.metrics, source)
                source.subscribe()
                yield source, sink

    def _step(self, messages: Sequence[Message], **_: object) -> Window:
        slow_s = self.slow_s
        self.steps.set()
        assert self.may_step.wait(READY_TIMEOUT_S)
        time.sleep(slow_s)
        results = tuple(Result(None, m.value or b"", (), "OK", "ZTF") for m in messages)
        return Window(tuple(messages), results, ())


@contextmanager
def running(
    settings: Settings, *, two_clusters: bool = False, absent: Collection[str] = ()
) -> Iterator[Member]:
    """A member of the group that was assigned its partitions, if its topics are there."""
    member = Member(settings, two_clusters=two_clusters, absent=absent)
    member.may_step.set()
    thread = Thread(target=member.serve, kwargs={"keep_alive": True}, daemon=True)
    thread.start()
    registry = member.metrics.registry
    if not absent:
        wait_for(lambda: registry.get_sample_value("sedflow_rebalances_total") > 0, "an assignment")
    yield member
    member.stop.set()
    thread.join(READY_TIMEOUT_S)


def expect(bootstrap: str, topics: Topics, values: set[bytes]) -> None:
    """These and no others are published, each once, or will be soon."""
    read_committed(bootstrap, topics.summaries, at_least=len(values))
    published = read_committed(bootstrap, topics.summaries)
    assert Counter(m.value() for m in published) == Counter(values)
