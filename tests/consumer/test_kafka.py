"""The source without a broker: a partition whose end moved before what was read of it."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry

from consumer import message as message_module
from consumer.errors import BrokerError, ConsumerError, WindowAbortedError
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.message import Message, Window
from consumer.metrics import Metrics
from consumer.settings import Settings

CUT, WHOLE = ("hosts", 0), ("hosts", 1)


RESET, END = KafkaError._AUTO_OFFSET_RESET, KafkaError._PARTITION_EOF


class Event:
    """What librdkafka hands out: a message, or that a partition ended or must be begun anew."""

    def __init__(self, place: tuple[str, int], offset: int, code: int | None = None) -> None:
        self._place, self._offset, self._code = place, offset, code

    def error(self) -> KafkaError | None:
        return None if self._code is None else KafkaError(self._code)

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


class Large(Event):
    """A message of a kilobyte."""

    def value(self) -> bytes:
        return bytes(1000)


class Misnamed(Event):
    """A message with a header whose name is no UTF-8, as confluent-kafka hands it out."""

    asked = 0

    def headers(self) -> None:
        self.asked += 1
        try:
            b"\xff".decode()
        except UnicodeDecodeError as error:
            raise SystemError("headers returned a result with an exception set") from error


class FakeConsumer:
    """Hands out `answers`, one at each call."""

    def __init__(self, answers: Sequence[Sequence[Event]]) -> None:
        self._answers = iter(answers)
        self.sought: list[tuple[int, int]] = []
        self.committed: list[int] = []
        self.refusal: int | None = None
        self.refused_part: int | None = None
        self.member = "member"

    def consume(self, n: int, timeout_s: float) -> Sequence[Event]:
        return next(self._answers, ())

    def seek(self, place: TopicPartition) -> None:
        self.sought.append((place.partition, place.offset))

    def commit(
        self, offsets: Sequence[TopicPartition], *, asynchronous: bool
    ) -> Sequence[SimpleNamespace]:
        if self.refusal is not None:
            raise KafkaException(KafkaError(self.refusal))
        self.committed += [place.offset for place in offsets]
        refused = None if self.refused_part is None else KafkaError(self.refused_part)
        return [SimpleNamespace(error=refused) for _ in offsets]

    def pause(self, places: Sequence[TopicPartition]) -> None:
        pass

    def resume(self, places: Sequence[TopicPartition]) -> None:
        pass

    def get_watermark_offsets(self, place: TopicPartition, *, cached: bool) -> None:
        return None

    def consumer_group_metadata(self) -> object:
        return object()

    def memberid(self) -> str:
        return self.member


@pytest.fixture
def source() -> Iterator[KafkaSource]:
    """A source that read both partitions up to offset 9 and published that."""
    settings = Settings.model_validate({"input": {"bootstrap": "127.0.0.1:1", "topics": ["hosts"]}})
    source = KafkaSource(settings, Metrics(CollectorRegistry()), Health())
    real, source._topics = source._consumer, settings.input.topics
    source._held = {CUT, WHOLE}
    source._committed = dict.fromkeys(source._held, 10)
    source._seen_to = dict(source._committed)
    source.starts.check_remade = lambda topics: None  # type: ignore[method-assign]
    yield source
    real.close()


def offsets(messages: Sequence[Message], place: tuple[str, int]) -> list[int]:
    return [m.offset for m in messages if (m.topic, m.partition) == place]


def test_an_end_that_moved_before_what_was_read_needs_new_clients(source: KafkaSource) -> None:
    """Not where the partition belongs to others by now.

    They find what is gone by the position, which may be the first, and not kept before.
    """
    consumer = FakeConsumer([[Event(("hosts", 2), 12, RESET)], [Event(CUT, 12, RESET)]])
    source._consumer = source.starts._consumer = consumer
    source._store = source.starts.group_positions()
    assert source.poll(4, 0.0) == []
    with pytest.raises(BrokerError, match=r"input: hosts\[0\]: what was to be read next is gone"):
        source.poll(4, 0.0)
    assert consumer.committed == [10]


def test_headers_that_cannot_be_read_cost_no_message(
    source: KafkaSource, caplog: pytest.LogCaptureFixture
) -> None:
    event = Misnamed(CUT, 10)
    source._consumer = FakeConsumer([[event, Event(CUT, 11)]])
    messages = source.poll(2, 0.0)
    assert offsets(messages, CUT) == [10, 11]
    assert messages[0].headers == ()
    assert event.asked == 1
    (record,) = (r for r in caplog.records if r.message == "headers left out")
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["topic"], fields["partition"], fields["offset"]) == (*CUT, 10)
    assert "can't decode byte 0xff" in fields["error"]


def test_a_window_in_hand_is_given_up_with_its_clients(source: KafkaSource) -> None:
    consumer = FakeConsumer([[Event(CUT, 10), Event(WHOLE, 10)], [Event(CUT, 11, RESET)]])
    source._consumer = source.starts._consumer = consumer
    source._store = source.starts.group_positions()
    window = source.poll(2, 0.0)
    assert len(window) == 2
    source._last_poll_s = float("-inf")
    with pytest.raises(BrokerError, match="what was to be read next is gone"):
        source.keep_alive()


def test_what_is_taken_without_a_membership_is_read_again(source: KafkaSource) -> None:
    """Under a cooperative protocol the partition may stay here, without a revocation."""
    consumer = FakeConsumer([[Event(CUT, 10)], [Event(CUT, 10)]])
    source._consumer, consumer.member = consumer, ""
    assert source.poll(1, 0.0) == []
    assert consumer.sought == [(0, 10)]
    consumer.member = "again"
    assert offsets(source.poll(1, 0.0), CUT) == [10]


@pytest.fixture
def behind_markers(source: KafkaSource) -> FakeConsumer:
    """A message, then the markers of transactions up to the end of its partition."""
    consumer = FakeConsumer([[Event(CUT, 10), Event(CUT, 13, END)]])
    source._consumer = source.starts._consumer = consumer
    source._store = source.starts.group_positions()
    return consumer


def test_an_end_is_kept_once_nothing_is_in_hand(
    source: KafkaSource, behind_markers: FakeConsumer
) -> None:
    window = Window(tuple(source.poll(1, 0.0)), (), ())
    assert behind_markers.committed == []
    source.advance(window)
    for _ in range(2):
        assert source.poll(1, 0.0) == []
    assert behind_markers.committed == [13]


def test_an_end_is_not_kept_before_a_window_that_is_read_again(
    source: KafkaSource, behind_markers: FakeConsumer
) -> None:
    source.rewind(source.poll(1, 0.0))
    assert source.poll(1, 0.0) == []
    assert behind_markers.committed == []


def test_an_end_is_not_kept_before_messages_that_an_ended_membership_took(
    source: KafkaSource, behind_markers: FakeConsumer
) -> None:
    behind_markers.member = ""
    assert source.poll(1, 0.0) == []
    behind_markers.member = "another"
    assert source.poll(1, 0.0) == []
    assert behind_markers.committed == []


def test_an_end_that_is_refused_is_kept_later(
    source: KafkaSource, behind_markers: FakeConsumer
) -> None:
    """Not one that nobody answered to: it may be kept at any time."""
    source.advance(Window(tuple(source.poll(1, 0.0)), (), ()))
    behind_markers.refusal = KafkaError.REBALANCE_IN_PROGRESS
    source.poll(1, 0.0)
    behind_markers.refusal = KafkaError._TIMED_OUT
    with pytest.raises(BrokerError, match="input: commit"):
        source.poll(1, 0.0)
    behind_markers.refusal = None
    source.poll(1, 0.0)
    assert behind_markers.committed == [13]


@pytest.mark.parametrize("code", [KafkaError._ALL_BROKERS_DOWN, KafkaError._MAX_POLL_EXCEEDED])
def test_trouble_that_passes_costs_nothing(source: KafkaSource, code: int) -> None:
    events = [Event(CUT, 10), Event(CUT, 11, code), Event(CUT, 11)]
    source._consumer = FakeConsumer([events])  # type: ignore[assignment]
    assert offsets(source.poll(2, 0.0), CUT) == [10, 11]


def test_a_refusal_ends_the_loop(source: KafkaSource) -> None:
    refused = Event(CUT, 10, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    source._consumer = FakeConsumer([[refused]])  # type: ignore[assignment]
    with pytest.raises(BrokerError, match="input: "):
        source.poll(1, 0.0)


def test_a_window_is_bounded_in_bytes(source: KafkaSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_module, "MAX_WINDOW_BYTES", 2_500)
    source._consumer = FakeConsumer([[Large(CUT, i)] for i in range(10, 20)])  # type: ignore[assignment]
    assert offsets(source.poll(10, 60.0), CUT) == [10, 11, 12]
    assert offsets(source.poll(10, 60.0), CUT) == [13, 14, 15]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (KafkaError.GROUP_AUTHORIZATION_FAILED, BrokerError),
        (KafkaError.REBALANCE_IN_PROGRESS, WindowAbortedError),  # it passes, and the clients stay
    ],
)
def test_a_commit_of_which_a_partition_is_refused_is_no_commit(
    source: KafkaSource, code: int, error: type[ConsumerError]
) -> None:
    consumer = FakeConsumer([[Event(CUT, 10)]])
    consumer.refused_part = code
    source._consumer = consumer  # type: ignore[assignment]
    (message,) = source.poll(1, 0.0)
    with pytest.raises(error, match="input: commit"):
        source.commit(Window((message,), (), ()))
    assert source._seen_to[CUT] == 10
