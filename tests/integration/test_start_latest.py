"""`input.start = "latest"`: from the end that the group found at first; nothing is skipped then."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.message import Place
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.positions import PositionStore
from consumer.sections import DATE
from consumer.settings import Settings
from consumer.starts import find_absent
from consumer.two_cluster_sink import TwoClusterSink

from .broker import N_PARTITION, create_topics
from .conftest import Topics
from .member import expect, running

PARTITIONS = range(N_PARTITION)
CASES: dict[str, tuple[dict[str, str], bool]] = {
    "range": ({}, False),
    "cooperative": ({"assignor": "cooperative-sticky"}, False),
    "kip-848": ({"group_protocol": "consumer"}, False),
    "two clusters": ({}, True),
}
"""More of [input], and whether positions live with the output."""


def make_settings(
    bootstrap: str, topics: Topics, slot: str = "0", more: Mapping[str, Any] | None = None
) -> Settings:
    source = {"topics": [topics.alerts], "group": topics.alerts, "start": "latest"}
    return Settings.model_validate(
        {
            "input": {"bootstrap": bootstrap, **source, **(more or {})},
            "output": {
                "bootstrap": bootstrap,
                "topic": topics.summaries,
                "dead_letter_topic": topics.dead_letters,
                "slot": slot,
            },
        }
    )


def send(
    bootstrap: str, topic: str, text: str, partitions: Sequence[int] = PARTITIONS
) -> set[bytes]:
    """A message to each partition; returns their values."""
    values = {p: b"%s %d" % (text.encode(), p) for p in partitions}
    producer = Producer({"bootstrap.servers": bootstrap})
    for partition, value in values.items():
        producer.produce(topic, value, partition=partition)
    assert producer.flush(30) == 0
    return set(values.values())


@pytest.mark.parametrize("case", CASES)
def test_a_worker_that_joins_reads_no_history(bootstrap: str, topics: Topics, case: str) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    more, two_clusters = CASES[case]
    first, second = (make_settings(bootstrap, topics, slot, more) for slot in "01")
    send(bootstrap, topics.alerts, "history")
    with running(first, two_clusters=two_clusters):
        sent = send(bootstrap, topics.alerts, "first", [0])
        expect(bootstrap, topics, sent)
        with running(second, two_clusters=two_clusters):
            sent |= send(bootstrap, topics.alerts, "both")
            expect(bootstrap, topics, sent)
    expect(bootstrap, topics, sent)


@pytest.mark.parametrize("two_clusters", [False, True])
def test_what_comes_during_a_restart_is_read(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    """Also where nothing was ever read of a partition."""
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    settings = make_settings(bootstrap, topics)
    send(bootstrap, topics.alerts, "history")
    with running(settings, two_clusters=two_clusters):
        pass
    sent = send(bootstrap, topics.alerts, "meanwhile")
    with running(settings, two_clusters=two_clusters):
        expect(bootstrap, topics, sent)


@pytest.mark.parametrize("two_clusters", [False, True])
def test_a_dated_topic_that_comes_later_is_read_from_its_beginning(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    today = datetime.now(UTC).date()
    night, next_night = (
        f"{topics.alerts}_{day:%Y%m%d}" for day in (today - timedelta(days=1), today)
    )
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets", night])
    settings = make_settings(bootstrap, topics, more={"topics": [f"{topics.alerts}_{DATE}"]})
    send(bootstrap, night, "history")
    with running(settings, two_clusters=two_clusters):
        pass
    create_topics(bootstrap, [next_night])
    sent = send(bootstrap, next_night, "meanwhile")
    with running(settings, two_clusters=two_clusters):
        expect(bootstrap, topics, sent)


@pytest.mark.parametrize("two_clusters", [False, True])
def test_a_dated_topic_that_comes_while_its_reader_waits_is_read_from_its_beginning(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    """Also the first of all: what it holds when it is found came after the reader."""
    night = f"{topics.alerts}_{datetime.now(UTC).date():%Y%m%d}"
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    dated = {"topics": [f"{topics.alerts}_{DATE}"]}
    looking = {"kafka": {"topic.metadata.refresh.interval.ms": 3_000}}
    settings = make_settings(bootstrap, topics, more=dated | looking)
    absent = find_absent(settings.input)
    assert absent == set(settings.input.topics)
    with running(settings, two_clusters=two_clusters, absent=absent):
        create_topics(bootstrap, [night])
        expect(bootstrap, topics, send(bootstrap, night, "first night"))


@pytest.mark.parametrize("two_clusters", [False, True])
@pytest.mark.parametrize("start", ["latest", "earliest"])
def test_days_that_were_not_finished_are_read_however_long_ago(
    bootstrap: str, topics: Topics, start: str, two_clusters: bool
) -> None:
    today = datetime.now(UTC).date()
    history, begun, missed = (
        f"{topics.alerts}_{today - timedelta(days):%Y%m%d}" for days in (7, 5, 4)
    )
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets", history, begun])
    dated = {"topics": [f"{topics.alerts}_{DATE}"], "start": start}
    then, now = (make_settings(bootstrap, topics, more={**dated, "days": days}) for days in (6, 1))
    send(bootstrap, history, "of before")
    with running(then, two_clusters=two_clusters):
        sent = send(bootstrap, begun, "read", [0])
        expect(bootstrap, topics, sent)
    create_topics(bootstrap, [missed])
    sent |= send(bootstrap, begun, "left") | send(bootstrap, missed, "never seen")
    with running(now, two_clusters=two_clusters):
        expect(bootstrap, topics, sent)


def test_a_month_that_was_begun_is_read_on(bootstrap: str, topics: Topics) -> None:
    month = f"{topics.alerts}_{datetime.now(UTC):%Y%m}"
    create_topics(bootstrap, [month])
    dated = {"topics": [f"{topics.alerts}_{DATE}"], "date_format": "%Y%m", "start": "earliest"}
    settings = make_settings(bootstrap, topics, more=dated)
    sent = send(bootstrap, month, "read")
    with running(settings):
        expect(bootstrap, topics, sent)
    sent |= send(bootstrap, month, "meanwhile")
    with running(settings):
        expect(bootstrap, topics, sent)


def test_a_group_forgotten_before_its_first_alert_goes_on_where_it_began(
    bootstrap: str, topics: Topics
) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    settings = make_settings(bootstrap, topics)
    places = [(topics.alerts, partition) for partition in PARTITIONS]

    def find() -> dict[Place, int]:
        metrics = Metrics(CollectorRegistry())
        with (
            closing(KafkaSource(settings, metrics, Health())) as source,
            closing(PositionLog(settings, "cluster")) as log,
        ):
            return source.starts.find_all(places, source.starts.group_positions(log))

    send(bootstrap, topics.alerts, "history")
    assert find() == dict.fromkeys(places, 1)
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_consumer_groups([topics.alerts])[topics.alerts].result()
    send(bootstrap, topics.alerts, "while it was away")
    assert find() == dict.fromkeys(places, 1)


@pytest.mark.parametrize("two_clusters", [False, True])
def test_all_begin_at_the_ends_that_the_first_partitions_owner_found(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    """However late it comes: else a partition would seem to have been added later."""
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    settings = make_settings(bootstrap, topics)
    send(bootstrap, topics.alerts, "history")
    with ExitStack() as open_ends:

        def find(partitions: Sequence[int]) -> dict[int, int]:
            metrics = Metrics(CollectorRegistry())
            source = open_ends.enter_context(closing(KafkaSource(settings, metrics, Health())))
            positions: PositionStore = source.starts.group_positions()
            if two_clusters:
                positions = TwoClusterSink(settings, metrics, source, "elsewhere")
            starts = source.starts.find_all({(topics.alerts, p) for p in partitions}, positions)
            return {partition: offset for (_, partition), offset in starts.items()}

        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(find, [1, 2])
            first = pool.submit(find, [0])
            assert first.result() | waiting.result() == {0: 1, 1: 1, 2: 1}
        send(bootstrap, topics.alerts, "more")
        assert find([2, 3]) == {2: 1, 3: 1}
