"""Every alert exactly once in the output, every malformed message in the dead letters.

Counted by reading the records under read_committed, never by offsets. One alert in four has a host:
inference takes the time here, and delivery is the same for all.
"""

import random
from collections import Counter
from collections.abc import Callable

from confluent_kafka import Message

from consumer.avro import decode_summary
from consumer.message import ERROR_HEADER_PREFIX

from .conftest import Daemon, Topics
from .traffic import Sent, has_host, make_good, make_malformed, produce, read_committed

N_GOOD = 20_000
N_BAD = 100
PLACE = ("Topic", "Partition", "Offset")


def test_stop_half_way_and_restart(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    """SIGTERM half-way, then two workers, so that partitions change hands under load as well."""
    bad = list(make_malformed(N_BAD))
    messages = [*make_good(N_GOOD), *bad]
    random.Random(2).shuffle(messages)
    produce(bootstrap, topics.alerts, messages)

    first = start_daemon("0")
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD // 5)
    assert first.stop() == 0, first.log.read_text()
    half_way = len(read_committed(bootstrap, topics.summaries))
    assert N_GOOD // 5 <= half_way < N_GOOD

    workers = [start_daemon("0"), start_daemon("1")]
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD)
    read_committed(bootstrap, topics.dead_letters, at_least=N_BAD)
    for worker in workers:
        assert worker.stop() == 0, worker.log.read_text()

    check_summaries(read_committed(bootstrap, topics.summaries), topics)
    check_dead_letters(read_committed(bootstrap, topics.dead_letters), bad, topics)


def check_summaries(summaries: list[Message], topics: Topics) -> None:
    records = [decode_summary(summary.value() or b"") for summary in summaries]
    assert Counter(r["alertId"] for r in records) == Counter(range(N_GOOD))
    assert all(s.key() == r["objectId"].encode() for s, r in zip(summaries, records, strict=True))
    assert all((r["status"] == "NO_HOST") is not has_host(r["alertId"]) for r in records)
    places = {tuple(r["provenance"][f"input{n}"] for n in PLACE) for r in records}
    assert len(places) == N_GOOD
    assert {place[0] for place in places} == {topics.alerts}


def check_dead_letters(letters: list[Message], bad: list[Sent], topics: Topics) -> None:
    by_key = {letter.key(): letter for letter in letters}
    assert len(letters) == len(by_key) == len(bad)
    for sent in bad:
        letter = by_key[sent.key]
        assert letter.value() == sent.value
        assert letter.timestamp()[1] == sent.timestamp_ms
        headers = list(letter.headers() or [])
        n = len(sent.headers)
        assert headers[:n] == sent.headers
        added = {str(name).removeprefix(ERROR_HEADER_PREFIX): text for name, text in headers[n:]}
        assert added["stage"] == b"decode"
        assert added["class"] == b"DecodeError"
        assert added["topic"] == topics.alerts.encode()
        assert set(added) >= {"partition", "offset", "message", "version", "failed.at"}
