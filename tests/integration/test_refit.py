"""The slow lane as a process: every flagged galaxy answered exactly once, over kill -9 too."""

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.avro import decode_summary, encode, schemas_path
from tests.services import clean_environment

from .broker import create_topics, free_ports
from .daemons import wait_for
from .traffic import Sent, produce, read_committed, read_exactly

SETTINGS = """
[artifact]
name = "{artifact}"
allow_unvalidated = true
allow_unpinned = true
[input]
group = "{name}"
topics = ["{name}"]
[output]
bootstrap = "{bootstrap}"
topic = "{name}"
[refit]
max_seconds = 1.0
max_per_hour = 5
window = 4
niceness = 0
http_port = {port}
"""
N_FLAGGED, N_GOOD = 16, 30


@pytest.fixture
def lane(bootstrap: str, tiny_path: Path, tmp_path: Path) -> Iterator["Lane"]:
    lane = Lane(bootstrap, tiny_path, tmp_path)
    yield lane
    for process in lane.started:
        process.kill()
        process.wait()


class Lane:
    """Topics of one slow lane, and its processes."""

    def __init__(self, bootstrap: str, artifact: Path, folder: Path) -> None:
        self.name = f"summaries-{uuid4().hex[:8]}"
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()
        (self.port,) = free_ports(1)
        self.positions = f"{self.name}.refit.sedflow.offsets"
        letters = f"{self.name}.sedflow.dlq"
        create_topics(bootstrap, [self.name, f"{self.name}.refit", letters, self.positions])
        names = {"bootstrap": bootstrap, "artifact": artifact, "name": self.name}
        self.config = folder / "refit.toml"
        self.config.write_text(SETTINGS.format(port=self.port, **names))

    def plan(self) -> str:
        command = [sys.executable, "-m", "consumer.cli", "topics", "plan", "--refit"]
        return subprocess.check_output([*command, "--config", str(self.config)], text=True)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "consumer.cli", "refit", "--config", str(self.config)]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=clean_environment())
        self.started.append(process)
        return process

    def count(self, name: str) -> float:
        """The sum of the samples of a metric, which must be there."""
        address = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        values = [s.value for family in families for s in family.samples if s.name == name]
        assert values, name
        return sum(values)

    def log(self) -> str:
        return (self.folder / "log").read_text()


def summary(alert_id: int, status: str) -> dict[str, Any]:
    """A summary without a second opinion; each alert has its own photometry."""
    path = schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json"
    record: dict[str, Any] = json.loads(path.read_text())
    flux = [value * (1.0 + alert_id / 100.0) for value in record["inputs"]["flux"]]
    own = {"alertId": alert_id, "status": status, "refit": None, "trust": None}
    return record | own | {"inputs": record["inputs"] | {"flux": flux}}


def send(bootstrap: str, topic: str, flagged: range, good: range) -> None:
    records: list[Any] = [summary(i, "OK") for i in good]
    records[10:10] = [summary(i, "OUT_OF_SUPPORT") for i in flagged]
    now_ms = int(time.time() * 1e3)
    messages = [
        Sent(b"%d" % r["alertId"], encode(r, "posteriorSummary"), [], now_ms) for r in records
    ]
    produce(bootstrap, topic, messages)


def test_every_flagged_galaxy_is_answered_once(bootstrap: str, lane: Lane) -> None:
    """Half of them are asked for once the first process was killed: the second has work."""
    assert f"--group {lane.name}.refit" in lane.plan()
    half = N_FLAGGED // 2
    send(bootstrap, lane.name, range(half), range(1000, 1000 + N_GOOD))
    out = f"{lane.name}.refit"
    first = lane.start()
    read_committed(bootstrap, out, at_least=2, timeout_s=300)
    first.kill()
    first.wait()
    send(bootstrap, lane.name, range(half, N_FLAGGED), range(2000, 2000 + N_GOOD))
    produce(bootstrap, lane.name, [Sent(b"bad", b"no summary", [], int(time.time() * 1e3))])
    second = lane.start()
    read_committed(bootstrap, out, at_least=N_FLAGGED, timeout_s=300)
    wait_for(lambda: lane.count("sedflow_refits_total") >= half, "second opinions counted")
    assert lane.count("sedflow_refits_total") <= N_FLAGGED - 2
    assert lane.count("sedflow_refit_seconds_count") > 0
    wait_for(lambda: lane.count("sedflow_consumer_lag_messages") == 0, "no lag")
    second.terminate()
    assert second.wait(timeout=90) == 0, lane.log()
    answers = read_committed(bootstrap, out)
    records = [decode_summary(answer.value() or b"") for answer in answers]
    assert Counter(r["alertId"] for r in records) == Counter(range(N_FLAGGED))
    statuses = Counter(r["refit"]["status"] for r in records)
    sampled = statuses["CONVERGED"] + statuses["NOT_CONVERGED"]
    assert 1 <= sampled <= 10
    assert statuses["OVER_QUOTA"] == N_FLAGGED - sampled
    assert all((r["posterior"] is None) is (r["refit"]["status"] == "OVER_QUOTA") for r in records)
    assert read_committed(bootstrap, lane.positions), "positions are remembered"
    (letter,) = read_exactly(bootstrap, f"{lane.name}.sedflow.dlq", 1)
    assert letter.value() == b"no summary"
