"""At least once: what is remembered of the input is never ahead of what was published."""

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, Producer

from consumer import kafka_sink, outlet
from consumer.errors import WindowAbortedError
from consumer.kafka_client import Limits
from consumer.kafka_sink import PlainSink
from consumer.message import Message, Result, Window
from consumer.settings import Settings

WINDOW = Window(
    (Message(b"in", topic="t", offset=4),), (Result(b"k", b"out", (), "OK", "ZTF"),), ()
)


class FakeProducer:
    """Confirms every message, or refuses those to `refused`, when it is flushed."""

    def __init__(self, refused: str | None, log: list[str]) -> None:
        self._refused, self._log = refused, log
        self._waiting: list[Callable[[], None]] = []

    def produce(self, topic: str, *, on_delivery: Callable[..., None], **_: object) -> None:
        error = KafkaError(KafkaError._MSG_TIMED_OUT) if topic == self._refused else None
        self._log.append(topic)
        self._waiting.append(lambda: on_delivery(error, None))

    def flush(self, timeout_s: float) -> int:
        for deliver in self._waiting:
            deliver()
        self._waiting.clear()
        return 0


class FakeSource:
    """Has positions that the group keeps, and a topic that remembers them."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.starts = self
        self.log = self
        self.topic = "positions"

    def commit(self, window: Window) -> None:
        self._log.append("commit")

    def topic_id(self, topic: str) -> None:
        return None

    def record(self, *_: object) -> tuple[bytes, bytes]:
        return b"key", b"value"


@pytest.fixture
def make_sink(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlainSink]:
    def make(refused: str | None, log: list[str]) -> PlainSink:
        monkeypatch.setattr(kafka_sink, "find_limits", lambda _: Limits(*3 * [1_000_000]))
        monkeypatch.setattr(outlet, "Producer", lambda *_, **__: FakeProducer(refused, log))
        settings = Settings.model_validate({"output": {"bootstrap": "b:1", "topic": "summaries"}})
        return PlainSink(settings, FakeSource(log))  # type: ignore[arg-type]

    return make


def test_a_topic_that_takes_more_than_librdkafka_can_be_told_stops_no_start() -> None:
    settings = Settings.model_validate({"output": {"bootstrap": "127.0.0.1:1", "topic": "out"}})
    limits = Limits(batch=1_000_000, summary=1_000_000, letter=2**31 - 1)
    config = outlet.producer_config(settings, {"log_level": 0}, limits)
    assert Producer(config) is not None


@pytest.mark.parametrize("refused", [None, "summaries"])
def test_positions_are_remembered_after_they_were_committed(
    make_sink: Callable[..., PlainSink], refused: str | None
) -> None:
    log: list[str] = []
    sink = make_sink(refused, log)
    if refused is None:
        sink.publish(WINDOW)
        assert log == ["summaries", "commit", "positions"]
    else:
        with pytest.raises(WindowAbortedError, match="expected every message confirmed"):
            sink.publish(WINDOW)
        assert log == ["summaries"]


def test_positions_that_are_refused_are_no_fault_of_the_next_window(
    make_sink: Callable[..., PlainSink], caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    sink = make_sink("positions", log)
    for _ in range(2):
        sink.publish(WINDOW)
    assert log == ["summaries", "commit", "positions"] * 2
    assert [r.message for r in caplog.records] == ["positions not remembered"]
