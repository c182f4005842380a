"""What the topic of positions may take of a worker's memory, and what it does without."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, TopicPartition

from consumer import position_log
from consumer.gaps import Position
from consumer.position_log import PositionLog
from consumer.settings import Settings

PLACE = ("hosts", 1)
SETTINGS = Settings.model_validate({"output": {"bootstrap": "127.0.0.1:1", "topic": "summaries"}})


class Event:
    """What librdkafka hands out: a record, or an error."""

    def __init__(
        self, offset: int = 0, record: tuple[bytes, bytes] | None = None, code: int | None = None
    ) -> None:
        self._offset, self._record, self._code = offset, record or (b"", b""), code

    def error(self) -> KafkaError | None:
        return None if self._code is None else KafkaError(self._code)

    def topic(self) -> str:
        return "positions"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._record[0]

    def value(self) -> bytes:
        return self._record[1]


class FakeConsumer:
    """Holds a topic of one partition; keeps what it was made with."""

    config: Mapping[str, object]
    answers: Iterator[Sequence[Event]]

    def __init__(self, config: Mapping[str, object], **_: object) -> None:
        FakeConsumer.config = config

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=[0])})

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 0

    def assign(self, places: list[TopicPartition]) -> None:
        pass

    def consume(self, n: int, timeout_s: float) -> Sequence[Event]:
        return next(self.answers)


class FakeAdmin:
    """Knows the ends of the partitions."""

    ends: Mapping[int, int]

    def __init__(self, config: Mapping[str, object]) -> None:
        pass

    def list_offsets(
        self, wanted: Mapping[TopicPartition, object], **_: object
    ) -> dict[TopicPartition, Future[SimpleNamespace]]:
        answers: dict[TopicPartition, Future[SimpleNamespace]] = {p: Future() for p in wanted}
        for place, answer in answers.items():
            answer.set_result(SimpleNamespace(offset=self.ends[place.partition]))
        return answers


@pytest.fixture(autouse=True)
def _without_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_log, "Consumer", FakeConsumer)
    monkeypatch.setattr(position_log, "AdminClient", FakeAdmin)


@pytest.mark.parametrize(("asked", "fetched"), [({}, 1_000), ({"queued.min.messages": 7}, 7)])
def test_little_is_fetched_ahead(asked: Mapping[str, int], fetched: int) -> None:
    """It stays assigned, but is read only when partitions come."""
    output = SETTINGS.output.model_copy(update={"kafka": asked})
    PositionLog(SETTINGS.model_copy(update={"output": output}), "cluster")
    assert FakeConsumer.config["queued.min.messages"] == fetched


def test_no_right_on_a_group_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is ever joined."""
    log = PositionLog(SETTINGS, "cluster")
    refusal = Event(code=KafkaError.GROUP_AUTHORIZATION_FAILED)
    answers = iter([[refusal], [Event(0, log.record(PLACE, 7, "id"))]])
    monkeypatch.setattr(FakeConsumer, "answers", answers, raising=False)
    monkeypatch.setattr(FakeAdmin, "ends", {0: 1}, raising=False)
    assert log.recall([PLACE]) == {PLACE: Position(7, "id")}
