"""What a transaction that fails leads to, by what librdkafka says of it."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import CollectorRegistry

from consumer import backoff, kafka_sink, outlet
from consumer.backoff import MAX_ABORTS_IN_A_ROW
from consumer.errors import BrokerError, WindowAbortedError, WorkerLostError
from consumer.kafka_client import Limits
from consumer.kafka_sink import KafkaSink, Transactions
from consumer.message import DeadLetter, Message, Result, Window
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.two_cluster_sink import TwoClusterSink, split_by_place

WINDOW = Window(
    (Message(b"in", topic="t", offset=4),), (Result(b"k", b"out", (), "OK", "ZTF"),), ()
)
SETTINGS = Settings.model_validate({"output": {"bootstrap": "b:1", "topic": "summaries"}})
MADE = ["begin", "offsets", "beat", "commit"]


class FakeProducer:
    """Refuses to commit with one error after the other, then commits."""

    def __init__(self, errors: list[KafkaError], log: list[str]) -> None:
        self._errors, self._log = errors, log

    def init_transactions(self, _: float) -> None:
        pass

    def begin_transaction(self) -> None:
        self._log.append("begin")

    def produce(self, *_: object, **__: object) -> None:
        pass

    def send_offsets_to_transaction(self, *_: object) -> None:
        self._log.append("offsets")

    def commit_transaction(self, _: float) -> None:
        self._log.append("commit")
        if self._errors:
            raise KafkaException(self._errors.pop(0))

    def abort_transaction(self, _: float) -> None:
        self._log.append("abort")


def of_code(code: int, **kinds: bool) -> KafkaError:
    return KafkaError(code, "refused", **kinds)


@pytest.mark.parametrize(
    ("error", "expected", "calls"),
    [
        (None, None, [*MADE, "advance"]),
        (of_code(KafkaError._TRANSPORT, retriable=True), None, [*MADE, "commit", "advance"]),
        (of_code(KafkaError._STATE, txn_requires_abort=True), WindowAbortedError, [*MADE, "abort"]),
        (of_code(KafkaError._TIMED_OUT), BrokerError, [*MADE, "abort"]),
        (of_code(KafkaError._FENCED, fatal=True), WorkerLostError, MADE),
    ],
    ids=["committed", "again", "rolled back", "no answer", "fenced"],
)
def test_a_commit_that_fails(
    monkeypatch: pytest.MonkeyPatch,
    error: KafkaError | None,
    expected: type[Exception] | None,
    calls: list[str],
) -> None:
    """Only what was committed moves the source; a fenced worker touches nothing any more."""
    log: list[str] = []
    errors = [] if error is None else [error]
    monkeypatch.setattr(kafka_sink, "find_limits", lambda _: Limits(*3 * [1_000_000]))
    monkeypatch.setattr(outlet, "Producer", lambda *_, **__: FakeProducer(errors, log))
    source = SimpleNamespace(
        log=None,
        positions_behind=lambda _: [],
        group_metadata=None,
        advance=lambda _: log.append("advance"),
        beat=lambda: log.append("beat"),
    )
    sink = KafkaSink(SETTINGS, Metrics(CollectorRegistry()), source)  # type: ignore[arg-type]
    if expected is None:
        sink.publish(WINDOW)
    else:
        with pytest.raises(expected) as raised:
            sink.publish(WINDOW)
        assert type(raised.value) is expected
    assert log == calls
    failures = sink._transactions._metrics.commit_failures._value.get()
    assert failures == (1 if expected is BrokerError else 0)  # others are counted by the loop


class Produced(FakeProducer):
    """Notes key, value and timestamp of what it is given."""

    def __init__(self, errors: list[KafkaError], log: list[str]) -> None:
        super().__init__(errors, log)
        self.last: list[tuple[bytes | None, bytes | None, int]] = []

    def produce(self, *_: object, **message: Any) -> None:
        self.last.append((message["key"], message["value"], message["timestamp"]))


def test_letters_that_a_topic_refuses_ask_less_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """First with the present time and a key, then without their bytes, which the next have."""
    monkeypatch.setattr(kafka_sink, "RETRY_PAUSE_S", 0.0)
    refusals = [
        of_code(code, txn_requires_abort=True)
        for code in (KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD)
    ]
    producer = Produced(refusals, [])
    monkeypatch.setattr(outlet, "Producer", lambda *_, **__: producer)
    metrics, limits = Metrics(CollectorRegistry()), Limits(*3 * [1_000_000])
    transactions = Transactions(SETTINGS, metrics, "id", limits)
    message = Message(bytes(9_000), topic="t", partition=1, offset=7, timestamp_ms=5)
    letter = DeadLetter(message, "decode", "DecodeError", "bad", datetime.now(UTC))
    window = Window((message,), (), (letter,))
    found: list[tuple[bytes | None, bytes | None, int]] = []
    for is_refused in (True, True, False, False):
        producer.last.clear()
        with pytest.raises(WindowAbortedError) if is_refused else nullcontext():
            transactions.publish(window, lambda *_: None)
        found += producer.last
    whole, now = message.value, outlet.NOW
    as_new, as_stub = (b"t/1/7", whole, now), (b"t/1/7", None, now)
    assert found == [(None, whole, 5), as_new, as_stub, as_new]


def test_a_window_is_split_by_partition() -> None:
    messages = [Message(b"", topic="t", partition=i % 2, offset=i) for i in range(5)]
    results = [Result(None, b"%d" % i, (), "OK", "ZTF") for i in (0, 1, 3, 4)]
    letter = DeadLetter(messages[2], "decode", "DecodeError", "bad", datetime.now(UTC))
    even = Window((messages[0], messages[2], messages[4]), (results[0], results[3]), (letter,))
    odd = Window((messages[1], messages[3]), (results[1], results[2]), ())
    whole = Window(tuple(messages), tuple(results), (letter,))
    assert split_by_place(whole) == {("t", 0): even, ("t", 1): odd}


@pytest.mark.parametrize("n_aborts", [0, 2, MAX_ABORTS_IN_A_ROW])
def test_a_part_is_tried_again_and_given_up_at_last(
    monkeypatch: pytest.MonkeyPatch, n_aborts: int
) -> None:
    """Between two clusters no other window of the partition may come first."""
    tries: list[Window] = []
    advanced: list[Window] = []

    def publish(part: Window, _: Callable[..., None]) -> None:
        tries.append(part)
        if len(tries) <= n_aborts:
            raise WindowAbortedError("output: aborted")

    monkeypatch.setattr(backoff.time, "sleep", lambda _: None)
    sink = TwoClusterSink.__new__(TwoClusterSink)
    sink._metrics = Metrics(CollectorRegistry())
    beats: list[None] = []
    sink._source = SimpleNamespace(  # type: ignore[assignment]
        advance=advanced.append, beat=lambda: beats.append(None)
    )
    transactions = Transactions.__new__(Transactions)
    transactions._metrics = sink._metrics
    monkeypatch.setattr(transactions, "publish", publish)
    sink._transactions = {("t", 0): transactions}
    if n_aborts < MAX_ABORTS_IN_A_ROW:
        sink.publish(WINDOW)
    else:
        with pytest.raises(BrokerError, match=f"{n_aborts} aborts in a row: output: aborted"):
            sink.publish(WINDOW)
    assert len(tries) == min(n_aborts + 1, MAX_ABORTS_IN_A_ROW)
    assert advanced == ([WINDOW] if n_aborts < MAX_ABORTS_IN_A_ROW else [])
    assert sink._metrics.commit_failures._value.get() == n_aborts
    assert len(beats) == len(tries)
