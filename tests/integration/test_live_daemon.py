"""The page of a running daemon, one worker or several: what was published is seen there."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from .broker import free_ports
from .conftest import Daemon, Topics
from .traffic import make_good, produce, read_committed

N_ALERTS = 40
N_EVENTS = 120


def follow(port: int) -> Iterator[dict[str, Any]]:
    """The events of the page, as a browser gets them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_published_summaries_are_on_the_page(
    bootstrap: str,
    topics: Topics,
    start_daemon: Callable[..., Daemon],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    (port,) = free_ports(1)
    daemon = start_daemon("0", *arguments, more=f"[page]\nport = {port}\n")
    produce(bootstrap, topics.alerts, list(make_good(N_ALERTS)))
    read_committed(bootstrap, topics.summaries, at_least=N_ALERTS)
    names: list[str] = []
    for news in islice(follow(port), N_EVENTS):
        names += [galaxy["name"] for galaxy in news["galaxies"]]
        if len(names) == N_ALERTS:
            break
    assert sorted(names) == sorted(f"object-{i}" for i in range(N_ALERTS))
    assert daemon.stop() == 0
