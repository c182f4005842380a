"""A signal in the middle of a window: the first drains it, the second leaves it to a successor."""

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.supervisor import GRACE_S

from .conftest import Daemon, Topics
from .daemons import wait_for
from .traffic import Sent, alert_ids, make_good, produce, read_committed, read_exactly

HOST_EVERY, N_ALERT = 4, 640
SLOW = "20_000"
"""Samples of a galaxy that make a batch of 64 take seconds, and a window of all half a minute."""


@pytest.fixture
def wait_for_window(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> Callable[..., Daemon]:
    """Return a function that starts a slow daemon and waits until it has a window in hand."""
    state = tmp_path / "state"

    def start(*options: str) -> Daemon:
        alerts: list[Sent] = list(make_good(HOST_EVERY * N_ALERT))
        produce(bootstrap, topics.alerts, alerts[::HOST_EVERY])
        environment = {"SEDFLOW_ARTIFACT__N_SAMPLES": SLOW, "SEDFLOW_STATE__FOLDER": str(state)}
        daemon = start_daemon("0", *options, environment=environment)
        wait_for(lambda: any(state.glob("*/*.json")), "a window in hand")
        return daemon

    return start


@pytest.mark.parametrize("options", [(), ("--workers", "1")])
def test_the_first_signal_publishes_what_was_answered(
    bootstrap: str,
    topics: Topics,
    start_daemon: Callable[..., Daemon],
    wait_for_window: Callable[..., Daemon],
    options: tuple[str, ...],
) -> None:
    daemon = wait_for_window(*options)
    begin_s = time.monotonic()
    assert daemon.stop() == 0, daemon.log.read_text()
    assert time.monotonic() - begin_s < GRACE_S
    (n_done,) = (line["messages"] for line in daemon.lines("stopped") if "messages" in line)
    assert 0 < n_done < N_ALERT
    read_exactly(bootstrap, topics.summaries, n_done)
    check_the_rest(bootstrap, topics, start_daemon())


def test_the_second_signal_leaves_at_once(
    bootstrap: str,
    topics: Topics,
    start_daemon: Callable[..., Daemon],
    wait_for_window: Callable[..., Daemon],
) -> None:
    daemon = wait_for_window()
    begin_s = time.monotonic()
    while daemon.process.poll() is None:  # equal signals may arrive as one
        daemon.process.terminate()
        time.sleep(0.1)
    assert time.monotonic() - begin_s < GRACE_S / 4
    assert daemon.process.returncode == 128 + signal.SIGTERM
    assert not read_committed(bootstrap, topics.summaries)
    check_the_rest(bootstrap, topics, start_daemon())


def check_the_rest(bootstrap: str, topics: Topics, successor: Daemon) -> None:
    """The next start answers what is left: every alert has one summary."""
    read_committed(bootstrap, topics.summaries, at_least=N_ALERT)
    assert successor.stop() == 0, successor.log.read_text()
    assert alert_ids(read_committed(bootstrap, topics.summaries)) == Counter(
        range(0, HOST_EVERY * N_ALERT, HOST_EVERY)
    )
