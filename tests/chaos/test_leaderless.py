"""A partition that no broker leads keeps no other from being read, also by who begins meanwhile."""

from collections.abc import Callable, Collection, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.integration.broker import N_PARTITION
from tests.integration.conftest import Daemon, Topics, started_daemons
from tests.integration.traffic import hand_over, make_good, read_committed, read_exactly
from tests.services import service

from .brokers import Cluster, cluster

N_BEFORE, N_MEANWHILE, N_AFTER = 40, 30, 20
GOOD = list(make_good(N_BEFORE + N_MEANWHILE + N_AFTER))


@pytest.fixture
def brokers() -> Iterator[Cluster]:
    with service(cluster(3)) as three:
        yield three


@pytest.fixture
def start(tiny_path: Path, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    with started_daemons(tiny_path, tmp_path) as start:
        yield start


def feed(brokers: Cluster, topic: str, rows: slice, partitions: Collection[int]) -> None:
    """Produce some of the alerts to some of the partitions in turn."""
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "log_level": 0})
    for message, partition in zip(GOOD[rows], cycle(partitions), strict=False):
        hand_over(producer, topic, message, partition)
    assert producer.flush(60) == 0


def test_others_are_read_while_a_partition_has_no_leader(
    brokers: Cluster, start: Callable[..., Daemon]
) -> None:
    """Once it has one again, nothing of it is missing and nothing comes twice."""
    topics = Topics.fresh()
    brokers.create_topics(topics.alerts, copies=1)
    brokers.create_topics(topics.summaries, topics.dead_letters)
    partitions = range(N_PARTITION)
    feed(brokers, topics.alerts, slice(0, N_BEFORE), partitions)
    first = start(brokers.bootstrap, topics)
    read_committed(brokers.bootstrap, topics.summaries, at_least=N_BEFORE)
    assert first.stop() == 0

    away = brokers.find_leader(topics.alerts, 0)
    led = [p for p in partitions if brokers.find_leader(topics.alerts, p) is not away]
    away.kill()
    second = start(brokers.bootstrap, topics)
    known = N_BEFORE + N_MEANWHILE
    feed(brokers, topics.alerts, slice(N_BEFORE, known), led)
    read_committed(brokers.bootstrap, topics.summaries, at_least=known)
    assert second.lines("no leader")

    away.start()
    away.wait()
    feed(brokers, topics.alerts, slice(known, None), sorted(set(partitions) - set(led)))
    read_exactly(brokers.bootstrap, topics.summaries, len(GOOD))
    assert second.stop() == 0
