"""What the topic of positions takes of a worker's memory, what it does without, how it grows."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import OffsetSpec

from consumer import position_log
from consumer.gaps import Position
from consumer.position_log import PositionLog
from consumer.settings import Settings

PLACE = ("hosts", 1)
SETTINGS = Settings.model_validate({"output": {"bootstrap": "127.0.0.1:1", "topic": "summaries"}})


class Event:
    """What librdkafka hands out: a record, or an error."""

    def __init__(
        self,
        offset: int = 0,
        record: tuple[bytes, bytes | None] = (b"", b""),
        *,
        partition: int = 0,
        time_ms: int = 0,
        code: int | None = None,
    ) -> None:
        self._offset, self._record, self._code = offset, record, code
        self._partition, self._time_ms = partition, time_ms

    def error(self) -> KafkaError | None:
        return None if self._code is None else KafkaError(self._code)

    def topic(self) -> str:
        return "positions"

    def partition(self) -> int:
        return self._partition

    def timestamp(self) -> tuple[int, int]:
        return 1, self._time_ms

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._record[0]

    def value(self) -> bytes | None:
        return self._record[1]


class FakeConsumer:
    """Hands out `answers`, one at each call; keeps what it was made with."""

    config: Mapping[str, object]
    answers: Iterator[Sequence[Event]]
    assigned: Sequence[tuple[int, int]]

    def __init__(self, config: Mapping[str, object], **_: object) -> None:
        FakeConsumer.config = config

    def assign(self, places: list[TopicPartition]) -> None:
        FakeConsumer.assigned = [(p.partition, p.offset) for p in places]

    def consume(self, n: int, timeout_s: float) -> Sequence[Event]:
        return next(self.answers)


class FakeAdmin:
    """Knows a topic whose partitions begin at 0, and their `ends`."""

    ends: Sequence[int] = (0,)

    def __init__(self, config: Mapping[str, object]) -> None:
        pass

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        found = SimpleNamespace(error=None, partitions=dict(enumerate(self.ends)))
        return SimpleNamespace(topics={topic: found})

    def list_offsets(
        self, wanted: Mapping[TopicPartition, OffsetSpec], **_: object
    ) -> dict[TopicPartition, Future[SimpleNamespace]]:
        answers: dict[TopicPartition, Future[SimpleNamespace]] = {p: Future() for p in wanted}
        for place, spec in wanted.items():
            offset = self.ends[place.partition] if spec is OffsetSpec.latest() else 0
            answers[place].set_result(SimpleNamespace(offset=offset))
        return answers


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> PositionLog:
    monkeypatch.setattr(position_log, "Consumer", FakeConsumer)
    monkeypatch.setattr(position_log, "open_admin", FakeAdmin)
    return PositionLog(SETTINGS, "cluster")


def hold(monkeypatch: pytest.MonkeyPatch, ends: Sequence[int], *answers: Sequence[Event]) -> None:
    """Let the topic have these ends, and these records and errors up to them."""
    monkeypatch.setattr(FakeConsumer, "answers", iter(answers), raising=False)
    monkeypatch.setattr(FakeAdmin, "ends", ends)


@pytest.mark.parametrize(("asked", "fetched"), [({}, 1_000), ({"queued.min.messages": 7}, 7)])
def test_little_is_fetched_ahead(log: PositionLog, asked: Mapping[str, int], fetched: int) -> None:
    """It stays assigned, but is read only when partitions come."""
    output = SETTINGS.output.model_copy(update={"kafka": asked})
    PositionLog(SETTINGS.model_copy(update={"output": output}), "cluster")
    assert FakeConsumer.config["queued.min.messages"] == fetched


def test_no_right_on_a_group_is_needed(monkeypatch: pytest.MonkeyPatch, log: PositionLog) -> None:
    """None is ever joined."""
    refusal = Event(code=KafkaError.GROUP_AUTHORIZATION_FAILED)
    hold(monkeypatch, [1], [refusal], [Event(0, log.record(PLACE, 7, "id"))])
    assert log.recall([PLACE]) == {PLACE: Position(7, "id")}


def test_partitions_that_are_added_are_read(
    monkeypatch: pytest.MonkeyPatch, log: PositionLog
) -> None:
    """A key stands in another one from then on."""
    hold(monkeypatch, [1], [Event(0, log.record(PLACE, 7, "id"), time_ms=1)])
    assert log.recall([PLACE]) == {PLACE: Position(7, "id")}
    hold(monkeypatch, [1, 1], [Event(0, log.record(PLACE, 9, "id"), partition=1, time_ms=2)])
    assert log.recall([PLACE]) == {PLACE: Position(9, "id")}
    assert FakeConsumer.assigned == [(0, 1), (1, 0)]


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_partitions_the_newer_record_holds(
    monkeypatch: pytest.MonkeyPatch, log: PositionLog, newer_first: bool, deleted: bool
) -> None:
    key, value = log.record(PLACE, 9, "id")
    newer = Event(0, (key, None if deleted else value), partition=1, time_ms=2)
    older = Event(0, log.record(PLACE, 7, "id"), time_ms=1)
    hold(monkeypatch, [1, 1], [newer, older] if newer_first else [older, newer])
    assert log.recall([PLACE]) == ({} if deleted else {PLACE: Position(9, "id")})


def test_of_one_partition_the_later_record_holds(
    monkeypatch: pytest.MonkeyPatch, log: PositionLog
) -> None:
    """Whatever the clocks of the writers say."""
    records = [Event(i, log.record(PLACE, 7 + i, "id"), time_ms=9 - i) for i in range(2)]
    hold(monkeypatch, [2], records)
    assert log.recall([PLACE]) == {PLACE: Position(8, "id")}
