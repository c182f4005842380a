"""Fixtures with a real broker: its address, fresh topics, and the daemon as a process."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.services import clean_environment, service

from .broker import create_topics, free_ports, kafka_broker

STOP_TIMEOUT_S = 60.0
SETTINGS = """
[artifact]
name = "{artifact}"
allow_unvalidated = true
allow_unpinned = true
n_samples = 32
[input]
bootstrap = "{bootstrap}"
topics = ["{topics.alerts}"]
group = "{topics.alerts}"
[output]
bootstrap = "{bootstrap}"
topic = "{topics.summaries}"
slot = "{slot}"
[batch]
max_delay_s = 0.2
[http]
port = {port}
"""


@dataclass(frozen=True)
class Topics:
    """The topics of one test."""

    alerts: str
    summaries: str
    dead_letters: str

    @classmethod
    def fresh(cls) -> "Topics":
        """Names that nobody has used."""
        name = f"alerts-{uuid4().hex[:8]}"
        return cls(name, f"{name}.summaries", f"{name}.sedflow.dlq")


@dataclass(frozen=True)
class Daemon:
    """A daemon in its own process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=STOP_TIMEOUT_S)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event so far; what the interpreter itself writes is none."""
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    with service(kafka_broker()) as address:
        yield address


@pytest.fixture
def topics(bootstrap: str) -> Topics:
    fresh = Topics.fresh()
    create_topics(bootstrap, astuple(fresh))
    return fresh


@contextmanager
def started_daemons(artifact: Path, folder: Path) -> Iterator[Callable[..., Daemon]]:
    """A function that starts the daemon within the cluster of its first argument.

    `more` is TOML that follows the settings, `environment` wins over them; `options` go to the
    command. What still runs at the end is killed.
    """
    started: list[Daemon] = []

    def start(
        cluster: str,
        topics: Topics,
        *options: str,
        slot: str = "0",
        more: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Daemon:
        (port,) = free_ports(1)
        config, log = (folder / f"{len(started)}.{suffix}" for suffix in ("toml", "log"))
        names = {"topics": topics, "slot": slot, "port": port, "artifact": artifact}
        config.write_text(SETTINGS.format(bootstrap=cluster, **names) + more)
        process = run_consumer(config, log, *options, more=environment)
        started.append(Daemon(process, port, log))
        return started[-1]

    try:
        yield start
    finally:
        for daemon in started:
            daemon.process.kill()
            daemon.process.wait()


@pytest.fixture
def start_from(bootstrap: str, tiny_path: Path, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts the daemon from one broker to that of `bootstrap`."""
    with started_daemons(tiny_path, tmp_path) as start_within:

        def start(
            source: str,
            topics: Topics,
            *options: str,
            environment: Mapping[str, str] | None = None,
            **more: str,
        ) -> Daemon:
            changes = {"SEDFLOW_OUTPUT__BOOTSTRAP": bootstrap, **(environment or {})}
            return start_within(source, topics, *options, environment=changes, **more)

        yield start


@pytest.fixture
def start_daemon(
    bootstrap: str, topics: Topics, start_from: Callable[..., Daemon]
) -> Callable[..., Daemon]:
    """Return a function that starts the daemon in a slot, its topics on one broker."""

    def start(slot: str = "0", *options: str, **more: Any) -> Daemon:
        return start_from(bootstrap, topics, *options, slot=slot, **more)

    return start


def run_consumer(
    config: Path, log: Path, *options: str, more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `sedflow-consumer run`, its log lines in a file, `more` in its environment."""
    command = [sys.executable, "-m", "consumer.cli", "run", "--config", str(config), *options]
    environment = clean_environment() | dict(more or {})
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)
