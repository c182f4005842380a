"""The source without a broker: a partition whose end moved before what was read of it."""

from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import KafkaError, TopicPartition
from prometheus_client import CollectorRegistry

from consumer.errors import WindowAbortedError
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.message import Message
from consumer.metrics import Metrics
from consumer.settings import Settings

CUT, WHOLE = ("hosts", 0), ("hosts", 1)


class Event:
    """What librdkafka hands out: a message, or the error that a partition must be begun anew."""

    def __init__(self, place: tuple[str, int], offset: int, *, reset: bool = False) -> None:
        self._place, self._offset, self._reset = place, offset, reset

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._AUTO_OFFSET_RESET) if self._reset else None

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 1

    def value(self) -> bytes:
        return b""

    def key(self) -> None:
        return None

    def headers(self) -> None:
        return None


class FakeConsumer:
    """Hands out `answers`, one at each call."""

    def __init__(self, answers: Sequence[Sequence[Event]]) -> None:
        self._answers = iter(answers)
        self.sought: list[tuple[int, int]] = []

    def consume(self, n: int, timeout_s: float) -> Sequence[Event]:
        return next(self._answers, ())

    def seek(self, place: TopicPartition) -> None:
        self.sought.append((place.partition, place.offset))

    def pause(self, places: Sequence[TopicPartition]) -> None:
        pass

    def resume(self, places: Sequence[TopicPartition]) -> None:
        pass

    def get_watermark_offsets(self, place: TopicPartition, *, cached: bool) -> None:
        return None

    def consumer_group_metadata(self) -> object:
        return object()

    def memberid(self) -> str:
        return "member"


@pytest.fixture
def source() -> Iterator[KafkaSource]:
    """A source that read both partitions up to offset 9 and published that."""
    settings = Settings.model_validate({"input": {"bootstrap": "127.0.0.1:1", "topics": ["hosts"]}})
    source = KafkaSource(settings, Metrics(CollectorRegistry()), Health())
    real, source._topics = source._consumer, settings.input.topics
    source._held = {CUT, WHOLE}
    source._next = dict.fromkeys(source._held, 10)
    source._position = dict(source._next)
    source.starts.find_again = lambda place, offset: offset  # type: ignore[method-assign]
    source.starts.find_remade = lambda topics: []  # type: ignore[method-assign]
    yield source
    real.close()


def offsets(messages: Sequence[Message], place: tuple[str, int]) -> list[int]:
    return [m.offset for m in messages if (m.topic, m.partition) == place]


def test_what_was_taken_comes_once(source: KafkaSource) -> None:
    consumer = FakeConsumer(
        [
            [Event(CUT, 10)],
            [Event(WHOLE, 10), Event(CUT, 11), Event(CUT, 12, reset=True)],
            [Event(CUT, 10), Event(WHOLE, 11)],
        ]
    )
    source._consumer = consumer
    messages = source.poll(4, 5.0)
    assert consumer.sought == [(0, 10)]
    assert offsets(messages, CUT) == [10]
    assert offsets(messages, WHOLE) == [10, 11]


def test_a_window_in_hand_that_comes_again_is_given_up(source: KafkaSource) -> None:
    source._consumer = FakeConsumer(
        [[Event(CUT, 10), Event(WHOLE, 10)], [Event(CUT, 11, reset=True)]]
    )
    window = source.poll(2, 0.0)
    assert len(window) == 2
    source._last_poll_s = float("-inf")
    with pytest.raises(WindowAbortedError):
        source.keep_alive(window)
