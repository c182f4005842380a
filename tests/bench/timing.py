"""Medians of repeated calls, and what machine they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def median_seconds(call: Callable[[], Any], repeat: int) -> float:
    """Median wall time of a call, after one warm-up."""
    return _median(call, repeat, time.perf_counter)


def median_cpu_seconds(call: Callable[[], Any], repeat: int) -> float:
    """Median CPU time of a call, after one warm-up: steadier than the wall on a busy machine."""
    return _median(call, repeat, time.process_time)


def _median(call: Callable[[], Any], repeat: int, clock: Callable[[], float]) -> float:
    call()
    seconds = []
    for _ in range(repeat):
        started = clock()
        call()
        seconds.append(clock() - started)
    return statistics.median(seconds)


def cpu_seconds_in_turn(calls: Sequence[Callable[[], Any]], repeat: int) -> list[list[float]]:
    """CPU time of each call in each round, after one warm-up.

    The calls take turns, so that a machine whose speed drifts weighs on all alike.
    """
    rounds = []
    for _ in range(repeat + 1):
        seconds = []
        for call in calls:
            started = time.process_time()
            call()
            seconds.append(time.process_time() - started)
        rounds.append(seconds)
    return rounds[1:]


def describe_machine() -> dict[str, str | int | float]:
    """What the figures depend on."""
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": os.cpu_count() or 0,
        "load at start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
