"""What is done to a running fleet. Each scenario returns once the last fault is over."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from .trial import Trial

SESSION_S = 15.0
"""Longer than a member may be silent before its group goes on without it."""

Scenario = Callable[[Trial, int], None]


def kill_workers(trial: Trial, n_faults: int) -> None:
    """kill -9 at moments chosen by chance, spread over the backlog."""
    marks = sorted(trial.chance.uniform(0.02, 0.9) for _ in range(n_faults))
    for mark in marks:
        trial.wait_for(lambda m=mark: trial.done() >= m * trial.n_good, "progress")  # type: ignore[misc]
        time.sleep(trial.chance.uniform(0.0, 0.5))
        trial.signal_one(signal.SIGKILL)
        trial.wait_for_progress()


def restart_broker(trial: Trial, n_faults: int) -> None:
    """The output's broker is killed, stays away for a while, and comes back with its data."""
    for i in range(n_faults):
        wait_for_share(trial, i, n_faults)
        broker = trial.chance.choice(trial.sink.brokers)
        broker.kill()
        time.sleep(3.0)
        broker.start()
        broker.wait()
        trial.wait_for_progress()


def cut_network(trial: Trial, n_faults: int, silent_s: float = 60.0) -> None:
    """Nothing passes between workers and brokers for a minute."""
    for i in range(n_faults):
        wait_for_share(trial, i, n_faults)
        for broker in trial.sink.brokers:
            broker.proxy.cut()
        time.sleep(silent_s)
        for broker in trial.sink.brokers:
            broker.proxy.mend()
        trial.wait_for_progress()


def freeze_worker(trial: Trial, n_faults: int) -> None:
    """A worker sleeps through its session, then wakes up and tries to go on."""
    for i in range(n_faults):
        wait_for_share(trial, i, n_faults)
        pid = trial.signal_one(signal.SIGSTOP)
        time.sleep(SESSION_S)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        trial.wait_for_progress()


def rebalance(trial: Trial, n_faults: int) -> None:
    """Another worker comes and goes under load."""
    for i in range(n_faults):
        wait_for_share(trial, i, n_faults)
        guest = trial.start(workers=1, slot=f"guest-{i}")
        trial.wait_for(
            lambda g=guest: bool(g.lines("partitions assigned")) or trial.finished(),  # type: ignore[misc]
            "partitions for a guest",
        )
        guest.process.terminate()
        guest.process.wait(timeout=120)
        trial.wait_for_progress()


def poison(trial: Trial, _: int) -> None:
    """One message in ten cannot be read, of every kind in turn; nothing else is done."""
    trial.wait_for(trial.finished, "every message")


def wait_for_share(trial: Trial, place: int, n_faults: int) -> None:
    """Wait until the backlog is done up to the next of `n_faults` equal shares."""
    share = (place + 0.3) / (n_faults + 1)
    trial.wait_for(lambda: trial.done() >= share * trial.n_good, "progress")
