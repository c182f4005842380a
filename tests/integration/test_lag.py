"""The lag metric against what a reader of its own finds unread, on plain and transactional input.

On transactional input a lag is the distance in offsets, so it may exceed the count by the markers
and aborted records that lie between unread ones; behind the last of them it is 0 all the same.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.kafka_sink import KafkaSink
from consumer.message import Result, Window
from consumer.metrics import Metrics
from consumer.settings import Settings

from .broker import N_PARTITION
from .conftest import Topics
from .traffic import read_committed

SPACING_S = 10
WAIT_S = 120.0
AT_ONCE = 17


class Unread(NamedTuple):
    """What an independent reader knows of one partition."""

    records: list[Message]
    offsets: int
    """Distance from the group's position to the high watermark."""


@dataclass
class Loop:
    """The daemon's source and sink, a window at a time."""

    source: KafkaSource
    sink: KafkaSink
    metrics: Metrics
    settings: Settings
    n: int = 0

    def pass_on(self) -> bool:
        """Publish the next window, if one is there; the lag is that after the one before."""
        messages = self.source.poll(AT_ONCE, 0.2)
        results = tuple(Result(m.key, b"", (), "OK", "x") for m in messages)
        if messages:
            window = Window(tuple(messages), results, ())
            self.sink.publish(window)
            self.metrics.count_window(window, datetime.now(UTC))
        self.n += len(messages)
        return bool(messages)

    def lag(self, partition: int) -> float | None:
        labels = {"topic": self.settings.input.topics[0], "partition": str(partition)}
        return self.metrics.registry.get_sample_value("sedflow_consumer_lag_messages", labels)

    def lag_s(self) -> float:
        value = self.metrics.registry.get_sample_value("sedflow_consumer_lag_seconds")
        assert value is not None
        return value


@contextmanager
def loop(bootstrap: str, topics: Topics) -> Iterator[Loop]:
    settings = Settings.model_validate(
        {
            "input": {
                "bootstrap": bootstrap,
                "topics": topics.alerts,
                "group": topics.alerts,
                # One at a time, so that the end is not known before it is near.
                "kafka": {"queued.min.messages": 1, "fetch.message.max.bytes": 1_000},
            },
            "output": {"bootstrap": bootstrap, "topic": topics.summaries},
        }
    )
    metrics = Metrics(CollectorRegistry())
    with (
        closing(KafkaSource(settings, metrics, Health())) as source,
        closing(KafkaSink(settings, metrics, source)) as sink,
    ):
        source.subscribe()
        yield Loop(source, sink, metrics, settings)


def find_unread(bootstrap: str, topics: Topics, records: list[Message]) -> list[Unread]:
    """For each partition, as the broker tells it."""
    config = {"bootstrap.servers": bootstrap, "group.id": topics.alerts}
    places = [TopicPartition(topics.alerts, p) for p in range(N_PARTITION)]
    with closing(Consumer(config)) as consumer:
        unread = []
        for place in consumer.committed(places, timeout=30):
            position = max(0, place.offset)
            _, end = consumer.get_watermark_offsets(place, timeout=30)
            behind = [
                m
                for m in records
                if m.partition() == place.partition and (m.offset() or 0) >= position
            ]
            unread.append(Unread(behind, end - position))
        return unread


def send_plain(bootstrap: str, topic: str, stamps_ms: list[int], partitions: int) -> int:
    producer = Producer({"bootstrap.servers": bootstrap})
    for i, stamp in enumerate(stamps_ms):
        producer.produce(topic, b"%d" % i, partition=i % partitions, timestamp=stamp)
    producer.flush()
    return len(stamps_ms)


def send_transactions(bootstrap: str, topic: str, stamps_ms: list[int], partitions: int) -> int:
    """Every third transaction is aborted, the last one too; returns how many records count."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": uuid4().hex})
    producer.init_transactions()
    n = 0
    for k, start in enumerate(range(0, len(stamps_ms), 10)):
        producer.begin_transaction()
        part = stamps_ms[start : start + 10]
        for i, stamp in enumerate(part):
            producer.produce(topic, b"%d" % i, partition=i % partitions, timestamp=stamp)
        producer.flush()
        if k % 3 == 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
            n += len(part)
    return n


Send = Callable[[str, str, list[int], int], int]


@pytest.mark.parametrize("send", [send_plain, send_transactions])
def test_lag_is_what_is_unread(bootstrap: str, topics: Topics, send: Send) -> None:
    n = send(bootstrap, topics.alerts, [int(time.time() * 1e3)] * 120, N_PARTITION)
    records = read_committed(bootstrap, topics.alerts)
    exact = send is send_plain
    n_compared = 0
    with loop(bootstrap, topics) as daemon:
        deadline = time.monotonic() + WAIT_S
        while True:
            unread = find_unread(bootstrap, topics, records)
            was_all = sum(len(u.records) for u in unread)
            if not daemon.pass_on():  # the lag is that of `unread`
                if was_all == 0:
                    break
                assert time.monotonic() < deadline
                continue
            for partition, (behind, offsets) in enumerate(unread):
                lag = daemon.lag(partition)
                if lag is not None:
                    assert len(behind) <= lag <= (len(behind) if exact else offsets)
                    n_compared += 1
        assert daemon.n == len(records) == n
        while any(daemon.lag(p) != 0 for p in range(N_PARTITION)):
            assert time.monotonic() < deadline
            daemon.pass_on()
    assert any(u.offsets > 0 for u in unread) != exact
    assert n_compared > 3


@pytest.mark.parametrize("send", [send_plain, send_transactions])
def test_lag_in_seconds_is_the_age_of_the_oldest_unread(
    bootstrap: str, topics: Topics, send: Send
) -> None:
    start = time.time() - 10_000
    stamps = [int((start + i * SPACING_S) * 1e3) for i in range(120)]
    n = send(bootstrap, topics.alerts, stamps, 1)
    records = read_committed(bootstrap, topics.alerts)
    compared = 0
    with loop(bootstrap, topics) as daemon:
        deadline = time.monotonic() + WAIT_S
        while daemon.n < n:
            assert time.monotonic() < deadline
            unread, read_before = find_unread(bootstrap, topics, records)[0].records, daemon.n
            before_s = time.time()
            daemon.pass_on()
            if read_before:
                oldest_s = unread[0].timestamp()[1] / 1e3
                age_s, late_s = before_s - oldest_s, time.time() - before_s
                # Aborted records lie between the last one read and the oldest unread one.
                assert age_s - 1 <= daemon.lag_s() <= age_s + late_s + 11 * SPACING_S
                compared += 1
        while daemon.lag_s() > 0:
            assert time.monotonic() < deadline
            daemon.pass_on()
    assert compared > 3
