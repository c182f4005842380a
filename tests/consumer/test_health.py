"""The HTTP endpoints tell the truth about the loop, and answer GET only."""

import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler
from socket import create_connection

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from consumer.errors import SettingsError
from consumer.health import MAX_SILENCE_S, Health, listen, serve, url_of
from consumer.kafka_sink import HANGS_AFTER_S, RETRY_FOR_S
from consumer.metrics import Metrics


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fetch(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_live_while_the_loop_beats() -> None:
    clock = Clock()
    health = Health(clock)
    with serve(health, CollectorRegistry(), "127.0.0.1", 0) as port:
        assert fetch(port, "/livez")[0] == 200
        clock.now_s += MAX_SILENCE_S + 1
        status, text = fetch(port, "/livez")
        assert status == 503
        assert "got none for 61" in text
        health.beat()
        assert fetch(port, "/livez")[0] == 200


@pytest.mark.parametrize("warmed", [False, True])
@pytest.mark.parametrize("assigned", [False, True])
def test_ready_needs_both_a_warm_artifact_and_an_assignment(warmed: bool, assigned: bool) -> None:
    health = Health()
    health.warmed, health.assigned = warmed, assigned
    with serve(health, CollectorRegistry(), "127.0.0.1", 0) as port:
        assert fetch(port, "/readyz")[0] == (200 if warmed and assigned else 503)


@pytest.mark.parametrize("assigned", [False, True])
def test_the_verdicts_are_metrics_too(assigned: bool) -> None:
    registry, health = CollectorRegistry(), Health()
    registry.register(health)
    health.warmed, health.assigned = True, assigned
    assert registry.get_sample_value("sedflow_ready") == assigned
    assert registry.get_sample_value("sedflow_live") == 1


def test_metrics_parse() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.published.inc(3)
    with serve(Health(), metrics.registry, "127.0.0.1", 0) as port:
        status, text = fetch(port, "/metrics")
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert status == 200
    assert ("sedflow_summaries_published_total", 3.0) in [(s.name, s.value) for s in samples]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_only_get_is_served(method: str) -> None:
    with serve(Health(), CollectorRegistry(), "127.0.0.1", 0) as port:
        assert fetch(port, "/livez", method)[0] == 501


def test_unknown_path() -> None:
    with serve(Health(), CollectorRegistry(), "127.0.0.1", 0) as port:
        assert fetch(port, "/")[0] == 404


@pytest.mark.parametrize(
    ("error", "events"),
    [
        (ConnectionResetError(), []),
        (BrokenPipeError(), []),
        (TimeoutError(), []),
        (ZeroDivisionError(), ["http trouble"]),
    ],
)
def test_a_client_that_goes_away_is_no_event(
    error: Exception,
    events: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Endpoint(BaseHTTPRequestHandler):
        def handle(self) -> None:
            raise error

    with (
        listen("http", "127.0.0.1", 0, Endpoint) as port,
        create_connection(("127.0.0.1", port), timeout=30) as client,
    ):
        assert client.recv(1) == b""
    assert caplog.messages == events
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_what_a_browser_takes(host: str) -> None:
    with serve(Health(), CollectorRegistry(), host, 0) as port:
        answer = urllib.request.urlopen(f"{url_of(host, port)}/livez", timeout=10)
        assert answer.status == 200


def test_a_taken_port_is_named() -> None:
    with (
        serve(Health(), CollectorRegistry(), "127.0.0.1", 0) as port,
        pytest.raises(SettingsError, match=f"got 127.0.0.1:{port}"),
        serve(Health(), CollectorRegistry(), "127.0.0.1", port),
    ):
        pass


def test_a_broker_that_is_away_makes_no_process_look_stuck() -> None:
    """Nothing beats while a window is published: neither its commit nor then its abort answers."""
    assert 2 * (RETRY_FOR_S + HANGS_AFTER_S) < MAX_SILENCE_S
