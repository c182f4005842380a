"""CPU time and memory of processes, from /proc."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a process has used so far."""

    pid: int
    command: str
    cpu_s: float
    resident_mb: float
    peak_mb: float


def read_usage(pid: int) -> Usage:
    """Usage of one process. Raises ProcessLookupError once it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        command = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
        status = folder.joinpath("status").read_text().splitlines()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    memory = dict(line.split(":", 1) for line in status)
    if "VmRSS" not in memory:  # ended, and nobody has asked for its exit code yet
        raise ProcessLookupError(pid)
    resident, peak = (int(memory[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return Usage(pid, command, (int(fields[11]) + int(fields[12])) / _TICKS, resident, peak)


def children(pid: int) -> Iterator[int]:
    """Processes that a process started, of any thread of it; none once it has ended."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, task.read_text().split())


def descendants(pid: int) -> Iterator[int]:
    """Children, and theirs."""
    for child in children(pid):
        yield child
        yield from descendants(child)
