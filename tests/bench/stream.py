"""The whole stream against the clock: `make bench-stream LOAD=visits`.

A real broker and `sedflow-consumer run --workers N` work on this machine; alerts go in as the load
says, and a reader of committed summaries notes when each comes out. Latency runs from the moment an
alert is handed to the producer until its summary is read.
"""

import argparse
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread

import numpy as np
from confluent_kafka import Consumer, Producer

from sedflow_core import Observation, load_artifact
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
LOOK_EVERY_S = 5.0
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
    """When each alert was sent and its summary read, seconds of the monotonic clock."""

    n: int
    sent: np.ndarray = field(init=False)
    read: np.ndarray = field(init=False)
    count: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sent = np.full(self.n, np.nan)
        self.read = np.full(self.n, np.nan)
        self.count = np.zeros(self.n, dtype=int)

    def follow(self, consumer: Consumer, done: Event) -> None:
        """Note summaries until one of every alert was read, or `done` is set."""
        n_read = 0
        while n_read < self.n and not done.is_set():
            messages = [m for m in consumer.consume(500, 0.2) if m.error() is None]
            now = time.monotonic()
            index = [int((m.key() or b"").removeprefix(b"bench-")) for m in messages]
            self.read[index] = now
            np.add.at(self.count, index, 1)
            n_read += len(index)


@dataclass
class Watch:
    """Usage of the workers and the broker over the run."""

    seen: list[list[Usage]] = field(default_factory=list)

    def look(self) -> None:
        """Note everything now."""
        usages = []
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                usages.append(read_usage(pid))
        self.seen.append(usages)

    def follow(self, done: Event) -> None:
        """Look every few seconds."""
        while not done.wait(LOOK_EVERY_S):
            self.look()

    def workers(self, look: int) -> list[Usage]:
        """The workers' usage at one look."""
        return [usage for usage in self.seen[look] if "spawn_main" in usage.command]

    def broker_cpu_s(self, look: int) -> float:
        """CPU time of the broker, 0 where it is no child of ours."""
        return sum(usage.cpu_s for usage in self.seen[look] if "kafka.Kafka" in usage.command)


@contextmanager
def running_workers(bootstrap: str, artifact: str, n: int) -> Iterator[Popen[bytes]]:
    """The daemon with n workers, ready."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "sedflow.toml", Path(folder) / "log"
        config.write_text(SETTINGS.format(artifact=artifact, bootstrap=bootstrap, port=port))
        environment = {"OMP_NUM_THREADS": "1"}
        process = run_consumer(config, log, "--workers", str(n), more=environment)
        try:
            _wait_until_ready(process, port, log)
            yield process
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
        wait_until(started + due_s)
        arrivals.sent[i] = time.monotonic()
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
    galaxies = supported(load_artifact(artifact_name), N_GALAXY)
    arrivals, watch, done = Arrivals(load.n_alerts), Watch(), Event()
    with kafka_broker() as bootstrap:
        create_topics(bootstrap, [ALERTS, SUMMARIES, f"{ALERTS}.sedflow.dlq"])
        with running_workers(bootstrap, artifact_name, n_workers):
            watch.look()
            reader = committed_consumer(bootstrap, SUMMARIES)
            follow = Thread(target=arrivals.follow, args=(reader, done))
            threads = [follow, Thread(target=watch.follow, args=(done,))]
            try:
                for thread in threads:
                    thread.start()
                send(bootstrap, load, galaxies, arrivals)
                _wait_for(follow, arrivals)
                watch.look()
            finally:
                done.set()
                for thread in threads:
                    thread.join()
                reader.close()
    return summarise(arrivals, watch, n_workers)


def _wait_for(reader: Thread, arrivals: Arrivals) -> None:
    """Return once every summary was read, or none has come for `STALL_S`."""
    while reader.is_alive():
        reader.join(1.0)
        latest = np.nanmax(np.concatenate([arrivals.read, arrivals.sent]))
        if time.monotonic() - latest > STALL_S:
            return


def summarise(arrivals: Arrivals, watch: Watch, n_workers: int) -> dict[str, float]:
    """What the run came to."""
    n = arrivals.n
    latency = arrivals.read - arrivals.sent
    wall = np.nanmax(arrivals.read) - arrivals.sent[0]
    cpu = sum(u.cpu_s for u in watch.workers(-1)) - sum(u.cpu_s for u in watch.workers(0))
    middle = len(watch.seen) // 2
    figures = {
        "alerts sent": n,
        "alerts without a summary": int((arrivals.count == 0).sum()),
        "alerts with more than one summary": int((arrivals.count > 1).sum()),
        "workers": n_workers,
        "alerts/s, first sent to last read": n / wall,
        "CPU ms per alert, workers": 1e3 * cpu / n,
        "CPU ms per alert, broker": 1e3 * (watch.broker_cpu_s(-1) - watch.broker_cpu_s(0)) / n,
        "MB, largest peak of a worker": max(u.peak_mb for u in watch.workers(-1)),
        "MB, growth of a worker over the second half": max(
            late.resident_mb - early.resident_mb
            for early, late in zip(watch.workers(middle), watch.workers(-1), strict=True)
        ),
    }
    for level in (50, 95, 99, 100):
        name = "longest" if level == 100 else f"{level} %"
        figures[f"s, latency, {name}"] = float(np.nanpercentile(latency, level))
    return figures | by_minute(arrivals)


def by_minute(arrivals: Arrivals) -> dict[str, float]:
    """Rates of the whole minutes of a long run: a machine that others share has slow ones."""
    read = arrivals.read[np.isfinite(arrivals.read)] - arrivals.sent[0]
    edges = np.arange(0.0, read.max(), 60.0)
    if len(edges) < 3:
        return {}
    rates = np.histogram(read, edges)[0] / 60.0
    names = {"slowest": 0, "median": 50, "fastest": 100}
    return {
        f"alerts/s, {name} minute": float(np.percentile(rates, level))
        for name, level in names.items()
    }


def main() -> None:
    """Run one load, print its table, keep it as JSON."""
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


if __name__ == "__main__":
    main()
