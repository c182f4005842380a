"""What the tests put into Kafka and read back from it."""

import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaError, Message, Producer

from consumer.avro import decode_summary, encode, own_schema, schemas_path

from .broker import committed_consumer

Record = dict[str, Any]
Headers = list[tuple[str, bytes | None]]
Delivered = Callable[[KafkaError | None, Message], None]

ANY_PARTITION = -1
"""Lets the producer choose by the key."""


@dataclass(frozen=True)
class Sent:
    """A message as it was produced."""

    key: bytes
    value: bytes | None
    headers: Headers
    timestamp_ms: int


def make_alert(alert_id: int) -> Record:
    """The documented sample as alert `alert_id`.

    One in four has a host, with its own redshift and brightness: in a survey most have none.
    """
    path = schemas_path() / "1" / "0" / "sample_data" / "hostAlert.json"
    record: Record = json.loads(path.read_text())
    host = record["host"]
    for name in [name for name in host if name.endswith("_flux") and host[name]]:
        host[name] *= 1.0 + (alert_id % 101) / 100.0
    host["redshift"] = 0.02 + (alert_id % 97) / 1000.0
    name = {"alertId": alert_id, "objectId": f"object-{alert_id}"}
    return record | name | {"host": host if has_host(alert_id) else None}


def has_host(alert_id: int) -> bool:
    """Whether `make_alert` gives this alert a host."""
    return alert_id % 4 == 0


def in_container(alert: Record) -> bytes:
    """An alert in an object container, as fastavro writes it."""
    stream = io.BytesIO()
    fastavro.writer(stream, own_schema("hostAlert"), [alert])
    return stream.getvalue()


def make_good(n: int) -> Iterator[Sent]:
    """`n` alerts, every tenth in an object container, the others in Confluent wire bytes."""
    now_ms = int(time.time() * 1e3)
    for i in range(n):
        alert = make_alert(i)
        value = encode(alert, "hostAlert") if i % 10 else in_container(alert)
        yield Sent(b"good-%d" % i, value, [], now_ms + i)


def make_malformed(n: int) -> Iterator[Sent]:
    """`n` messages that cannot be decoded, of every kind in turn, with headers to be kept."""
    chance = random.Random(1)
    wire, container = encode(make_alert(0), "hostAlert"), in_container(make_alert(0))
    kinds: tuple[Callable[[], bytes | None], ...] = (
        lambda: wire[: chance.randrange(5, len(wire))],
        lambda: container[: chance.randrange(4, len(container))],
        lambda: b"\xff" + chance.randbytes(chance.randrange(1000)),
        lambda: b"",
        lambda: None,
        lambda: b"\x01" + wire[1:],
        lambda: b"Obj\x02" + container[4:],
        lambda: b"\x00\x00\x0f\x42\x3f" + wire[5:],
        lambda: wire + b"\x00",
        lambda: b'{"alertId": 1}',
    )
    now_ms = int(time.time() * 1e3)
    for i in range(n):
        headers: Headers = [("id", b"\x00\xff%d" % i), ("empty", b""), ("null", None), ("id", b"2")]
        yield Sent(b"bad-%d" % i, kinds[i % len(kinds)](), headers, now_ms - i)


def produce(bootstrap: str, topic: str, messages: list[Sent]) -> None:
    """Produce all and wait until the broker has them."""
    options = {"linger.ms": 20, "message.max.bytes": 20_000_000}
    producer = Producer({"bootstrap.servers": bootstrap, **options})
    for message in messages:
        hand_over(producer, topic, message)
    assert producer.flush(120) == 0


def hand_over(
    producer: Producer,
    topic: str,
    message: Sent,
    partition: int = ANY_PARTITION,
    on_delivery: Delivered | None = None,
) -> None:
    """Give the producer a message as soon as it has room for one."""
    while True:
        try:
            producer.produce(
                topic,
                key=message.key,
                value=message.value,
                headers=message.headers,
                timestamp=message.timestamp_ms,
                partition=partition,
                on_delivery=on_delivery,
            )
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return


def read_committed(
    bootstrap: str, topic: str, at_least: int | None = None, timeout_s: float = 120.0
) -> list[Message]:
    """Read the topic from its beginning to its end, or until so many messages were read."""
    consumer = committed_consumer(bootstrap, topic)
    n_partition = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    try:
        return _read(consumer, n_partition, at_least, time.monotonic() + timeout_s)
    finally:
        consumer.close()


def read_exactly(bootstrap: str, topic: str, n: int) -> list[Message]:
    """Read the topic to its end once `n` messages are there: there are no more.

    A commit is answered before every partition shows it.
    """
    read_committed(bootstrap, topic, at_least=n)
    messages = read_committed(bootstrap, topic)
    assert len(messages) == n
    return messages


def alert_ids(summaries: Iterable[Message]) -> Counter[int]:
    """How many of the summaries each alert has."""
    return Counter(decode_summary(m.value() or b"")["alertId"] for m in summaries)


def _read(
    consumer: Consumer, n_partition: int, at_least: int | None, deadline_s: float
) -> list[Message]:
    messages: list[Message] = []
    at_end: set[int] = set()
    while len(at_end) < n_partition if at_least is None else len(messages) < at_least:
        assert time.monotonic() < deadline_s, f"expected {at_least} messages, got {len(messages)}"
        for message in consumer.consume(1000, 0.2):
            error = message.error()
            if error is None:
                messages.append(message)
                at_end.discard(message.partition())
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                at_end.add(message.partition())
    return messages
