"""Input on one cluster, output on another: every alert once, also when workers are killed."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.avro import decode_summary

from .broker import BrokerUnavailableError, create_topics, java_broker
from .conftest import Daemon, Topics
from .test_daemon_process import fetch, wait_for
from .test_supervisor import worker_pids
from .traffic import make_good, make_malformed, produce, read_committed

N_GOOD, N_BAD = 4_000, 20
N_KILLED = 2


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A second broker, which the alerts come from."""
    try:
        with java_broker() as address:
            yield address
    except BrokerUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def split_topics(bootstrap: str, elsewhere: str) -> Topics:
    name = f"alerts-{uuid4().hex[:8]}"
    topics = Topics(name, f"{name}.summaries", f"{name}.sedflow.dlq")
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
        os.kill(worker_pids(daemon)[-1], signal.SIGKILL)
    read_committed(bootstrap, topics.summaries, at_least=3 * N_GOOD // 5)
    assert daemon.stop() == 0, daemon.log.read_text()

    again = start_from(elsewhere, topics, "--workers", "2")
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD)
    read_committed(bootstrap, topics.dead_letters, at_least=N_BAD)
    wait_for(lambda: fetch(again, "/readyz")[0] == 200, "/readyz")
    assert again.stop() == 0, again.log.read_text()

    summaries = read_committed(bootstrap, topics.summaries)
    ids = Counter(decode_summary(summary.value() or b"")["alertId"] for summary in summaries)
    assert ids == Counter(range(N_GOOD))
    assert len(read_committed(bootstrap, topics.dead_letters)) == N_BAD


def test_a_missing_topic_of_positions_is_named(
    bootstrap: str, elsewhere: str, start_from: Callable[..., Daemon], tmp_path: Path
) -> None:
    name = f"alerts-{uuid4().hex[:8]}"
    topics = Topics(name, f"{name}.summaries", f"{name}.sedflow.dlq")
    create_topics(elsewhere, [topics.alerts])
    create_topics(bootstrap, [topics.summaries, topics.dead_letters])
    daemon = start_from(elsewhere, topics)
    assert daemon.process.wait(timeout=120) == 1
    assert f"['{topics.summaries}.sedflow.offsets']" in daemon.log.read_text()
