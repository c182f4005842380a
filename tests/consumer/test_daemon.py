"""The loop: every message once, in order; drained at a stop; rolled-back windows read again."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource
from prometheus_client import CollectorRegistry

from consumer import kafka_client
from consumer.backoff import MAX_ABORTS_IN_A_ROW
from consumer.breaker import Breaker
from consumer.daemon import Guard, Tally, run
from consumer.errors import (
    BreakerError,
    BrokerError,
    ConsumerError,
    NoAnswerError,
    OffsetsLostError,
    SettingsError,
    WindowAbortedError,
)
from consumer.health import Health
from consumer.in_hand import MAX_DEATHS, InHand
from consumer.kafka_client import (
    BROKER_DEFAULT_BYTES,
    Limits,
    client_config,
    find_limits,
)
from consumer.kafka_sink import call_within
from consumer.message import STEP_AT_ONCE, DeadLetter, Message, Result, Window
from consumer.metrics import Metrics
from consumer.outlet import MIN_MESSAGE_BYTES, producer_config
from consumer.process import JsonFormatter, TextFormatter
from consumer.sections import BreakerSettings
from consumer.settings import Settings, load_settings
from consumer.start_checks import check_topics
from sedflow_core import Artifact


@dataclass
class MemorySource:
    """Hands out `messages` from `position` on; the sink moves `committed`."""

    messages: Sequence[Message]
    position: int = 0
    committed: int = 0

    @property
    def exhausted(self) -> bool:
        return self.position == len(self.messages)

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        batch = self.messages[self.position : self.position + max_messages]
        self.position += len(batch)
        return batch

    def rewind(self, messages: Sequence[Message]) -> None:
        self.position = self.committed

    def close(self) -> None:
        pass


@dataclass
class MemorySink:
    """Keeps what is published; rolls the first `aborts` windows back, as the Kafka sink does."""

    source: MemorySource
    aborts: int = 0
    published: list[bytes] = field(default_factory=list)

    def publish(self, window: Window) -> None:
        if self.aborts:
            self.aborts -= 1
            raise WindowAbortedError("output: rebalance")
        self.published += [result.value for result in window.results]
        self.source.committed += len(window.consumed)

    def close(self) -> None:
        pass


def echo(messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]) -> Window:
    assert now().tzinfo is UTC
    results = tuple(Result(m.key, m.value or b"", (), "OK", "ZTF") for m in messages)
    return Window(tuple(messages), results, ())


def make_source(n: int = 20) -> MemorySource:
    return MemorySource([Message(value=b"%d" % i, offset=i) for i in range(n)])


def run_through(
    source: MemorySource,
    sink: MemorySink,
    *,
    stop: Event | None = None,
    step: Callable[..., Window] = echo,
    max_batch: int = 7,
    at_once: int = STEP_AT_ONCE,
    metrics: Metrics | None = None,
    guard: Guard | None = None,
    note: Callable[[Window], None] = lambda _: None,
) -> Tally:
    return run(
        source,
        sink,
        step,
        stop or Event(),
        max_batch=max_batch,
        max_delay_s=0.0,
        metrics=metrics or Metrics(CollectorRegistry()),
        health=Health(),
        at_once=at_once,
        guard=guard,
        note=note,
    )


@pytest.mark.parametrize("max_batch", [1, 7, 256])
def test_every_message_once_and_in_order(max_batch: int) -> None:
    source = make_source()
    sink = MemorySink(source)
    assert run_through(source, sink, max_batch=max_batch).messages == 20
    assert sink.published == [b"%d" % i for i in range(20)]


def test_stop_publishes_the_window_in_hand_and_polls_no_more() -> None:
    source, stop = make_source(), Event()
    sink = MemorySink(source)

    def stop_in_step(messages: Sequence[Message], **rest: object) -> Window:
        stop.set()
        return echo(messages, **rest)  # type: ignore[arg-type]

    assert run_through(source, sink, stop=stop, step=stop_in_step).messages == 7
    assert sink.published == [b"%d" % i for i in range(7)]
    assert source.committed == source.position == 7


def test_stop_within_a_large_window_publishes_what_was_stepped() -> None:
    source, stop = make_source(5 * STEP_AT_ONCE), Event()
    sink = MemorySink(source)

    def stop_in_second(messages: Sequence[Message], **rest: object) -> Window:
        if messages[0].offset:
            stop.set()
        return echo(messages, **rest)  # type: ignore[arg-type]

    tally = run_through(source, sink, stop=stop, step=stop_in_second, max_batch=5 * STEP_AT_ONCE)
    assert tally.messages == len(sink.published) == source.committed == 2 * STEP_AT_ONCE


def test_so_many_are_stepped_at_once() -> None:
    source, sizes = make_source(20), []

    def note(messages: Sequence[Message], **rest: object) -> Window:
        sizes.append(len(messages))
        return echo(messages, **rest)  # type: ignore[arg-type]

    run_through(source, MemorySink(source), step=note, max_batch=20, at_once=8)
    assert sizes == [8, 8, 4]


def test_stop_before_the_first_answer_publishes_nothing() -> None:
    """The slow lane may be told to stop while its window holds no answer yet."""
    source, stop = make_source(), Event()
    sink = MemorySink(source, aborts=1)

    def stop_at_once(messages: Sequence[Message], **rest: object) -> Window:
        stop.set()
        return Window((), (), ())

    assert run_through(source, sink, stop=stop, step=stop_at_once) == Tally()
    assert sink.aborts == 1, "published"


def test_a_large_window_is_kept_alive_and_given_up_when_its_partition_goes() -> None:
    source = make_source(3 * STEP_AT_ONCE)
    sink, kept = MemorySink(source), []

    def keep_alive() -> None:
        kept.append(len(sink.published))
        if len(kept) == 1:
            raise WindowAbortedError("input: revoked")

    guard = Guard(keep_alive=keep_alive)
    run_through(source, sink, max_batch=3 * STEP_AT_ONCE, guard=guard)
    assert kept == [0] * 3
    assert sink.published == [b"%d" % i for i in range(3 * STEP_AT_ONCE)]


def test_a_wrong_stream_is_not_published() -> None:
    source = make_source(300)
    sink = MemorySink(source)

    def reject(messages: Sequence[Message], **rest: object) -> Window:
        now = datetime.now(UTC)
        letters = (DeadLetter(m, "decode", "DecodeError", "noise", now) for m in messages)
        return Window(tuple(messages), (), tuple(letters))

    guard = Guard(breaker=Breaker(BreakerSettings()))
    with pytest.raises(BreakerError, match="expected at most 50% bad messages, got 300"):
        run_through(source, sink, step=reject, max_batch=300, guard=guard)
    assert source.committed == 0


def test_a_large_letter_becomes_a_stub() -> None:
    message = Message(b"x" * 5000, key=b"k", headers=(("h", b"y" * 100),), topic="t", offset=4)
    letter = DeadLetter(message, "decode", "DecodeError", "noise", datetime.now(UTC))
    assert letter.fit(6000) is letter
    stub = letter.fit(5000)
    headers = {name.rpartition(".")[2]: text for name, text in stub.headers()}
    assert (stub.message.value, stub.message.key) == (None, b"k")
    assert (headers["size"], headers["offset"]) == (b"5000", b"4")
    assert headers["sha256"] == hashlib.sha256(b"x" * 5000).hexdigest().encode()


def test_rolled_back_windows_are_read_again() -> None:
    source, metrics = make_source(), Metrics(CollectorRegistry())
    sink, noted = MemorySink(source, aborts=2), list[Window]()
    tally = run_through(source, sink, metrics=metrics, note=noted.append)
    assert tally == Tally(Counter(OK=20))
    assert sink.published == [b"%d" % i for i in range(20)]
    assert sink.published == [result.value for window in noted for result in window.results]
    registry = metrics.registry
    assert registry.get_sample_value("sedflow_commit_failures_total") == 2
    assert registry.get_sample_value("sedflow_summaries_published_total") == 20


def test_gives_up_when_nothing_commits() -> None:
    source = make_source()
    told = f"{MAX_ABORTS_IN_A_ROW} aborts in a row: output: rebalance"
    with pytest.raises(BrokerError, match=told):
        run_through(source, MemorySink(source, aborts=MAX_ABORTS_IN_A_ROW))
    assert source.committed == 0


def test_an_error_in_the_step_publishes_nothing() -> None:
    source = make_source()
    sink = MemorySink(source)

    def fail(messages: Sequence[Message], **rest: object) -> Window:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_through(source, sink, step=fail)
    assert sink.published == []
    assert source.committed == 0


@pytest.mark.parametrize("error", [BrokerError, OffsetsLostError])
def test_an_alert_whose_step_waits_in_vain_kills_nobody(
    tmp_path: Path, error: type[ConsumerError]
) -> None:
    """However often its worker gives up and connects anew, the alert is answered in the end.

    A registry does not answer, or the slow lane is assigned a partition with a gap meanwhile.
    """

    def wait_in_vain(messages: Sequence[Message], **rest: object) -> Window:
        raise error("registry: expected an answer, got timed out")

    def run_anew(step: Callable[..., Window]) -> MemorySink:
        source = make_source(1)
        sink, in_hand = MemorySink(source), InHand(tmp_path)
        in_hand.note_assigned({(source.messages[0].topic, source.messages[0].partition)})
        run_through(source, sink, step=step, guard=Guard(in_hand=in_hand))
        return sink

    for _ in range(MAX_DEATHS + 1):
        with pytest.raises(error, match="registry"):
            run_anew(wait_in_vain)
    assert run_anew(echo).published == [b"0"]


class DiedError(Exception):
    """Stands for the death of the process."""


def test_each_deadly_message_of_a_window_is_found(tmp_path: Path) -> None:
    deadly, committed, published, deaths = {b"1", b"5", b"6"}, 0, [], 0

    def step(messages: Sequence[Message], **rest: Any) -> Window:
        if deadly & {message.value for message in messages}:
            raise DiedError
        return echo(messages, **rest)

    while committed < 20 and deaths < 30:
        source = make_source()
        source.position = source.committed = committed
        sink, in_hand = MemorySink(source), InHand(tmp_path)
        in_hand.note_assigned({(source.messages[0].topic, source.messages[0].partition)})
        try:
            run_through(source, sink, step=step, max_batch=256, guard=Guard(in_hand=in_hand))
        except DiedError:
            deaths += 1
        committed = source.committed
        published += sink.published
    assert published == [b"%d" % i for i in range(20) if b"%d" % i not in deadly]
    assert deaths <= len(deadly) * (1 + MAX_DEATHS)


SIGNALLED = """
import sys, threading
from consumer.process import stop_on_signals
stop = threading.Event()
stop_on_signals(stop)
print("ready", flush=True)
for line in sys.stdin:
    print("stopping" if stop.is_set() else "running", flush=True)
"""


def test_first_signal_stops_second_leaves_at_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SIGNALLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "stopping\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM


def make_record() -> logging.LogRecord:
    record = logging.LogRecord("sedflow", logging.INFO, "", 0, "at %s", ("work",), None)
    record.fields = {"topic": "hosts", "offset": 3}
    return record


def test_json_log_line() -> None:
    line = json.loads(JsonFormatter().format(make_record()))
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "INFO",
        "logger": "sedflow",
        "event": "at work",
        "topic": "hosts",
        "offset": 3,
    }


def test_text_log_line() -> None:
    assert TextFormatter().format(make_record()) == "at work topic=hosts offset=3"


def test_options_that_delivery_depends_on_are_refused() -> None:
    settings = Settings.model_validate({"input": {"kafka": {"enable.auto.commit": True}}})
    with pytest.raises(SettingsError, match=r"input\.kafka\.enable\.auto\.commit.*got True"):
        client_config("input", settings.input, {}, {"enable.auto.commit": False})


def test_a_call_that_does_not_come_back_is_given_up() -> None:
    with pytest.raises(BrokerError, match="wait: expected an answer"):
        call_within(0.05, Event().wait)


def test_the_error_of_a_bounded_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        call_within(5.0, divmod, 1, 0)


def test_the_example_settings_load(monkeypatch: pytest.MonkeyPatch, shipped: Artifact) -> None:
    for name in [name for name in os.environ if name.startswith("SEDFLOW_")]:
        monkeypatch.delenv(name)
    settings = load_settings(Path(__file__).parents[2] / "deploy" / "sedflow.example.toml")
    defaults = Settings().model_dump()
    assert settings.model_dump() == defaults | {
        "artifact": defaults["artifact"] | {"sha256": shipped.sha256},
        "input": defaults["input"] | {"topics": ("sedflow.v1_0.hostAlert",)},
    }


Answer = Future[dict[str, SimpleNamespace]]


def answer_configs(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Answer]) -> None:
    """Let the broker answer the question for settings of a topic."""

    class Admin:
        def __init__(self, config: object, **rest: object) -> None:
            pass

        def describe_configs(
            self, wanted: Sequence[ConfigResource], **rest: object
        ) -> dict[ConfigResource, Answer]:
            return {topic: answer(topic.name) for topic in wanted}

    monkeypatch.setattr(kafka_client, "AdminClient", Admin)


def refused(code: int) -> Answer:
    answer: Answer = Future()
    answer.set_exception(KafkaException(KafkaError(code)))
    return answer


def told(n_bytes: int) -> Answer:
    answer: Answer = Future()
    answer.set_result({"max.message.bytes": SimpleNamespace(value=str(n_bytes))})
    return answer


def test_a_limit_that_may_not_be_seen_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_configs(monkeypatch, lambda _: refused(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    assert find_limits(Settings()) == Limits(*3 * [BROKER_DEFAULT_BYTES])


@pytest.mark.parametrize("code", [KafkaError._TIMED_OUT, KafkaError._TRANSPORT])
def test_a_limit_that_nobody_tells_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answer_configs(monkeypatch, lambda _: refused(code))
    with pytest.raises(NoAnswerError, match=r"max\.message\.bytes of"):
        find_limits(Settings())


def test_a_certificate_in_exchange_is_trouble() -> None:
    cluster = {"kafka": {"security.protocol": "ssl", "ssl.ca.location": "/none.pem"}}
    with pytest.raises(BrokerError, match=r"output: size of messages: .*ssl\.ca\.location"):
        find_limits(Settings.model_validate({"output": cluster}))


@pytest.mark.parametrize(
    ("summaries", "letters", "batch"), [(20_000, 2_000_000, 20_000), (2_000_000, 30_000, 30_000)]
)
def test_batches_fit_into_every_topic(
    monkeypatch: pytest.MonkeyPatch, summaries: int, letters: int, batch: int
) -> None:
    settings = Settings.model_validate({"input": {"topics": ["hosts"]}})
    sizes = {settings.output.topic: summaries, "hosts.sedflow.dlq": letters}
    answer_configs(monkeypatch, lambda topic: told(sizes[topic]))
    limits = find_limits(settings)
    assert limits == Limits(letters, summaries, batch)
    config = producer_config(settings, {}, limits)
    assert config["batch.size"] == batch
    assert config["message.max.bytes"] == max(letters, MIN_MESSAGE_BYTES)


def test_no_topics_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"input\.topics"):
        check_topics(Settings())
