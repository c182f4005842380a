"""What a running daemon tells: its endpoints, its metrics and its log."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from .conftest import Daemon

READY_TIMEOUT_S = 120.0


def fetch(daemon: Daemon, path: str) -> tuple[int, str]:
    """Status and body; (0, reason) while nothing listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except urllib.error.URLError as error:
        return 0, str(error.reason)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"expected {what} within {READY_TIMEOUT_S} s"
        time.sleep(0.1)


def scrape(daemon: Daemon) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics by its name and label values."""
    status, text = fetch(daemon, "/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def worker_pids(daemon: Daemon) -> list[int]:
    return [int(line["pid"]) for line in daemon.lines("worker started")]
