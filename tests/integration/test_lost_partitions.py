"""A step slower than the group waits: it keeps its partitions, or commits nothing of them."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from threading import Thread

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.daemon import Tally
from consumer.errors import WorkerLostError
from consumer.kafka import KEEP_ALIVE_S
from consumer.settings import Settings

from .broker import create_topics
from .conftest import Topics
from .daemons import READY_TIMEOUT_S, wait_for
from .member import MAX_BATCH, Member
from .traffic import Sent, produce, read_committed, read_exactly

N = MAX_BATCH
SESSION = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 500}


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
    published = read_exactly(bootstrap, topics.summaries, N)
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
    read_committed(bootstrap, topics.summaries, at_least=N)
    assert (datetime.now(UTC) - begin).total_seconds() > interval_s
    member.stop.set()
    thread.join(READY_TIMEOUT_S)
    published = read_exactly(bootstrap, topics.summaries, N)
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
    first.slow_s = KEEP_ALIVE_S + 1.0
    threads = make_threads(first, second)
    second.may_step.set()
    threads[0].start()
    assert first.steps.wait(READY_TIMEOUT_S)
    threads[1].start()
    client = AdminClient({"bootstrap.servers": bootstrap})
    group = topics.alerts

    def is_moving() -> bool:
        state = client.describe_consumer_groups([group])[group].result().state
        return state is not ConsumerGroupState.STABLE

    wait_for(is_moving, "a rebalance that waits for the first")
    first.slow_s = 0.0  # from the next step on
    first.may_step.set()
    read_committed(bootstrap, topics.summaries, at_least=N)
    stop(threads, first, second)
    published = read_exactly(bootstrap, topics.summaries, N)
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
    read_committed(bootstrap, topics.summaries, at_least=N)
    stop(threads, first, second)
    published = read_exactly(bootstrap, topics.summaries, N)
    assert Counter(message.value() for message in published) == sent
    assert first.metrics.registry.get_sample_value("sedflow_commit_failures_total") == 0
