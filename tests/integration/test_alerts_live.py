"""Alerts of the shipped rules fire and clear in a real Prometheus beside a real daemon and broker.

The rules wait for seconds instead of minutes: the shipped ones, all times divided by one factor.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from consumer.avro import encode

from .conftest import Daemon, Topics
from .prometheus import Prometheus, prometheus, wait_for
from .traffic import Sent, make_alert, make_good, make_malformed, produce

SHORTER = 120
HOUR_S = 3600
SLOW = {"SEDFLOW_ARTIFACT__N_SAMPLES": "60000", "SEDFLOW_BATCH__MAX_SIZE": "8"}


def make_old(n: int) -> list[Sent]:
    """Alerts with a host each, an hour old."""
    stamp = int((time.time() - HOUR_S) * 1e3)
    return [Sent(b"%d" % i, encode(make_alert(4 * i), "hostAlert"), [], stamp) for i in range(n)]


@contextmanager
def flowing(bootstrap: str, topic: str, make: Callable[[], list[Sent]]) -> Iterator[None]:
    """Produce again and again while the body runs."""
    enough = Event()

    def flow() -> None:
        while not enough.wait(0.5):
            produce(bootstrap, topic, make())

    thread = Thread(target=flow)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def wait_until_fires(server: Prometheus, alert: str) -> None:
    wait_for(lambda: alert in server.firing(), server.firing)


def wait_until_clear(server: Prometheus, alert: str) -> None:
    wait_for(lambda: alert not in server.firing(), server.firing)


def test_alerts_fire_and_clear(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon(environment=SLOW)
    port = {"SEDFLOW_HTTP__PORT": str(daemon.port)}
    with prometheus(tmp_path, daemon.port, shorter=SHORTER) as server:
        wait_for(lambda: bool(server.query("sedflow_ready == 1")), server.firing)
        with flowing(bootstrap, topics.alerts, lambda: make_old(60)):
            wait_until_fires(server, "SedflowLagGrowing")
        wait_until_clear(server, "SedflowLagGrowing")
        assert server.query("sum(sedflow_consumer_lag_messages) > 0")  # not because all is read

        daemon.stop()
        wait_until_fires(server, "SedflowDown")
        daemon = start_daemon(environment=port)
        wait_until_clear(server, "SedflowDown")

        with flowing(bootstrap, topics.alerts, lambda: [*make_good(30), *make_malformed(10)]):
            wait_until_fires(server, "SedflowDeadLetters")
        with flowing(bootstrap, topics.alerts, lambda: list(make_good(20))):
            wait_until_clear(server, "SedflowDeadLetters")

        produce(bootstrap, topics.alerts, list(make_malformed(1500)))
        wait_until_fires(server, "SedflowHalted")
        daemon.stop()
        start_daemon(environment={**port, "SEDFLOW_BREAKER__MAX_BAD_FRACTION": "1"})
        wait_until_clear(server, "SedflowHalted")
