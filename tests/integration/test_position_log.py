"""The topic of positions on a real broker: what is deleted is forgotten, what is foreign named."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer

from consumer.errors import BrokerError
from consumer.gaps import Position
from consumer.position_log import PositionLog
from consumer.settings import Settings

from .broker import create_topics
from .conftest import Topics

PLACE = ("hosts", 1)


@pytest.fixture
def log(bootstrap: str, topics: Topics) -> Iterator[PositionLog]:
    output = {"bootstrap": bootstrap, "topic": topics.summaries}
    settings = Settings.model_validate({"output": output})
    create_topics(bootstrap, [settings.output.positions_topic])
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
