"""Input on one cluster, output on another: every alert once, also when workers are killed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry

from consumer.errors import OffsetsLostError
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.message import Message, Place, Result, Window
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.two_cluster_sink import TwoClusterSink
from tests.services import service

from .broker import N_PARTITION, create_topics, java_broker
from .conftest import Daemon, Topics
from .daemons import READY_TIMEOUT_S, fetch, wait_for, worker_pids
from .traffic import Sent, alert_ids, make_good, make_malformed, produce, read_committed

N_GOOD, N_BAD = 2_000, 20
N_KILLED = 2


def read_and_publish(settings: Settings) -> int:
    """Publish what there is to read, as the daemon between two clusters does; returns how much."""
    metrics = Metrics(CollectorRegistry())
    with ExitStack() as open_ends:
        source = open_ends.enter_context(closing(KafkaSource(settings, metrics, Health())))
        sink = TwoClusterSink(settings, metrics, source, "elsewhere")
        open_ends.enter_context(closing(sink))
        source.subscribe(sink)
        messages: Sequence[Message] = ()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not messages and time.monotonic() < deadline:
            messages = source.poll(1000, 2.0)
        results = tuple(Result(None, m.value or b"", (), "OK", "ZTF") for m in messages)
        sink.publish(Window(tuple(messages), results, ()))
    return len(messages)


def test_a_topic_made_anew(bootstrap: str, topics: Topics) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    source = {"bootstrap": bootstrap, "topics": [topics.alerts], "group": topics.alerts}
    sink = {"bootstrap": bootstrap, "topic": topics.summaries}
    settings = Settings.model_validate({"input": source, "output": sink})
    produce(bootstrap, topics.alerts, [Sent(b"k", b"%d" % i, [], 1) for i in range(10)])
    assert read_and_publish(settings) == 10
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_topics([topics.alerts])[topics.alerts].result()
    wait_for(lambda: topics.alerts not in client.list_topics(timeout=10).topics, "no topic")
    create_topics(bootstrap, [topics.alerts])
    produce(bootstrap, topics.alerts, [Sent(b"k", b"%d" % i, [], 1) for i in range(30)])
    with pytest.raises(OffsetsLostError, match="the topic was made anew"):
        read_and_publish(settings)
    source["accept_gap"] = True
    assert read_and_publish(Settings.model_validate({"input": source, "output": sink})) == 30


def find_starts(settings: Settings) -> dict[Place, int]:
    """Where a worker between two clusters begins that is assigned every partition."""
    metrics = Metrics(CollectorRegistry())
    with ExitStack() as open_ends:
        source = open_ends.enter_context(closing(KafkaSource(settings, metrics, Health())))
        sink = TwoClusterSink(settings, metrics, source, "elsewhere")
        open_ends.enter_context(closing(sink))
        (topic,) = settings.input.topics
        return source.starts.find_all({(topic, p) for p in range(N_PARTITION)}, sink)


def test_a_gap_is_accepted_once(bootstrap: str, topics: Topics) -> None:
    """Also where no message comes before the next start."""
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    source = {"bootstrap": bootstrap, "topics": [topics.alerts], "group": topics.alerts}
    sink = {"bootstrap": bootstrap, "topic": topics.summaries}
    settings = Settings.model_validate({"input": source, "output": sink})
    willing = Settings.model_validate({"input": source | {"accept_gap": True}, "output": sink})
    sent = [Sent(b"%d" % i, b"%d" % i, [], int(time.time() * 1e3)) for i in range(40)]
    produce(bootstrap, topics.alerts, sent)
    assert read_and_publish(settings) == 40
    produce(bootstrap, topics.alerts, sent)
    client = AdminClient({"bootstrap.servers": bootstrap})
    everything = [TopicPartition(topics.alerts, p, -1) for p in range(N_PARTITION)]
    for deleted in client.delete_records(everything).values():
        deleted.result()
    with pytest.raises(OffsetsLostError, match="were deleted unread"):
        find_starts(settings)
    starts = find_starts(willing)
    assert sum(starts.values()) == 2 * len(sent)
    assert find_starts(settings) == starts


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A second broker, which the alerts come from."""
    with service(java_broker()) as address:
        yield address


@pytest.fixture
def split_topics(bootstrap: str, elsewhere: str) -> Topics:
    topics = Topics.fresh()
    create_topics(elsewhere, [topics.alerts])
    create_topics(bootstrap, [topics.summaries, topics.dead_letters])
    offsets = NewTopic(
        f"{topics.summaries}.sedflow.offsets", 1, 1, config={"cleanup.policy": "compact"}
    )
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.create_topics([offsets])[offsets.topic].result()
    return topics


def test_killed_workers_lose_and_repeat_nothing(
    bootstrap: str,
    elsewhere: str,
    split_topics: Topics,
    start_from: Callable[..., Daemon],
) -> None:
    topics = split_topics
    messages = [*make_good(N_GOOD), *make_malformed(N_BAD)]
    random.Random(3).shuffle(messages)
    produce(elsewhere, topics.alerts, messages)

    daemon = start_from(elsewhere, topics, "--workers", "2")
    for i in range(N_KILLED):
        read_committed(bootstrap, topics.summaries, at_least=(i + 1) * N_GOOD // 5)
        wait_for(lambda n=i: len(worker_pids(daemon)) == 2 + n, "a worker in the dead one's place")
        os.kill(worker_pids(daemon)[-1], signal.SIGKILL)
    read_committed(bootstrap, topics.summaries, at_least=3 * N_GOOD // 5)
    assert daemon.stop() == 0, daemon.log.read_text()

    again = start_from(elsewhere, topics, "--workers", "2")
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD)
    read_committed(bootstrap, topics.dead_letters, at_least=N_BAD)
    wait_for(lambda: fetch(again, "/readyz")[0] == 200, "/readyz")
    assert again.stop() == 0, again.log.read_text()

    assert alert_ids(read_committed(bootstrap, topics.summaries)) == Counter(range(N_GOOD))
    assert len(read_committed(bootstrap, topics.dead_letters)) == N_BAD


@pytest.mark.parametrize("made", [False, True])
def test_a_topic_of_positions_that_is_missing_or_forgets_is_named(
    bootstrap: str, elsewhere: str, start_from: Callable[..., Daemon], made: bool
) -> None:
    topics = Topics.fresh()
    positions = f"{topics.summaries}.sedflow.offsets"
    create_topics(elsewhere, [topics.alerts])
    create_topics(bootstrap, [topics.summaries, topics.dead_letters, *([positions] * made)])
    daemon = start_from(elsewhere, topics)
    assert daemon.process.wait(timeout=120) == 1
    told = "expected cleanup.policy=compact, got delete" if made else f"['{positions}']"
    assert told in daemon.log.read_text()
