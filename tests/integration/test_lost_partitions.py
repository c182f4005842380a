"""A step slower than the group waits: it keeps its partitions, or commits nothing of them."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from threading import Event, Thread

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry

from consumer.daemon import Guard, Tally, run
from consumer.errors import WorkerLostError
from consumer.health import Health
from consumer.kafka import KEEP_ALIVE_S, KafkaSource
from consumer.kafka_sink import KafkaSink
from consumer.message import Message, Result, Sink, Window
from consumer.metrics import Metrics
from consumer.positions import TwoClusterSink
from consumer.settings import Settings

from .broker import create_topics
from .conftest import Topics
from .test_daemon_process import READY_TIMEOUT_S, wait_for
from .traffic import Sent, produce, read_committed

N = 200
SESSION = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 500}


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
            limits = {"max_batch": N, "max_delay_s": 1.0}
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
        self.steps.set()
        assert self.may_step.wait(READY_TIMEOUT_S)
        time.sleep(self.slow_s)
        results = tuple(Result(None, m.value or b"", (), "OK", "ZTF") for m in messages)
        return Window(tuple(messages), results, ())


def make_settings(
    bootstrap: str,
    topics: Topics,
    slot: str,
    max_poll_ms: int,
    more: Mapping[str, str] | None = None,
) -> Settings:
    session = {} if more and "group_protocol" in more else SESSION
    patience = session | {"max.poll.interval.ms": max_poll_ms}
    source = {"topics": [topics.alerts], "group": topics.alerts, "kafka": patience, **(more or {})}
    sink = {"topic": topics.summaries, "slot": slot}
    return Settings.model_validate(
        {
            "input": {"bootstrap": bootstrap, **source},
            "output": {"bootstrap": bootstrap, **sink},
        }
    )


def send(bootstrap: str, topic: str) -> Counter[bytes | None]:
    sent = [Sent(b"%d" % i, b"%d" % i, [], int(time.time() * 1e3)) for i in range(N)]
    produce(bootstrap, topic, sent)
    return Counter(message.value for message in sent)


@pytest.mark.parametrize("two_clusters", [False, True])
def test_what_a_sleeper_lost_it_does_not_commit(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    sent = send(bootstrap, topics.alerts)
    sleeper, other = (
        Member(make_settings(bootstrap, topics, slot, 3_000), two_clusters=two_clusters)
        for slot in ("0", "1")
    )
    ends: list[Exception | Tally] = []

    def sleep() -> None:
        try:
            ends.append(sleeper.serve(keep_alive=False))
        except WorkerLostError as error:
            ends.append(error)

    asleep = Thread(target=sleep, daemon=True)
    asleep.start()
    assert sleeper.steps.wait(READY_TIMEOUT_S)
    other.may_step.set()
    awake = Thread(target=other.serve, kwargs={"keep_alive": True}, daemon=True)
    awake.start()
    read_committed(bootstrap, topics.summaries, at_least=N)
    sleeper.stop.set()
    sleeper.may_step.set()
    asleep.join(READY_TIMEOUT_S)
    other.stop.set()
    awake.join(READY_TIMEOUT_S)
    published = read_committed(bootstrap, topics.summaries)
    assert Counter(message.value() for message in published) == sent
    (end,) = ends
    assert isinstance(end, WorkerLostError) if two_clusters else end == Tally()


def test_a_window_slower_than_the_poll_interval_keeps_its_partitions(
    bootstrap: str, topics: Topics
) -> None:
    """Four batches, the window longer than the interval, each batch shorter."""
    sent = send(bootstrap, topics.alerts)
    interval_s = KEEP_ALIVE_S + 4.0
    member = Member(make_settings(bootstrap, topics, "0", round(interval_s * 1e3)))
    member.slow_s = interval_s / 3
    member.may_step.set()
    begin = datetime.now(UTC)
    thread = Thread(target=member.serve, kwargs={"keep_alive": True}, daemon=True)
    thread.start()
    published = read_committed(bootstrap, topics.summaries, at_least=N)
    assert (datetime.now(UTC) - begin).total_seconds() > interval_s
    member.stop.set()
    thread.join(READY_TIMEOUT_S)
    assert Counter(message.value() for message in published) == sent
    assert member.metrics.registry.get_sample_value("sedflow_commit_failures_total") == 0


def make_threads(*members: Member) -> list[Thread]:
    """Threads in which members serve that stay alive while they step."""
    options = {"keep_alive": True}
    return [Thread(target=member.serve, kwargs=options, daemon=True) for member in members]


def stop(threads: Sequence[Thread], *members: Member) -> None:
    """End the members, and wait for their threads."""
    for member, thread in zip(members, threads, strict=True):
        member.stop.set()
        thread.join(READY_TIMEOUT_S)


def test_partitions_that_went_and_came_back_during_a_window_are_read_on(
    bootstrap: str, topics: Topics
) -> None:
    """The window in hand is given up, its partitions paused; one of two members gets them again."""
    sent = send(bootstrap, topics.alerts)
    first, second = (Member(make_settings(bootstrap, topics, slot, 60_000)) for slot in "01")
    first.slow_s = KEEP_ALIVE_S + 3.0
    threads = make_threads(first, second)
    first.may_step.set()
    second.may_step.set()
    threads[0].start()
    assert first.steps.wait(READY_TIMEOUT_S)
    threads[1].start()
    time.sleep(KEEP_ALIVE_S)
    first.slow_s = 0.0  # from the next step on
    published = read_committed(bootstrap, topics.summaries, at_least=N)
    stop(threads, first, second)
    assert Counter(message.value() for message in published) == sent
    assert first.metrics.registry.get_sample_value("sedflow_commit_failures_total") == 1


@pytest.mark.parametrize(
    "more", [{"assignor": "cooperative-sticky"}, {"group_protocol": "consumer"}]
)
def test_a_window_goes_on_over_a_rebalance_that_takes_nothing_of_it(
    bootstrap: str, topics: Topics, more: dict[str, str]
) -> None:
    """The second member finds no partition left, but the group has another generation then."""
    name = f"{topics.alerts}-whole"
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.create_topics([NewTopic(name, 1, 1)])[name].result()
    create_topics(bootstrap, [f"{name}.sedflow.dlq"])
    whole = replace(topics, alerts=name)
    sent = send(bootstrap, name)
    first, second = (Member(make_settings(bootstrap, whole, slot, 60_000, more)) for slot in "01")
    first.slow_s = 0.6 * KEEP_ALIVE_S
    threads = make_threads(first, second)
    threads[0].start()
    assert first.steps.wait(READY_TIMEOUT_S)
    threads[1].start()

    def n_members() -> int:
        group = client.describe_consumer_groups([name])[name].result()
        return len(group.members) if group.state is ConsumerGroupState.STABLE else 0

    wait_for(lambda: n_members() == 2, "a second member")
    first.may_step.set()
    published = read_committed(bootstrap, topics.summaries, at_least=N)
    stop(threads, first, second)
    assert Counter(message.value() for message in published) == sent
    assert first.metrics.registry.get_sample_value("sedflow_commit_failures_total") == 0
