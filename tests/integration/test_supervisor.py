"""Several workers under one supervisor: killed and replaced, drained, seen through one endpoint."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .conftest import Daemon, Topics
from .daemons import READY_TIMEOUT_S, fetch, scrape, wait_for, worker_pids
from .traffic import alert_ids, make_good, produce, read_committed

N_GOOD = 4_000


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("0", "--workers", "2")
    wait_for(lambda: fetch(daemon, "/livez")[0] == 200, "/livez")
    assert fetch(daemon, "/readyz")[0] == 503
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz")
    produce(bootstrap, topics.alerts, list(make_good(N_GOOD)))
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD // 10)
    os.kill(worker_pids(daemon)[0], signal.SIGKILL)
    read_committed(bootstrap, topics.summaries, at_least=N_GOOD)
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz again")
    values = scrape(daemon)
    assert values["sedflow_worker_restarts_total", "0-0"] == 1
    assert {k[-1] for k in values if k[0] == "sedflow_summaries_published_total"} == {"0-0", "0-1"}
    assert daemon.stop() == 0, daemon.log.read_text()
    assert not any(is_running(pid) for pid in worker_pids(daemon))
    assert alert_ids(read_committed(bootstrap, topics.summaries)) == Counter(range(N_GOOD))


def test_a_worker_that_hangs_is_replaced(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("0", "--workers", "2")
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz")
    os.kill(worker_pids(daemon)[0], signal.SIGSTOP)
    produce(bootstrap, topics.alerts, list(make_good(200)))
    wait_for(lambda: len(daemon.lines("worker hangs")) == 1, "the end of a worker")
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz again")
    assert len(read_committed(bootstrap, topics.summaries, at_least=200)) == 200
    assert daemon.stop() == 0, daemon.log.read_text()


def test_second_signal_leaves_at_once(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("0", "--workers", "1")
    wait_for(lambda: len(worker_pids(daemon)) == 1, "a worker")
    (pid,) = worker_pids(daemon)
    os.kill(pid, signal.SIGSTOP)  # a worker that would never leave by itself
    daemon.process.terminate()
    daemon.process.terminate()
    while daemon.process.poll() is None:  # equal signals may arrive as one
        daemon.process.terminate()
        time.sleep(0.1)
    assert daemon.process.wait(READY_TIMEOUT_S) == 128 + signal.SIGTERM
    wait_for(lambda: not is_running(pid), "no worker")


def test_workers_leave_when_their_supervisor_is_killed(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("0", "--workers", "2")
    wait_for(lambda: fetch(daemon, "/readyz")[0] == 200, "/readyz")
    daemon.process.kill()
    wait_for(lambda: not any(map(is_running, worker_pids(daemon))), "no workers")
    assert len(daemon.lines("stopped")) == 2


def test_a_killed_supervisor_leaves_its_folder_to_the_next(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    killed = start_daemon("0", "--workers", "1", environment=environment)
    wait_for(lambda: fetch(killed, "/readyz")[0] == 200, "/readyz")
    killed.process.kill()
    left = set(temporary.iterdir())
    assert len(left) == 1
    successor = start_daemon("0", "--workers", "1", environment=environment)
    wait_for(lambda: not any(map(is_running, worker_pids(killed))), "no orphan")
    wait_for(lambda: fetch(successor, "/readyz")[0] == 200, "/readyz")
    assert set(temporary.iterdir()) == left
    assert successor.stop() == 0, successor.log.read_text()
    assert not list(temporary.iterdir())


def test_workers_whose_supervisor_dies_while_they_start_leave_in_order(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon("0", "--workers", "2")
    wait_for(lambda: len(worker_pids(daemon)) == 2, "workers")
    daemon.process.kill()
    wait_for(lambda: not any(map(is_running, worker_pids(daemon))), "no workers")
    assert len(daemon.lines("stopped")) == 2
    assert "Traceback" not in daemon.log.read_text()


def test_unusable_settings_end_all(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("0", "--workers", "2", more="[artifact.more]\n")
    assert daemon.process.wait(READY_TIMEOUT_S) == 2
    missing = start_daemon("0", "--workers", "2", more="[corrections]\nunknown = 1\n")
    assert missing.process.wait(READY_TIMEOUT_S) == 2
