"""A real Prometheus scrapes the daemon under load, and every expression has data.

That is each of every panel and rule. Alerts fire too: with bad messages, with the daemon gone.
"""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY
from tests.deploy.promtool import find_program

from .broker import free_ports
from .conftest import Daemon, Topics
from .traffic import make_good, make_malformed, produce, read_committed

WAIT_S = 240.0
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: sedflow
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
METRIC = re.compile(r"(?:up|(?:job:)?sedflow_[a-z_]+(?::\w+)?)(?:\{[^}]*\})?")
RULES = yaml.safe_load((DEPLOY / "prometheus" / "sedflow.rules.yml").read_text())
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        alerts = self.get("alerts")["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}


@contextmanager
def prometheus(folder: Path, scraped_port: int) -> Iterator[Prometheus]:
    """Prometheus with our rules, which wait for seconds instead of minutes."""
    rules = folder / "rules.yml"
    text = (DEPLOY / "prometheus" / "sedflow.rules.yml").read_text()
    rules.write_text(re.sub(r"for: \w+", "for: 2s", text))
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(rules=rules, port=scraped_port))
    (port,) = free_ports(1)
    command = [find_program("prometheus"), f"--config.file={config}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:  # the server is starting
            pass
        time.sleep(1.0)
    pytest.fail(f"expected it within {WAIT_S:.0f} s, got {what()}")


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of a panel, an annotation and a recording rule; of alerts, their metrics.

    An alert's expression has no data while nothing is wrong, so its metrics are asked for.
    """
    for path in BOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", fill(target["expr"])
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                yield rule["record"], rule["expr"]
                yield rule["record"], rule["record"]
            else:
                yield from ((rule["alert"], metric) for metric in METRIC.findall(rule["expr"]))


def fill(expression: str) -> str:
    return expression.replace("$job", "sedflow").replace("$__rate_interval", "1m")


def test_every_expression_has_data(
    bootstrap: str,
    topics: Topics,
    start_daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    daemon = start_daemon()
    with prometheus(tmp_path, daemon.port) as server:
        produce(bootstrap, topics.alerts, list(make_good(200)))
        read_committed(bootstrap, topics.summaries, at_least=200)
        wait_for(lambda: bool(server.query("sedflow_ready == 1")), server.firing)
        time.sleep(3.0)  # a counter has a rate after two scrapes
        produce(bootstrap, topics.alerts, [*make_good(300), *make_malformed(10)])
        read_committed(bootstrap, topics.summaries, at_least=500)
        wait_for(lambda: find_empty(server) == [], lambda: find_empty(server))
        assert {r["health"] for g in server.get("rules")["groups"] for r in g["rules"]} == {"ok"}
        assert "SedflowDown" not in server.firing()

        produce(bootstrap, topics.alerts, list(make_malformed(120)))
        wait_for(lambda: "SedflowDeadLetters" in server.firing(), server.firing)
        daemon.process.kill()
        daemon.process.wait()
        wait_for(lambda: "SedflowDown" in server.firing(), server.firing)


def find_empty(server: Prometheus) -> list[tuple[str, str]]:
    """The expressions without data."""
    return [(where, text) for where, text in expressions() if not server.query(text)]
