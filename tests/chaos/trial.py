"""One trial: a backlog of alerts, a fleet of workers, and the count of what came out."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from confluent_kafka import KafkaException

from consumer.avro import decode_summary
from tests.integration.broker import committed_consumer, free_ports
from tests.integration.conftest import SETTINGS, Daemon, Topics, run_consumer
from tests.integration.traffic import make_good, make_malformed, produce

from .brokers import Cluster

PATIENCE_S = 600.0


@dataclass
class Watch:
    """What readers under read_committed have seen so far, and when."""

    ids: Counter[int] = field(default_factory=Counter)
    letters: Counter[bytes] = field(default_factory=Counter)
    last_s: float = 0.0

    def start(self, bootstrap: str, topics: Topics, stop: threading.Event) -> None:
        """Read in the background until `stop`."""
        for topic in (topics.summaries, topics.dead_letters):
            threading.Thread(target=self._read, args=(bootstrap, topic, stop), daemon=True).start()

    def _read(self, bootstrap: str, topic: str, stop: threading.Event) -> None:
        consumer = committed_consumer(bootstrap, topic)
        while not stop.is_set():
            with suppress(KafkaException):
                for message in consumer.consume(1000, 0.2):
                    if message.error() is None:
                        self._note(topic, message.key() or b"", message.value() or b"")
        consumer.close()

    def _note(self, topic: str, key: bytes, value: bytes) -> None:
        if topic.endswith(".dlq"):
            self.letters[key] += 1
        else:
            self.ids[decode_summary(value)["alertId"]] += 1
        self.last_s = time.monotonic()


@dataclass
class Trial:
    """Everything that a scenario may break."""

    source: Cluster
    sink: Cluster
    topics: Topics
    folder: Path
    artifact: Path
    n_good: int
    n_bad: int
    watch: Watch = field(default_factory=Watch)
    daemons: list[Daemon] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(6))

    def start(self, workers: int = 2, slot: str = "0") -> Daemon:
        """Start a daemon."""
        (port,) = free_ports(1)
        config, log = (self.folder / f"{len(self.daemons)}.{s}" for s in ("toml", "log"))
        names = {"topics": self.topics, "slot": slot, "port": port, "artifact": self.artifact}
        config.write_text(SETTINGS.format(bootstrap=self.source.bootstrap, **names))
        more = {"SEDFLOW_OUTPUT__BOOTSTRAP": self.sink.bootstrap}
        options = ("--workers", str(workers)) if workers > 1 else ()
        self.daemons.append(Daemon(run_consumer(config, log, *options, more=more), port, log))
        return self.daemons[-1]

    def workers(self) -> list[int]:
        """Process ids of the workers that live."""
        pids = [int(x["pid"]) for d in self.daemons for x in d.lines("worker started")]
        return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and is_alive(pid)]

    def signal_one(self, number: signal.Signals) -> int:
        """Send a signal to a worker chosen by chance; return its process id."""
        self.wait_for(lambda: bool(self.workers()), "a worker")
        pid = self.chance.choice(self.workers())
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def done(self) -> int:
        """How many alerts have a summary."""
        return len(self.watch.ids)

    def finished(self) -> bool:
        """Whether every message led to something."""
        return self.done() >= self.n_good and len(self.watch.letters) >= self.n_bad

    def wait_for_progress(self) -> None:
        """Note how long it takes from now until something more is committed."""
        start = time.monotonic()
        self.wait_for(lambda: self.watch.last_s > start or self.finished(), "progress")
        if not self.finished():
            self.recoveries_s.append(time.monotonic() - start)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, as long as it takes on a busy machine."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                logs = "".join(daemon.log.read_text()[-3000:] for daemon in self.daemons)
                raise AssertionError(f"expected {what}, got {self.done()} summaries\n{logs}")
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Whether a process is more than a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextmanager
def trial(
    source: Cluster, sink: Cluster, folder: Path, artifact: Path, n_good: int, n_bad: int
) -> Iterator[Trial]:
    """Produce the backlog and start watching; end all daemons afterwards."""
    name = f"alerts-{uuid4().hex[:8]}"
    topics = Topics(name, f"{name}.summaries", f"{name}.sedflow.dlq")
    source.create_topics(topics.alerts)
    sink.create_topics(topics.summaries, topics.dead_letters)
    if sink is not source:
        sink.create_topics(f"{topics.summaries}.sedflow.offsets", compacted=True)
    messages = [*make_good(n_good), *make_malformed(n_bad)]
    random.Random(2).shuffle(messages)
    produce(source.bootstrap, topics.alerts, messages)
    stop = threading.Event()
    running = Trial(source, sink, topics, folder, artifact, n_good, n_bad)
    running.watch.start(sink.bootstrap, topics, stop)
    try:
        yield running
    finally:
        stop.set()
        for daemon in running.daemons:
            daemon.process.terminate()
        for daemon in running.daemons:
            try:
                daemon.process.wait(timeout=90)
            except Exception:
                daemon.process.kill()
                daemon.process.wait()
