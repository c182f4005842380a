"""What the topic of positions may take of a worker's memory."""

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from confluent_kafka import TopicPartition

from consumer import position_log
from consumer.position_log import PositionLog
from consumer.settings import Settings


class FakeConsumer:
    """Holds a topic of one partition; keeps what it was made with."""

    config: Mapping[str, object]

    def __init__(self, config: Mapping[str, object], **_: object) -> None:
        FakeConsumer.config = config

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=[0])})

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 0

    def assign(self, places: list[TopicPartition]) -> None:
        pass


@pytest.mark.parametrize(("asked", "fetched"), [({}, 1_000), ({"queued.min.messages": 7}, 7)])
def test_little_is_fetched_ahead(
    monkeypatch: pytest.MonkeyPatch, asked: Mapping[str, int], fetched: int
) -> None:
    """It stays assigned, but is read only when partitions come."""
    monkeypatch.setattr(position_log, "Consumer", FakeConsumer)
    output = {"bootstrap": "127.0.0.1:1", "topic": "summaries", "kafka": asked}
    PositionLog(Settings.model_validate({"output": output}), "cluster")
    assert FakeConsumer.config["queued.min.messages"] == fetched
