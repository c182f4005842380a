"""The log: a line for each event of the daemon's life and each dead letter, none for others."""

import io
import json
from collections import Counter
from collections.abc import Callable

import fastavro

from .conftest import Daemon, Topics
from .traffic import Sent, make_good, produce, read_committed

UNREADABLE = b"rubbish"
STRANGER = {
    "type": "record",
    "name": "hostAlert",
    "namespace": "sedflow.v1_0",
    "fields": [{"name": "alertId", "type": "long"}, {"name": "objectId", "type": "string"}],
}
LIFE = {"started", "artifact warm", "subscribed", "partitions assigned", "stopped"}


def strange_alert() -> bytes:
    """An alert with an id, but without what an alert needs."""
    stream = io.BytesIO()
    fastavro.writer(stream, STRANGER, [{"alertId": 77, "objectId": "x"}])
    return stream.getvalue()


def test_lines(bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon()
    good = list(make_good(120))
    bad = [Sent(b"bad", value, [], good[0].timestamp_ms) for value in (UNREADABLE, strange_alert())]
    produce(bootstrap, topics.alerts, good + bad)
    read_committed(bootstrap, topics.summaries, at_least=120)
    letters = read_committed(bootstrap, topics.dead_letters, at_least=2)
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    events = Counter(line["event"] for line in lines)
    assert events.pop("dead letter") == 2
    assert events.keys() >= LIFE
    assert set(events.values()) == {1}
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)
    told = {
        (line["topic"], line["partition"], line["offset"], line["stage"], line["alertId"])
        for line in daemon.lines("dead letter")
    }
    expected = set()
    for letter in letters:
        header = dict(letter.headers() or [])
        place = [header[f"__sedflow.errors.{name}"].decode() for name in ("partition", "offset")]
        stage = header["__sedflow.errors.stage"].decode()
        alert_id = None if letter.value() == UNREADABLE else 77
        expected.add((topics.alerts, *map(int, place), stage, alert_id))
    assert told == expected
