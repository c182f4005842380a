"""A million alerts through one daemon: `make soak`, or `python -m tests.soak --alerts 1000000`.

A real broker and `sedflow-consumer run --workers N` work on this machine. One alert in ten has a
host, one message in a hundred cannot be decoded. While they pass, every process of the daemon is
looked at; the table tells of each quarter of the run. The exit code is 1 where something grew, or
an alert was lost or came twice.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory
from threading import Event, Thread

from sedflow_core import load_artifact
from sedflow_core.testing import tiny_artifact
from tests.bench.timing import describe_machine
from tests.integration.broker import free_ports, kafka_broker
from tests.integration.conftest import run_consumer

from .record import Look, look_at, quarters, table, verdict
from .stream import ALERTS, LETTERS, SUMMARIES, Passed, create_short_topics, send

LOOK_EVERY_S = 1.0
STALL_S = 600.0
"""Nothing came out for so long, on a machine however busy: the run has failed."""
SETTINGS = f"""
[artifact]
name = "{{path}}"
sha256 = "{{sha256}}"
allow_unvalidated = true
n_samples = {{n_samples}}
[input]
bootstrap = "{{bootstrap}}"
topics = ["{ALERTS}"]
[output]
bootstrap = "{{bootstrap}}"
topic = "{SUMMARIES}"
dead_letter_topic = "{LETTERS}"
[http]
port = {{port}}
"""


@contextmanager
def running_daemon(
    folder: Path, bootstrap: str, n_samples: int, n_workers: int
) -> Iterator[Popen[bytes]]:
    """The daemon with a tiny artifact; its log goes to the folder."""
    path = tiny_artifact(folder / "artifact")
    (port,) = free_ports(1)
    config = folder / "sedflow.toml"
    names = {"path": path, "sha256": load_artifact(path).sha256, "n_samples": n_samples}
    config.write_text(SETTINGS.format(bootstrap=bootstrap, port=port, **names))
    more = {"OMP_NUM_THREADS": "1"}
    process = run_consumer(config, folder / "log", "--workers", str(n_workers), more=more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=300)


def watch(process: Popen[bytes], log: Path, passed: Passed) -> Iterator[Look]:
    """Look every second until every message led to something."""
    last_n, last_s = -1, time.monotonic()
    while not passed.complete:
        yield look_at(process.pid, log, passed.n)
        time.sleep(LOOK_EVERY_S)
        if passed.n > last_n:
            last_n, last_s = passed.n, time.monotonic()
        if process.poll() is not None or time.monotonic() - last_s > STALL_S:
            raise RuntimeError(f"expected every message, got {last_n}:\n{log.read_text()[-3000:]}")
    yield look_at(process.pid, log, passed.n)


def run(n_alerts: int, n_samples: int, n_workers: int) -> tuple[list[Look], Passed]:
    """Let the alerts pass; return what was seen of the daemon, and what came out."""
    passed, done = Passed(n_alerts), Event()
    with TemporaryDirectory() as name, kafka_broker() as bootstrap:
        folder = Path(name)
        create_short_topics(bootstrap)
        with running_daemon(folder, bootstrap, n_samples, n_workers) as process:
            jobs = (
                Thread(target=send, args=(bootstrap, passed, done)),
                Thread(target=passed.follow, args=(bootstrap, done)),
            )
            try:
                for job in jobs:
                    job.start()
                looks = []
                for look in watch(process, folder / "log", passed):
                    looks.append(look)
                    if len(looks) % 60 == 0:
                        print(look, flush=True)
            finally:
                done.set()
                for job in jobs:
                    job.join()
    return looks, passed


def main() -> int:
    """Run it, print the table, return 1 where it does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--alerts", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    looks, passed = run(options.alerts, options.samples, options.workers)
    parts = quarters(looks)
    faults = [*verdict(parts), *passed.faults()]
    text = "\n".join(
        [
            f"{options.alerts:,} alerts, {options.samples} samples, {options.workers} workers",
            f"machine: {describe_machine()}",
            "",
            *table(parts),
            "",
            *(faults or ["nothing grew; 0 lost, 0 twice"]),
        ]
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.md").write_text(text + "\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
