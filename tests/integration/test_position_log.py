"""The topic of positions on a real broker: deleted, foreign, and in more partitions than before."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, OffsetSpec

from consumer.errors import BrokerError
from consumer.gaps import Position
from consumer.position_log import PositionLog
from consumer.settings import Settings

from .broker import N_PARTITION, create_topics
from .conftest import Topics
from .daemons import wait_for
from .traffic import Sent, produce

PLACE = ("hosts", 1)


@pytest.fixture
def settings(bootstrap: str, topics: Topics) -> Settings:
    output = {"bootstrap": bootstrap, "topic": topics.summaries}
    settings = Settings.model_validate({"output": output})
    create_topics(bootstrap, [settings.output.offsets_topic_name])
    return settings


@pytest.fixture
def log(settings: Settings) -> Iterator[PositionLog]:
    with closing(PositionLog(settings, "cluster")) as log:
        yield log


def write(bootstrap: str, log: PositionLog, key: bytes, value: bytes | None) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce(log.topic, key=key, value=value)
    assert producer.flush(30) == 0


def test_a_deleted_position_is_forgotten(bootstrap: str, log: PositionLog) -> None:
    key, value = log.record(PLACE, 7, "id")
    write(bootstrap, log, key, value)
    assert log.recall([PLACE]) == {PLACE: Position(7, "id")}
    write(bootstrap, log, key, None)
    assert log.recall([PLACE]) == {}


@pytest.mark.parametrize("value", [b"", b"7", b"{}", b"\xff"])
def test_what_is_no_position_is_named(bootstrap: str, log: PositionLog, value: bytes) -> None:
    write(bootstrap, log, b"key", value)
    with pytest.raises(BrokerError, match=r"sedflow\.offsets\[\d\] at 0: expected a position, got"):
        log.recall([PLACE])


def can_be_read(bootstrap: str, topic: str, n: int) -> bool:
    """Whether the broker serves so many partitions of a topic."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in range(n)}
    return all(found.exception() is None for found in client.list_offsets(wanted).values())


def test_a_key_that_moves_to_a_partition_added_later_is_recalled(
    bootstrap: str, settings: Settings, log: PositionLog
) -> None:
    """By who read before, and by who begins to."""
    places = [("hosts", partition) for partition in range(32)]

    def write_all(offset: int) -> None:
        now_ms = int(time.time() * 1e3)
        records = [log.record(place, offset, None) for place in places]
        produce(bootstrap, log.topic, [Sent(*record, [], now_ms) for record in records])
        assert log.recall(places) == dict.fromkeys(places, Position(offset))

    write_all(7)
    client = AdminClient({"bootstrap.servers": bootstrap})
    more = NewPartitions(log.topic, 2 * N_PARTITION)
    client.create_partitions([more])[log.topic].result()
    wait_for(lambda: can_be_read(bootstrap, log.topic, 2 * N_PARTITION), "more partitions")
    write_all(8)
    with closing(PositionLog(settings, "cluster")) as fresh:
        assert fresh.recall(places) == dict.fromkeys(places, Position(8))
