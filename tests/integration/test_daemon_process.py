"""The daemon as a process: its endpoints during a run, its log, and how it refuses to start."""

import json
from collections.abc import Callable

from confluent_kafka.admin import AdminClient

from .conftest import Daemon, Topics
from .daemons import READY_TIMEOUT_S, fetch, scrape, wait_for
from .traffic import make_good, make_malformed, produce, read_committed, read_exactly


def lag(daemon: Daemon) -> list[float]:
    return [v for k, v in scrape(daemon).items() if k[0] == "sedflow_consumer_lag_messages"]


def test_endpoints_during_a_run(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon()
    wait_for(lambda: fetch(daemon, "/livez")[0] == 200, "/livez")
    assert fetch(daemon, "/readyz")[0] == 503  # seconds of warming up lie ahead
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz")
    produce(bootstrap, topics.alerts, [*make_good(300), *make_malformed(10)])
    read_committed(bootstrap, topics.summaries, at_least=300)
    read_committed(bootstrap, topics.dead_letters, at_least=10)
    consumed = ("sedflow_alerts_consumed_total", topics.alerts)
    wait_for(lambda: scrape(daemon)[consumed] == 310, "every alert counted")
    wait_for(lambda: lag(daemon) == [0.0] * 4, "no lag in four partitions")
    values = scrape(daemon)
    assert values["sedflow_summaries_published_total",] == 300
    assert values["sedflow_dead_letters_total", "decode"] == 10
    assert values["sedflow_stage_duration_seconds_count", "step"] >= 2
    assert values["sedflow_commit_failures_total",] == 0
    assert fetch(daemon, "/livez")[0] == 200
    assert daemon.stop() == 0
    check_log(daemon)


def check_log(daemon: Daemon) -> None:
    """A line per event, each a JSON object, and none per alert."""
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    events = [line["event"] for line in lines if line["logger"].startswith("sedflow")]
    for event in ("started", "artifact warm", "partitions assigned", "stopped"):
        assert event in events
    assert len(lines) < 20


def test_the_older_of_two_workers_in_one_slot_leaves(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    older = start_daemon("0")
    wait_for(lambda: fetch(older, "/readyz")[0] == 200, "/readyz")
    newer = start_daemon("0")
    wait_for(lambda: fetch(newer, "/readyz")[0] == 200, "/readyz")
    produce(bootstrap, topics.alerts, list(make_good(200)))
    assert older.process.wait(timeout=READY_TIMEOUT_S) == 1
    assert "fenced" in older.log.read_text()
    read_committed(bootstrap, topics.summaries, at_least=200)
    assert newer.stop() == 0
    read_exactly(bootstrap, topics.summaries, 200)


def test_a_missing_topic_is_named(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for deleted in client.delete_topics([topics.dead_letters]).values():
        deleted.result()
    daemon = start_daemon()
    assert daemon.process.wait(timeout=READY_TIMEOUT_S) == 1
    assert f"expected the topics ['{topics.dead_letters}']" in daemon.log.read_text()
