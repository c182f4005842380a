"""One message in ten is poison, of every kind: each ends where it must, and none harms another."""

import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.avro import decode_summary
from consumer.message import ERROR_HEADER_PREFIX

from .broker import N_PARTITION, create_topics
from .conftest import Daemon, Topics
from .poison import HEADERS, KINDS, LARGE_BYTES, make_poison
from .traffic import (
    Record,
    Sent,
    has_host,
    make_good,
    make_malformed,
    produce,
    read_committed,
)

N_POISON = len(KINDS)
N_GOOD = 9 * N_POISON
DEADLY = [name for name, kind in KINDS.items() if kind.dies]


def create_roomy_topics(bootstrap: str) -> Topics:
    """Topics that take 10 MB, that of dead letters a bit more."""
    topics = Topics.fresh()
    roomy = {"max.message.bytes": str(LARGE_BYTES + 200_000)}
    wanted = [NewTopic(topics.alerts, N_PARTITION, 1, config=roomy)]
    wanted.append(NewTopic(topics.summaries, N_PARTITION, 1))
    roomier = {"max.message.bytes": str(LARGE_BYTES + 300_000), "retention.ms": "-1"}
    wanted.append(NewTopic(topics.dead_letters, N_PARTITION, 1, config=roomier))
    client = AdminClient({"bootstrap.servers": bootstrap})
    for created in client.create_topics(wanted).values():
        created.result()
    return topics


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_letters_that_are_too_old_for_their_topic_are_stamped_anew(
    bootstrap: str, start_from: Callable[..., Daemon], delivery: str
) -> None:
    topics, client = Topics.fresh(), AdminClient({"bootstrap.servers": bootstrap})
    create_topics(bootstrap, [topics.alerts, topics.summaries])
    young = {"message.timestamp.before.max.ms": "3600000"}
    created = client.create_topics([NewTopic(topics.dead_letters, 1, 1, config=young)])
    created[topics.dead_letters].result()
    bad, now_ms = list(make_malformed(6)), int(time.time() * 1e3)
    old = [replace(sent, timestamp_ms=now_ms - 86_400_000) for sent in bad]
    produce(bootstrap, topics.alerts, [*make_good(40), *old])
    daemon = start_from(bootstrap, topics, environment={"SEDFLOW_OUTPUT__DELIVERY": delivery})
    letters = read_committed(bootstrap, topics.dead_letters, at_least=len(bad))
    read_committed(bootstrap, topics.summaries, at_least=40)
    assert daemon.stop() == 0, daemon.log.read_text()
    assert {m.value() for m in letters} == {sent.value for sent in bad}
    assert all(m.timestamp()[1] >= now_ms for m in letters)
    assert daemon.lines("messages refused")


def test_poison_of_every_kind(bootstrap: str, start_from: Callable[..., Daemon]) -> None:
    topics = create_roomy_topics(bootstrap)
    poison = list(make_poison(N_POISON))
    messages = [*make_good(N_GOOD), *(sent for _, sent in poison)]
    random.Random(4).shuffle(messages)
    produce(bootstrap, topics.alerts, messages)
    daemon = start_from(bootstrap, topics)
    n_dead = len(DEADLY)
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD + N_POISON - n_dead)
    read_committed(bootstrap, topics.dead_letters, at_least=n_dead)
    assert daemon.stop() == 0, daemon.log.read_text()
    check_letters(read_committed(bootstrap, topics.dead_letters), poison)
    summaries = read_committed(bootstrap, topics.summaries)
    check_statuses([decode_summary(m.value() or b"") for m in summaries], poison)
    check_order(summaries)


def check_letters(letters: list[Message], poison: list[tuple[str, Sent]]) -> None:
    """Each has the bytes of its message, its headers, its time and the stage."""
    found = {dict(m.headers() or [])["number"]: m for m in letters}
    assert len(letters) == len(found) == len(DEADLY)
    for i, (name, sent) in enumerate(poison):
        if KINDS[name].dies:
            letter = found[b"%d" % i]
            headers = list(letter.headers() or [])
            assert (letter.value(), letter.key()) == (sent.value, sent.key), name
            assert headers[: len(HEADERS) + 1] == sent.headers
            assert letter.timestamp()[1] == sent.timestamp_ms
            stage = dict(headers)[f"{ERROR_HEADER_PREFIX}stage"]
            assert stage == KINDS[name].outcome.encode(), name


def check_statuses(records: list[Record], poison: list[tuple[str, Sent]]) -> None:
    """Every alert has one summary, and it says what is wrong."""
    statuses = {record["objectId"]: record["status"] for record in records}
    assert len(records) == len(statuses)
    wanted = {f"poison-{i}": KINDS[n].outcome for i, (n, _) in enumerate(poison) if n not in DEADLY}
    assert {name: statuses.pop(name) for name in wanted} == wanted
    assert statuses.keys() == {f"object-{i}" for i in range(N_GOOD)}
    assert all((statuses[f"object-{i}"] == "NO_HOST") is not has_host(i) for i in range(N_GOOD))


def check_order(summaries: list[Message]) -> None:
    """What came from one partition of the input lies in each of the output in the same order."""
    offsets = defaultdict(list)
    for message in sorted(summaries, key=lambda m: (m.partition(), m.offset())):
        source = decode_summary(message.value() or b"")["provenance"]
        offsets[message.partition(), source["inputPartition"]].append(source["inputOffset"])
    assert len(offsets) > N_PARTITION
    for found in offsets.values():
        assert found == sorted(found)
