"""At least once: what is remembered of the input is never ahead of what was published."""

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError

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


@pytest.mark.parametrize("refused", [None, "summaries"])
def test_positions_are_remembered_after_they_were_committed(
    monkeypatch: pytest.MonkeyPatch, refused: str | None
) -> None:
    log: list[str] = []
    monkeypatch.setattr(kafka_sink, "find_limits", lambda _: Limits(1_000_000, 1_000_000))
    monkeypatch.setattr(outlet, "Producer", lambda *_, **__: FakeProducer(refused, log))
    settings = Settings.model_validate({"output": {"bootstrap": "b:1", "topic": "summaries"}})
    sink = PlainSink(settings, FakeSource(log))  # type: ignore[arg-type]
    if refused is None:
        sink.publish(WINDOW)
        assert log == ["summaries", "commit", "positions"]
    else:
        with pytest.raises(WindowAbortedError, match="expected every message confirmed"):
            sink.publish(WINDOW)
        assert log == ["summaries"]
