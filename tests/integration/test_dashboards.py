"""A real Prometheus scrapes the workers under load, and every expression has data.

That is each of every panel and rule.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.deploy.files import DEPLOY

from .conftest import Daemon, Topics
from .prometheus import RULES, Prometheus, prometheus, wait_for
from .traffic import make_good, make_malformed, produce, read_committed

METRIC = re.compile(r"(?:up|(?:job:)?sedflow_[a-z_]+(?::\w+)?)(?:\{[^}]*\})?")
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of a panel, an annotation and a recording rule; of alerts, their metrics.

    An alert's expression has no data while nothing is wrong, so its metrics are asked for.
    """
    for path in BOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", fill(target["expr"])
    for group in GROUPS:
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
    daemon = start_daemon("0", "--workers", "2")
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


def find_empty(server: Prometheus) -> list[tuple[str, str]]:
    """The expressions without data."""
    return [(where, text) for where, text in expressions() if not server.query(text)]
