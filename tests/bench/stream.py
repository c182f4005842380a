"""The whole stream against the clock: `make bench-stream LOAD=visits`.

A real broker and `sedflow-consumer run --workers N` work on this machine; alerts go in as the load
says, and a reader of committed summaries notes when each comes out. Latency runs from the moment an
alert is due until its summary is read. The command fails where an alert got no summary or several,
or no posterior. Every second `estimate` answers the same few alerts: the machine's speed, by which
the workers' CPU time is told too.
"""

import argparse
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Message, Producer
from prometheus_client.parser import text_string_to_metric_families

from consumer.gather import fetch
from consumer.reading import read
from sedflow_core import Observation, estimate, load_artifact
from sedflow_core.memory import keep_freed_memory
from sedflow_core.threads import torch_threads
from tests.bench.load import LOADS, Load, make_alerts, wait_until
from tests.bench.processes import Usage, descendants, read_usage
from tests.bench.pure import supported
from tests.bench.report import identify, write_report
from tests.bench.timing import describe_machine
from tests.integration.broker import committed_consumer, create_topics, free_ports, kafka_broker
from tests.integration.conftest import run_consumer

READY_TIMEOUT_S = 300.0
STALL_S = 120.0
"""Nothing came out for so long: the run has failed."""
N_GALAXY = 500
N_YARDSTICK = 4
"""Galaxies whose answer tells the machine's speed."""
LOOK_EVERY_S = 1.0
READ_WAIT_S = 0.02
CPU_MS = "CPU ms per alert, workers"
PER_ESTIMATE = "CPU per alert, workers, to that of estimate beside them"
LOST, TWICE = "without a summary", "with more than one summary"
WORKER, SUPERVISOR, BROKER = "spawn_main", "consumer.cli run", "kafka.Kafka"
"""What their commands hold; a broker that is no child of ours has no share in the CPU time."""
ALERTS, SUMMARIES = "bench.hostAlert", "bench.posteriorSummary"
SETTINGS = """
[artifact]
name = "{artifact}"
allow_unpinned = true
[input]
bootstrap = "{bootstrap}"
topics = ["bench.hostAlert"]
[output]
bootstrap = "{bootstrap}"
topic = "bench.posteriorSummary"
[http]
port = {port}
"""


@dataclass
class Arrivals:
    """When each alert was due and its summary read, seconds of the monotonic clock."""

    n: int
    due: np.ndarray = field(init=False)
    read: np.ndarray = field(init=False)
    count: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.due = np.full(self.n, np.nan)
        self.read = np.full(self.n, np.nan)
        self.count = np.zeros(self.n, dtype=int)

    def follow(self, consumer: Consumer, done: Event) -> None:
        """Note summaries until `done` is set and none is left."""
        messages: list[Message] = []
        while messages or not done.is_set():
            messages = [m for m in consumer.consume(500, READ_WAIT_S) if m.error() is None]
            now = time.monotonic()
            index = [int((m.key() or b"").removeprefix(b"bench-")) for m in messages]
            self.read[index] = now
            np.add.at(self.count, index, 1)


@dataclass
class Watch:
    """Usage of workers, supervisor and broker over the run, and the machine's speed."""

    yardstick: Callable[[], Any]
    seen: list[list[Usage]] = field(default_factory=list)
    yardstick_s: list[float] = field(default_factory=list)
    """Its CPU time, every second."""

    def __post_init__(self) -> None:
        for _ in range(3):  # compiled by then
            self.yardstick()

    def look(self) -> None:
        """Note everything now."""
        usages = []
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                usages.append(read_usage(pid))
        self.seen.append(usages)

    def follow(self, done: Event) -> None:
        """Look and measure the yardstick every second, once at least."""
        self._measure()
        while not done.wait(LOOK_EVERY_S):
            self.look()
            self._measure()

    def _measure(self) -> None:
        with torch_threads(1):
            started = time.thread_time()
            self.yardstick()
            self.yardstick_s.append(time.thread_time() - started)

    def workers(self, look: int) -> list[Usage]:
        """The workers' usage at one look."""
        return [usage for usage in self.seen[look] if WORKER in usage.command]

    def cpu_s(self, part: str) -> float:
        """CPU time over the run of the processes with `part` in their commands."""
        last, first = (
            sum(usage.cpu_s for usage in self.seen[look] if part in usage.command)
            for look in (-1, 0)
        )
        return last - first


@contextmanager
def running_workers(bootstrap: str, artifact: str, n: int) -> Iterator[int]:
    """The port of a daemon with n workers, ready."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "sedflow.toml", Path(folder) / "log"
        config.write_text(SETTINGS.format(artifact=artifact, bootstrap=bootstrap, port=port))
        environment = {"OMP_NUM_THREADS": "1"}
        process = run_consumer(config, log, "--workers", str(n), more=environment)
        try:
            _wait_until_ready(process, port, log)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=120)


def _wait_until_ready(process: Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"expected ready workers, got\n{log.read_text()}")


def send(bootstrap: str, load: Load, galaxies: Observation, arrivals: Arrivals) -> None:
    """Produce the alerts of the load, each when it is due."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    alerts = make_alerts(galaxies, load.n_alerts)
    started = time.monotonic()
    for i, ((key, value), due_s) in enumerate(zip(alerts, load.times_s(), strict=True)):
        arrivals.due[i] = started + due_s
        wait_until(started + due_s)
        while True:
            try:
                producer.produce(ALERTS, key=key, value=value)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()


def run_load(load: Load, artifact_name: str, n_workers: int) -> dict[str, float]:
    """Figures of one load through a broker and workers of its own."""
    artifact = load_artifact(artifact_name)
    galaxies = supported(artifact, N_GALAXY)
    few = galaxies.rows(slice(0, N_YARDSTICK))
    arrivals, done = Arrivals(load.n_alerts), Event()
    keep_freed_memory()
    watch = Watch(lambda: estimate(artifact, few))
    with kafka_broker() as bootstrap:
        create_topics(bootstrap, [ALERTS, SUMMARIES, f"{ALERTS}.sedflow.dlq"])
        create_topics(bootstrap, [f"{SUMMARIES}.sedflow.offsets"], {"cleanup.policy": "compact"})
        with running_workers(bootstrap, artifact_name, n_workers) as port:
            watch.look()
            reader = committed_consumer(bootstrap, SUMMARIES)
            follow = Thread(target=arrivals.follow, args=(reader, done))
            threads = [follow, Thread(target=watch.follow, args=(done,))]
            try:
                for thread in threads:
                    thread.start()
                send(bootstrap, load, galaxies, arrivals)
                _wait_for(arrivals)
                watch.look()
                answered = count_posteriors(port)
            finally:
                done.set()
                for thread in threads:
                    thread.join()
                reader.close()
    return {"posteriors": answered, **summarise(arrivals, watch, n_workers)}


def _wait_for(arrivals: Arrivals) -> None:
    """Return once a summary of every alert was read, or none has come for `STALL_S`."""
    while not np.isfinite(arrivals.read).all():
        latest = np.nanmax(np.concatenate([arrivals.read, arrivals.due]))
        if time.monotonic() - latest > STALL_S:
            return
        time.sleep(0.2)


def count_posteriors(port: int) -> float:
    """How many alerts the daemon says that it answered with a posterior."""
    families = text_string_to_metric_families(fetch(port, "/metrics")[1])
    return read(families, time.monotonic()).statuses["OK"]


def summarise(arrivals: Arrivals, watch: Watch, n_workers: int) -> dict[str, float]:
    """What the run came to. Raises RuntimeError where a worker began anew."""
    n = arrivals.n
    latency = arrivals.read - arrivals.due
    wall = np.nanmax(arrivals.read) - arrivals.due[0]
    middle = len(watch.seen) // 2
    began, middle_aged, ended = (
        {u.pid: u for u in watch.workers(look)} for look in (0, middle, -1)
    )
    if not began.keys() == middle_aged.keys() == ended.keys():
        raise RuntimeError(f"expected the same workers all along, got {[*began]}, {[*ended]}")
    estimate_s = float(np.mean(watch.yardstick_s)) / N_YARDSTICK
    figures = {
        "alerts sent": n,
        f"alerts {LOST}": int((arrivals.count == 0).sum()),
        f"alerts {TWICE}": int((arrivals.count > 1).sum()),
        "workers": n_workers,
        "alerts/s, first due to last read": n / wall,
        CPU_MS: 1e3 * watch.cpu_s(WORKER) / n,
        PER_ESTIMATE: watch.cpu_s(WORKER) / n / estimate_s,
        "CPU ms per alert, supervisor": 1e3 * watch.cpu_s(SUPERVISOR) / n,
        "CPU ms per alert, broker": 1e3 * watch.cpu_s(BROKER) / n,
        "MB, largest peak of a worker": max(u.peak_mb for u in ended.values()),
        "MB, growth of a worker over the second half": max(
            late.resident_mb - middle_aged[pid].resident_mb for pid, late in ended.items()
        ),
    }
    for level in (50, 95, 99, 100):
        name = "longest" if level == 100 else f"{level} %"
        figures[f"s, latency, {name}"] = float(np.nanpercentile(latency, level))
    return figures | by_minute(arrivals)


def by_minute(arrivals: Arrivals) -> dict[str, float]:
    """Rates of the whole minutes of a long run: a machine that others share has slow ones."""
    read_s = arrivals.read[np.isfinite(arrivals.read)] - arrivals.due[0]
    edges = np.arange(0.0, read_s.max(), 60.0)
    if len(edges) < 3:
        return {}
    rates = np.histogram(read_s, edges)[0] / 60.0
    names = {"slowest": 0, "median": 50, "fastest": 100}
    return {
        f"alerts/s, {name} minute": float(np.percentile(rates, level))
        for name, level in names.items()
    }


def all_answered(figures: dict[str, float]) -> bool:
    """Whether each alert was answered once, by a posterior."""
    wrong = figures[f"alerts {LOST}"] + figures[f"alerts {TWICE}"]
    return wrong == 0 and figures["posteriors"] == figures["alerts sent"]


def main() -> int:
    """Run one load, print its table, keep it as JSON; 1 where an alert was not answered once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", choices=sorted(LOADS), nargs="?", default="short")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--burst", type=int, help="alerts per burst instead of the load's own")
    parser.add_argument("--n-burst", type=int, help="bursts instead of the load's own")
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    load = LOADS[options.load]
    load = replace(load, burst=options.burst or load.burst, n_burst=options.n_burst or load.n_burst)
    machine = describe_machine()
    figures = run_load(load, options.artifact, options.workers)
    name = f"stream-{options.load}-{options.workers}-workers-{load.n_alerts}"
    artifact = identify(load_artifact(options.artifact))
    write_report(options.out, name, figures, machine=machine, artifact=artifact)
    return int(not all_answered(figures))


if __name__ == "__main__":
    sys.exit(main())
