"""Alerts written in transactions: the markers between them are deleted, and nobody reads them."""

from collections.abc import Mapping, Sequence
from contextlib import closing

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.message import Place
from consumer.position_log import PositionLog
from consumer.settings import Settings

from .broker import N_PARTITION, create_topics
from .conftest import Topics
from .daemons import wait_for
from .member import expect, running
from .test_start_latest import make_settings


def send(bootstrap: str, topic: str, text: str) -> set[bytes]:
    """A message to each partition, all in one transaction; returns their values."""
    values = {p: b"%s %d" % (text.encode(), p) for p in range(N_PARTITION)}
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    for partition, value in values.items():
        producer.produce(topic, value, partition=partition)
    producer.commit_transaction(30)
    return set(values.values())


def find_kept(
    settings: Settings, places: Sequence[Place], *, two_clusters: bool
) -> Mapping[Place, int]:
    """Where reading would go on."""
    if two_clusters:
        with closing(PositionLog(settings, "elsewhere")) as log:
            return {place: position.offset for place, position in log.recall(places).items()}
    client = {"bootstrap.servers": settings.input.bootstrap, "group.id": settings.input.group}
    with closing(Consumer(client)) as consumer:
        found = consumer.committed([TopicPartition(*place) for place in places], timeout=30)
        return {(p.topic, p.partition): p.offset for p in found}


@pytest.mark.parametrize("two_clusters", [False, True])
def test_a_marker_deleted_is_no_message_lost(
    bootstrap: str, topics: Topics, two_clusters: bool
) -> None:
    create_topics(bootstrap, [f"{topics.summaries}.sedflow.offsets"])
    settings = make_settings(bootstrap, topics, more={"start": "earliest"})
    places = [(topics.alerts, partition) for partition in range(N_PARTITION)]
    ends = dict.fromkeys(places, 2)  # behind a message and a marker
    sent = send(bootstrap, topics.alerts, "first")
    with running(settings, two_clusters=two_clusters):
        expect(bootstrap, topics, sent)
        wait_for(
            lambda: find_kept(settings, places, two_clusters=two_clusters) == ends,
            "positions behind the markers",
        )
    client = AdminClient({"bootstrap.servers": bootstrap})
    everything = [TopicPartition(*place, -1) for place in places]
    for deleted in client.delete_records(everything).values():
        assert deleted.result().low_watermark == 2
    sent |= send(bootstrap, topics.alerts, "second")
    with running(settings, two_clusters=two_clusters):
        expect(bootstrap, topics, sent)
