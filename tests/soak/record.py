"""What is seen of a daemon while it works, and whether it grows."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from tests.bench.processes import children, read_usage

MAX_GROWTH = 1.05
"""Of the memory, from the second quarter to the last."""
MAX_LOG_BYTES_PER_ALERT = 0.1
DEAD_LETTER = b'"event": "dead letter"'


@dataclass(frozen=True)
class Look:
    """The daemon at one moment; memory and files of the supervisor, then of each worker."""

    moment_s: float
    n_passed: int
    pids: tuple[int, ...]
    resident_mb: tuple[float, ...]
    open_files: tuple[int, ...]
    cpu_s: float
    log_bytes: int


def look_at(supervisor: int, log: Path, n_passed: int) -> Look:
    """Look at the supervisor and at its workers, in the order they were started."""
    usages, files = [], []
    for pid in (supervisor, *sorted(children(supervisor))):
        with suppress(ProcessLookupError, FileNotFoundError):
            usage, n_open = read_usage(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))
            if pid == supervisor or "spawn_main" in usage.command:
                usages.append(usage)
                files.append(n_open)
    return Look(
        time.monotonic(),
        n_passed,
        tuple(usage.pid for usage in usages),
        tuple(round(usage.resident_mb, 1) for usage in usages),
        tuple(files),
        sum(usage.cpu_s for usage in usages),
        count_bytes(log),
    )


def count_bytes(log: Path) -> int:
    """Size of the log, without the line that each dead letter is owed."""
    lines = log.read_bytes().splitlines(keepends=True)
    return sum(len(line) for line in lines if DEAD_LETTER not in line)


@dataclass(frozen=True)
class Quarter:
    """A quarter of the alerts."""

    alerts: int
    wall_s: float
    cpu_ms_per_alert: float
    pids: tuple[int, ...]
    resident_mb: tuple[float, ...]
    """Mean of each process."""
    open_files: tuple[float, ...]
    """Median of each process: one more is open for a moment now and then."""
    log_bytes: int


def quarters(looks: Sequence[Look]) -> list[Quarter]:
    """Split what was seen by the alerts that had passed."""
    total = looks[-1].n_passed
    marks = [next(i for i, x in enumerate(looks) if x.n_passed >= q * total / 4) for q in range(5)]
    return [_summarise(looks[first : last + 1]) for first, last in pairwise(marks)]


def _summarise(looks: Sequence[Look]) -> Quarter:
    first, last = looks[0], looks[-1]
    same = [look for look in looks if look.pids == last.pids]
    n = last.n_passed - first.n_passed
    return Quarter(
        n,
        last.moment_s - first.moment_s,
        1e3 * (last.cpu_s - first.cpu_s) / n,
        last.pids,
        tuple(fmean(column) for column in zip(*(x.resident_mb for x in same), strict=True)),
        tuple(median(column) for column in zip(*(x.open_files for x in same), strict=True)),
        last.log_bytes - first.log_bytes,
    )


def verdict(parts: Sequence[Quarter]) -> Iterator[str]:
    """What grew, if anything."""
    _, second, _, last = parts
    if second.pids != last.pids:
        yield f"expected the processes {second.pids} to the end, got {last.pids}"
    for pid, before, after in zip(last.pids, second.resident_mb, last.resident_mb, strict=True):
        if after > MAX_GROWTH * before:
            yield f"process {pid}: {before:.0f} MB in the second quarter, {after:.0f} in the last"
    files = zip(second.open_files, last.open_files, strict=True)
    if any(after > before for before, after in files):
        yield f"open files: {second.open_files} in the second quarter, now {last.open_files}"
    if last.log_bytes > MAX_LOG_BYTES_PER_ALERT * last.alerts:
        yield f"the log grew by {last.log_bytes} bytes in the last quarter"


def table(parts: Sequence[Quarter]) -> Iterator[str]:
    """The quarters as a table in Markdown."""
    yield (
        "| quarter | alerts | s | alerts/s | CPU ms per alert | MB, supervisor and workers "
        "| open files | log bytes |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for i, part in enumerate(parts, 1):
        memory = ", ".join(f"{mb:.1f}" for mb in part.resident_mb)
        files = ", ".join(f"{n:.0f}" for n in part.open_files)
        yield (
            f"| {i} | {part.alerts:,} | {part.wall_s:.0f} | {part.alerts / part.wall_s:.0f} "
            f"| {part.cpu_ms_per_alert:.2f} | {memory} | {files} | {part.log_bytes:,} |"
        )
