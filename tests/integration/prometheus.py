"""A real Prometheus with our rules, for the tests that ask it."""

import json
import math
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
from tests.services import program

from .broker import free_ports

WAIT_S = 240.0
RULES = DEPLOY / "prometheus" / "sedflow.rules.yml"
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: sedflow
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST_RANGE_S = 4
"""A rate needs two scrapes, and a busy machine misses some."""


def shorten(rules: str, factor: int) -> str:
    """The rules with every waiting time, range and offset so many times shorter."""

    def short(duration: str, least_s: int) -> str:
        seconds = int(duration[:-1]) * SECONDS[duration[-1]] / factor
        return f"{max(least_s, math.ceil(seconds))}s"

    content = yaml.safe_load(rules)
    for rule in (rule for group in content["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(
            r"(\[|offset )(\d+[smhd])",
            lambda m: m[1] + short(m[2], SHORTEST_RANGE_S),
            rule["expr"],
        )
        if "for" in rule:
            rule["for"] = short(rule["for"], 1)
    return yaml.safe_dump(content)


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
def prometheus(folder: Path, scraped_port: int, *, shorter: int = 1) -> Iterator[Prometheus]:
    """Prometheus with the rules as shipped, or so many times shorter, asking every second."""
    rules = folder / "rules.yml"
    rules.write_text(RULES.read_text() if shorter == 1 else shorten(RULES.read_text(), shorter))
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(rules=rules, port=scraped_port))
    (port,) = free_ports(1)
    command = [program("prometheus", "prometheus"), f"--config.file={config}"]
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
