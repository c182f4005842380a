"""The terminal view of a real endpoint."""

from collections import deque
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from consumer.errors import BrokerError
from consumer.health import Health, serve
from consumer.message import Message, Result, Window
from consumer.metrics import Metrics
from consumer.top import draw, fetch, sparkline, watch
from sedflow_core import Artifact

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def show(metrics: Metrics) -> str:
    health = Health()
    metrics.registry.register(health)
    with serve(health, metrics.registry, "127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}"
        readings = deque([fetch(url)])
        messages = tuple(Message(b"", topic="hosts") for _ in range(40))
        results = tuple(
            Result(None, b"", (), "OUT_OF_SUPPORT", "ZTF", ("sigma_high_u",)) for _ in messages
        )
        metrics.count_window(Window(messages, results, ()), NOW)
        readings.append(fetch(url))
    console = Console(width=100, record=True)
    with console.capture() as captured:
        console.print(draw(readings, url))
    return captured.get()


def test_the_screen_tells_what_passed(tiny: Artifact) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.set_artifact(tiny)
    metrics.set_lag({("hosts", 0): 1234}, NOW)
    text = show(metrics)
    for expected in ("tiny 0", "not ready", "1,234", "OUT_OF_SUPPORT", "sigma_high_u", "100.0 %"):
        assert expected in text


def test_it_ends_after_so_many_readings(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Health(), Metrics(CollectorRegistry()).registry, "127.0.0.1", 0) as port:
        watch(f"http://127.0.0.1:{port}", n_readings=2)
    assert "SEDflow" in capsys.readouterr().out


def test_no_daemon_is_an_error() -> None:
    with pytest.raises(BrokerError, match="expected a daemon's /metrics"):
        fetch("http://127.0.0.1:1")


def test_the_highest_bar_is_full() -> None:
    assert sparkline([0.0, 5.0, 10.0]) == "▁▅█"
    assert sparkline([0.0]) == "▁"
