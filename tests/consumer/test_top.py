"""The terminal view of a real endpoint."""

from collections import deque
from datetime import UTC, datetime
from socket import create_server
from threading import Thread

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


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:port"])
def test_no_daemon_is_an_error(url: str) -> None:
    with pytest.raises(BrokerError, match=f"{url}: expected a daemon's /metrics"):
        fetch(url)


BROKEN_OFF = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsed"
NO_METRICS = b"HTTP/1.0 200 OK\r\n\r\n<!doctype html>\n"


@pytest.mark.parametrize("answer", [BROKEN_OFF, NO_METRICS])
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    with create_server(("127.0.0.1", 0)) as server:

        def reply() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        Thread(target=reply, daemon=True).start()
        with pytest.raises(BrokerError, match="expected a daemon's /metrics"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_the_highest_bar_is_full() -> None:
    assert sparkline([0.0, 5.0, 10.0]) == "▁▅█"
    assert sparkline([0.0]) == "▁"
