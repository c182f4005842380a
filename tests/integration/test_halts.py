"""What makes the daemon halt or set a message aside, each against a real broker."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from prometheus_client import CollectorRegistry

from consumer.avro import encode
from consumer.kafka_sink import KafkaSink
from consumer.message import ERROR_HEADER_PREFIX, Result, Window
from consumer.metrics import Metrics
from consumer.settings import Settings

from .broker import create_topics
from .conftest import Daemon, Topics
from .daemons import fetch, scrape, wait_for
from .traffic import (
    Sent,
    make_alert,
    make_good,
    make_malformed,
    produce,
    read_committed,
    read_exactly,
)

ROOT = Path(__file__).parents[2]
FETCH_ENDS_WITHIN_S = 1.5
"""A broker answers a fetch that finds nothing after half a second."""


def run_until(daemon: Daemon, bootstrap: str, topic: str, n: int) -> None:
    """Let the daemon publish `n` summaries in all, then stop it."""
    read_committed(bootstrap, topic, at_least=n)
    assert daemon.stop() == 0, daemon.log.read_text()


def reason_of_halt(daemon: Daemon) -> str:
    wait_for(lambda: "halted: " in fetch(daemon, "/readyz")[1], "a halt")
    assert fetch(daemon, "/livez")[0] == 200
    return fetch(daemon, "/readyz")[1]


def delete_all(bootstrap: str, topic: str) -> None:
    """Delete what the four partitions of a topic hold."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    everything = [TopicPartition(topic, partition, -1) for partition in range(4)]
    for deleted in client.delete_records(everything).values():
        deleted.result()


def test_messages_deleted_unread(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    produce(bootstrap, topics.alerts, list(make_good(100)))
    run_until(start_daemon(), bootstrap, topics.summaries, 100)
    produce(bootstrap, topics.alerts, list(make_good(100)))
    delete_all(bootstrap, topics.alerts)
    produce(bootstrap, topics.alerts, list(make_good(40)))

    halted = start_daemon()
    reason = reason_of_halt(halted)
    assert reason.count("were deleted unread") == 4  # partitions
    assert scrape(halted)["sedflow_offsets_lost_total",] == 100
    assert halted.stop() == 3
    read_exactly(bootstrap, topics.summaries, 100)

    resumed = start_daemon("0", "--accept-gap")
    run_until(resumed, bootstrap, topics.summaries, 140)
    assert len(resumed.lines("gap accepted")) == 4
    read_exactly(bootstrap, topics.summaries, 140)


def test_messages_deleted_before_a_daemon_at_work_came_to_them(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    """The gap is told, counted and accepted once, and reading goes on behind it."""
    produce(bootstrap, topics.alerts, list(make_good(100)))
    daemon = start_daemon("0", "--accept-gap")
    read_committed(bootstrap, topics.summaries, at_least=100)
    with stopped(daemon):
        produce(bootstrap, topics.alerts, list(make_good(100)))
        delete_all(bootstrap, topics.alerts)
        produce(bootstrap, topics.alerts, list(make_good(40)))
    read_committed(bootstrap, topics.summaries, at_least=140)
    assert len(daemon.lines("gap accepted")) == 4
    assert scrape(daemon)["sedflow_offsets_lost_total",] == 100
    assert daemon.stop() == 0
    read_exactly(bootstrap, topics.summaries, 140)


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """A daemon that does nothing meanwhile, not even take what its last fetch brings."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        time.sleep(FETCH_ENDS_WITHIN_S)
        yield
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)


def remake(bootstrap: str, topic: str) -> None:
    """Delete a topic and make it anew: the broker forgets what groups have read of it."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in client.list_topics(timeout=10).topics, "no topic")
    create_topics(bootstrap, [topic])


@pytest.mark.parametrize("running", [False, True])
def test_a_topic_made_anew(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon], running: bool
) -> None:
    """While the daemon is away, or at work: then it may have read on where the old one ended."""
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    produce(bootstrap, topics.alerts, list(make_good(100)))
    daemon = start_daemon()
    read_committed(bootstrap, topics.summaries, at_least=100)
    if not running:
        assert daemon.stop() == 0, daemon.log.read_text()
    remake(bootstrap, topics.alerts)
    produce(bootstrap, topics.alerts, list(make_good(150)))
    halted = daemon if running else start_daemon()
    assert "the topic was made anew; what its predecessor held from" in reason_of_halt(halted)
    assert scrape(halted)["sedflow_offsets_lost_total",] > 0
    assert halted.stop() == 3
    meanwhile = len(read_committed(bootstrap, topics.summaries)) - 100
    assert 0 <= meanwhile <= (50 if running else 0)

    n = 100 + meanwhile + 150  # all of the new topic
    run_until(start_daemon("0", "--accept-gap"), bootstrap, topics.summaries, n)
    produce(bootstrap, topics.alerts, list(make_good(40)))
    run_until(start_daemon(), bootstrap, topics.summaries, n + 40)
    read_exactly(bootstrap, topics.summaries, n + 40)


def test_a_group_forgotten_goes_on_where_it_was(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    produce(bootstrap, topics.alerts, list(make_good(100)))
    run_until(start_daemon(), bootstrap, topics.summaries, 100)
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_consumer_groups([topics.alerts])[topics.alerts].result()
    produce(bootstrap, topics.alerts, list(make_good(40)))
    run_until(start_daemon(), bootstrap, topics.summaries, 140)
    read_exactly(bootstrap, topics.summaries, 140)


def test_a_wrong_stream_is_not_dead_lettered(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    produce(bootstrap, topics.alerts, list(make_malformed(600)))
    halted = start_daemon()
    assert "bad messages" in reason_of_halt(halted)
    assert halted.stop() == 3
    assert len(read_committed(bootstrap, topics.dead_letters)) < 200
    willing = start_daemon("0", more="[breaker]\nmax_bad_fraction = 1.0\n")
    read_committed(bootstrap, topics.dead_letters, at_least=600)
    assert willing.stop() == 0
    read_exactly(bootstrap, topics.dead_letters, 600)


def limit_messages(bootstrap: str, topic: str, n_bytes: int) -> None:
    """Let a topic take batches of so many bytes at most."""
    operation = AlterConfigOpType.SET
    limit = ConfigEntry("max.message.bytes", str(n_bytes), incremental_operation=operation)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[limit])
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.incremental_alter_configs([resource])[resource].result()


def test_an_output_that_takes_small_batches_is_given_no_larger_ones(
    bootstrap: str, topics: Topics
) -> None:
    limit_messages(bootstrap, topics.summaries, 20_000)
    source = {"bootstrap": bootstrap, "topics": [topics.alerts], "group": topics.alerts}
    sink = {"bootstrap": bootstrap, "topic": topics.summaries}
    settings = Settings.model_validate({"input": source, "output": sink})
    results = tuple(Result(b"k", b"x" * 1_000, (), "OK", "ZTF") for _ in range(200))
    KafkaSink(settings, Metrics(CollectorRegistry())).publish(Window((), results, ()))
    assert len(read_committed(bootstrap, topics.summaries)) == 200


def test_a_summary_too_large_for_its_topic_is_a_dead_letter(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    """Its topic would refuse it for ever, and all that is published with it."""
    limit_messages(bootstrap, topics.summaries, 20_000)
    long = encode(make_alert(1) | {"objectId": "x" * 15_000}, "hostAlert")
    produce(bootstrap, topics.alerts, [Sent(b"long", long, [], 1), *make_good(20)])
    daemon = start_daemon()
    (letter,) = read_committed(bootstrap, topics.dead_letters, at_least=1)
    read_committed(bootstrap, topics.summaries, at_least=20)
    assert daemon.stop() == 0
    assert letter.value() == long
    assert b"at most 20000 bytes" in (dict(letter.headers())[f"{ERROR_HEADER_PREFIX}message"])
    read_exactly(bootstrap, topics.summaries, 20)


def test_a_letter_too_large_leaves_a_stub(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    limit_messages(bootstrap, topics.dead_letters, 20_000)
    large = random.Random(5).randbytes(900_000)
    small = large[:10_000]
    sent = [Sent(b"large", large, [("h", b"1")], 1), Sent(b"small", small, [("h", b"1")], 1)]
    produce(bootstrap, topics.alerts, sent)
    daemon = start_daemon()
    letters = {m.key(): m for m in read_committed(bootstrap, topics.dead_letters, at_least=2)}
    assert daemon.stop() == 0
    assert letters[b"small"].value() == small
    assert letters[b"large"].value() is None
    headers = dict(letters[b"large"].headers() or [])
    assert headers[f"{ERROR_HEADER_PREFIX}sha256"] == hashlib.sha256(large).hexdigest().encode()
    assert headers[f"{ERROR_HEADER_PREFIX}size"] == b"900000"
    assert headers[f"{ERROR_HEADER_PREFIX}topic"] == topics.alerts.encode()


DEADLY_PROCESS = """
import os, signal, sys
from contextlib import closing
from pathlib import Path
from threading import Event
from prometheus_client import CollectorRegistry
from consumer.daemon import Guard, run
from consumer.health import Health
from consumer.in_hand import InHand
from consumer.kafka import KafkaSource
from consumer.kafka_sink import KafkaSink
from consumer.message import Result, Window
from consumer.metrics import Metrics
from consumer.settings import load_settings

settings = load_settings(sys.argv[1])
metrics, health, stop = Metrics(CollectorRegistry()), Health(), Event()
in_hand, left = InHand(settings.state.folder), 30

def step(messages, **rest):
    for message in messages:
        if message.value == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
    results = (Result(None, m.value, (), "OK", "ZTF") for m in messages)
    return Window(tuple(messages), tuple(results), ())

class Source(KafkaSource):
    def advance(self, window):
        super().advance(window)
        if not sum(self._lag().values()):
            stop.set()

with closing(Source(settings, metrics, health)) as source:
    sink = KafkaSink(settings, metrics, source)
    source.subscribe(listener=in_hand)
    guard = Guard(in_hand=in_hand, keep_alive=source.keep_alive)
    limits = {"max_batch": 64, "max_delay_s": 1.0}
    run(source, sink, step, stop, **limits, metrics=metrics, health=health, guard=guard)
"""


def test_a_message_that_kills_its_process(bootstrap: str, topics: Topics, tmp_path: Path) -> None:
    values = [b"%d" % i for i in range(200)]
    values.insert(77, b"deadly")
    produce(bootstrap, topics.alerts, [Sent(b"", value, [], 1) for value in values])
    config = tmp_path / "sedflow.toml"
    config.write_text(
        f"""
        [input]
        bootstrap = "{bootstrap}"
        topics = ["{topics.alerts}"]
        group = "{topics.alerts}"
        [output]
        bootstrap = "{bootstrap}"
        topic = "{topics.summaries}"
        [state]
        folder = "{tmp_path}"
        """
    )
    codes = []
    while 0 not in codes and len(codes) < 6:
        command = [sys.executable, "-c", DEADLY_PROCESS, str(config)]
        codes.append(subprocess.run(command, cwd=ROOT, check=False, timeout=300).returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    (letter,) = read_exactly(bootstrap, topics.dead_letters, 1)
    assert letter.value() == b"deadly"
    assert dict(letter.headers() or [])[f"{ERROR_HEADER_PREFIX}stage"] == b"crash"
    published = Counter(m.value() for m in read_exactly(bootstrap, topics.summaries, 200))
    assert published == Counter(value for value in values if value != b"deadly")
