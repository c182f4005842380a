"""One trial: alerts that come in, workers that answer them, and the count of what came out."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.broker import free_ports
from tests.integration.conftest import SETTINGS, Daemon, Topics, run_consumer
from tests.integration.traffic import read_committed

from .brokers import Cluster
from .feed import Feed, partition_of
from .proxy import Proxy
from .watch import Watch

PATIENCE_S = 500.0
"""Less than what pytest leaves a test, so that the logs are told."""
LEAVE_WITHIN_S = 90.0


class StuckError(Exception):
    """What was waited for did not come; the message holds the ends of the logs."""


@dataclass(frozen=True)
class FarRegistry:
    """A schema registry at the end of a wire."""

    url: str
    wire: Proxy
    schema_id: int
    """Of the alerts' schema."""


@dataclass
class Trial:
    """Everything that a scenario may break."""

    source: Cluster
    sink: Cluster
    topics: Topics
    folder: Path
    artifact: Path
    feed: Feed
    registry: FarRegistry | None = None
    watch: Watch = field(default_factory=Watch)
    daemons: list[Daemon] = field(default_factory=list)
    n_faults: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(6))

    @property
    def clusters(self) -> list[Cluster]:
        """The cluster of the input and that of the output, if it is another."""
        return [self.source, *([self.sink] if self.sink is not self.source else [])]

    def start(self, workers: int | None = None, slot: str = "0", wire: int = 0) -> Daemon:
        """Start a daemon: a supervisor and its workers, or without `workers` one process alone."""
        (port,) = free_ports(1)
        config, log = (self.folder / f"{len(self.daemons)}.{suffix}" for suffix in ("toml", "log"))
        names = {"topics": self.topics, "slot": slot, "port": port, "artifact": self.artifact}
        config.write_text(SETTINGS.format(bootstrap=self.source.by_wire(wire), **names))
        more = {"SEDFLOW_OUTPUT__BOOTSTRAP": self.sink.by_wire(wire)}
        if self.registry is not None:
            more["SEDFLOW_REGISTRY__URL"] = self.registry.url
        options = () if workers is None else ("--workers", str(workers))
        self.daemons.append(Daemon(run_consumer(config, log, *options, more=more), port, log))
        return self.daemons[-1]

    def workers(self) -> list[int]:
        """Process ids of the workers that live, supervised or alone."""
        spawned = [int(x["pid"]) for d in self.daemons for x in d.lines("worker started")]
        alone = [d.process.pid for d in self.daemons if not is_supervised(d)]
        return [pid for pid in [*spawned, *alone] if is_alive(pid)]

    def signal_one(self, number: signal.Signals) -> int:
        """Send a signal to a worker chosen by chance; return its process id."""
        self.wait_for(lambda: bool(self.workers()), "a worker")
        pid = self.chance.choice(self.workers())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def strike(self) -> None:
        """Count a fault, and time the recovery from now on."""
        self.n_faults += 1
        self.watch.note_fault()

    def recover(self) -> None:
        """Wait until every input partition is served again."""
        self.wait_for(lambda: self.watch.recovered, "recovery")

    def share_done(self) -> float:
        """How much of all alerts has a summary."""
        return len(self.watch.ids) / self.feed.n_good

    def wait_for_share(self, place: int, n_faults: int) -> None:
        """Wait until the alerts are done up to the next of `n_faults` equal shares."""
        share = (place + 0.3) / (n_faults + 1)
        self.wait_for(lambda: self.share_done() >= share, "progress")

    def wait_assigned(self, daemon: Daemon) -> None:
        """Wait until a daemon has partitions."""
        self.wait_for(lambda: bool(daemon.lines("partitions assigned")), "partitions")

    def finished(self) -> bool:
        """Whether every message led to something."""
        n_good, n_bad = len(self.watch.ids), len(self.watch.letters)
        return n_good >= self.feed.n_good and n_bad >= self.feed.n_bad

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, as long as it takes on a busy machine."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert not self.feed.trouble, f"expected every message fed, got {self.feed.trouble[0]}"
            if time.monotonic() > deadline:
                logs = "".join(daemon.log.read_text()[-3000:] for daemon in self.daemons)
                raise StuckError(f"expected {what}, got {self.share_done():.1%} done\n{logs}")
            time.sleep(0.1)

    def leave(self) -> list[int]:
        """Ask all daemons to leave; return the exit codes of all but those that were killed."""
        ended = [code for d in self.daemons if (code := d.process.poll()) is not None]
        running = [daemon for daemon in self.daemons if daemon.process.returncode is None]
        for daemon in running:  # one that has not begun would die of the signal
            self.wait_for(lambda d=daemon: bool(d.lines("started")), "a start")  # type: ignore[misc]
            daemon.process.terminate()
        codes = [leave_code(daemon.process) for daemon in running]
        return codes + [code for code in ended if code != -signal.SIGKILL]

    def count(self) -> tuple[int, int]:
        """Read all that is committed; return how many are missing and how many come twice."""
        wanted = {b"object-%d" % i for i in range(self.feed.n_good)}
        letters = {b"bad-%d" % i for i in range(self.feed.n_bad)}
        lost = repeated = 0
        pairs = ((self.topics.summaries, wanted), (self.topics.dead_letters, letters))
        for topic, expected in pairs:
            messages = read_committed(self.sink.bootstrap, topic, timeout_s=PATIENCE_S)
            seen = Counter(message.key() for message in messages)
            lost += len(expected - seen.keys())
            repeated += seen.total() - len(seen.keys() & expected)
        return lost, repeated


def leave_code(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process that was asked to leave; kill one that does not."""
    try:
        return process.wait(timeout=LEAVE_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def is_supervised(daemon: Daemon) -> bool:
    """Whether the daemon's process is a supervisor, its workers others."""
    return "--workers" in daemon.process.args


def is_alive(pid: int) -> bool:
    """Whether a process is there and is more than a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def trial(
    source: Cluster,
    sink: Cluster,
    folder: Path,
    artifact: Path,
    feed: Feed,
    registry: FarRegistry | None,
) -> Iterator[Trial]:
    """Feed and watch; end all daemons afterwards."""
    topics = Topics.fresh()
    source.create_topics(topics.alerts)
    sink.create_topics(topics.summaries, topics.dead_letters)
    if sink is not source:
        sink.create_topics(f"{topics.summaries}.sedflow.offsets", compacted=True)
    stop = threading.Event()
    running = Trial(source, sink, topics, folder, artifact, feed, registry)
    running.watch.expected.update(map(partition_of, range(feed.n_good)))
    feed.start(source.bootstrap, topics.alerts)
    running.watch.start(sink.bootstrap, topics, stop)
    try:
        yield running
    finally:
        stop.set()
        for daemon in running.daemons:
            daemon.process.kill()
            daemon.process.wait()
