"""What it costs to watch the stream: `make bench-watching`.

Metrics, traces and a shadow beside the step alone, in this process. Then the live page: a broker,
a daemon of one process with a backlog, and 20 readers of the page that come and go, turn and turn
about, so that whatever else the machine does falls on both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from select import select
from socket import create_connection, socket
from threading import Event, Thread

import torch
from confluent_kafka import Consumer, Producer
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from consumer.message import Message, Window
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.shadow import Shadowed
from consumer.step import Step
from consumer.tracing import Traces
from sedflow_core import Artifact, load_artifact
from tests.bench.load import make_alerts
from tests.bench.processes import read_usage
from tests.bench.pure import supported
from tests.bench.report import identify, write_report
from tests.bench.stream import ALERTS, SETTINGS, SUMMARIES, _wait_until_ready
from tests.bench.timing import cpu_seconds_in_turn, describe_machine, median_cpu_seconds
from tests.integration.broker import committed_consumer, create_topics, free_ports, kafka_broker
from tests.integration.conftest import run_consumer

BATCH = 64
N_GALAXY = 500
N_READERS = 20
SETTLE_S = 2.0
"""After the readers have come, each with its copy of all that is kept."""
PAGE = """
[batch]
max_size = 16
[page]
port = {port}
"""


def make_messages(artifact: Artifact, n: int) -> list[Message]:
    """Alerts of simulated galaxies as they are read from a topic."""
    now_ms = int(time.time() * 1e3)
    alerts = make_alerts(supported(artifact, N_GALAXY), n)
    return [
        Message(value, key, topic=ALERTS, offset=i, timestamp_ms=now_ms)
        for i, (key, value) in enumerate(alerts)
    ]


def cost_in_process(artifact: Artifact, repeat: int) -> dict[str, float]:
    """CPU time of metrics, traces and a shadow, against that of the step."""
    settings = Settings()
    messages = make_messages(artifact, BATCH)
    step = Step(artifact, settings)
    metrics, traces = Metrics(CollectorRegistry()), Traces(TracerProvider())
    traced = traces.over(Step(artifact, settings, traces.watch(metrics.time)))
    inferring = Stopwatch()
    shadow = Step(artifact, settings, inferring.watch)
    shadowed = Shadowed(step, shadow.judge, CollectorRegistry())

    def answer(with_step: Callable[..., Window]) -> Callable[[], Window]:
        return lambda: with_step(messages, replay=False, now=lambda: datetime.now(UTC))

    window = answer(step)()

    def count() -> None:
        for name in ("poll", "step", "decode", "infer", "encode", "publish"):
            with metrics.time(name):
                pass
        metrics.set_lag({(ALERTS, 0): 1, (ALERTS, 1): 0}, datetime.now(UTC))
        metrics.count_window(window, datetime.now(UTC))

    calls = [answer(each) for each in (step, traced, shadowed)]
    rounds = cpu_seconds_in_turn(calls, repeat)
    own = inferring.seconds[1:]
    beyond = [(c - a) / s - 1.0 for (a, _, c), s in zip(rounds, own, strict=True)]
    alone_s = statistics.median(a for a, _, _ in rounds)
    return {
        "ms, an alert, step alone": 1e3 * alone_s / BATCH,
        "%, metrics, of an alert's time": 100 * median_cpu_seconds(count, 10 * repeat) / alone_s,
        "%, traces, of an alert's time": 100 * (statistics.median(b / a for a, b, _ in rounds) - 1),
        "ratio, with a shadow of the same network / without": statistics.median(
            c / a for a, _, c in rounds
        ),
        "%, a shadow's cost beyond its own inference": 100 * statistics.median(beyond),
    }


@dataclass
class Stopwatch:
    """CPU time of the inference alone."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Note the time of the body, if it is the inference."""
        started = time.process_time()
        yield
        if name == "infer":
            self.seconds.append(time.process_time() - started)


@contextmanager
def readers(port: int, n: int) -> Iterator[None]:
    """Connections to the page's events; what comes is read and dropped."""
    done = Event()
    with ExitStack() as stack:
        sockets = [stack.enter_context(create_connection(("127.0.0.1", port))) for _ in range(n)]
        for each in sockets:
            each.sendall(b"GET /events HTTP/1.0\r\n\r\n")
        thread = Thread(target=drop, args=(sockets, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def drop(sockets: Sequence[socket], done: Event) -> None:
    """Read until done."""
    while not done.is_set():
        for each in select(sockets, [], [], 0.2)[0]:
            each.recv(1 << 16)


@dataclass
class Segment:
    """What came out while so many readers were there."""

    rate: float
    """Summaries a second, from the first arrival to the last."""
    cpu_ms: float
    """Of the daemon, for each."""


def measure(consumer: Consumer, pid: int, seconds: float) -> Segment:
    """Read summaries for a while."""
    while not consumer.consume(500, 0.2):
        pass
    cpu_s, started, n, last = read_usage(pid).cpu_s, time.monotonic(), 0, 0.0
    while (now := time.monotonic()) - started < seconds:
        if found := sum(m.error() is None for m in consumer.consume(500, 0.1)):
            n, last = n + found, time.monotonic() - started
        elif now - started > seconds / 2 and not n:
            raise RuntimeError("expected summaries, got none: the backlog was too short")
    return Segment(n / last, 1e3 * (read_usage(pid).cpu_s - cpu_s) / n)


def cost_of_page(artifact_name: str, pairs: int, seconds: float) -> dict[str, float]:
    """Throughput with readers against that without, one daemon, turn and turn about."""
    n_alerts = int(120 * (seconds + SETTLE_S) * 2 * (pairs + 1))
    alone: list[Segment] = []
    watched: list[Segment] = []
    with kafka_broker() as bootstrap, tempfile.TemporaryDirectory() as folder:
        create_topics(bootstrap, [ALERTS, SUMMARIES, f"{ALERTS}.sedflow.dlq"])
        send(bootstrap, artifact_name, n_alerts)
        port, page_port = free_ports(2)
        config, log = Path(folder) / "sedflow.toml", Path(folder) / "log"
        names = {"artifact": artifact_name, "bootstrap": bootstrap, "port": port}
        config.write_text(SETTINGS.format(**names) + PAGE.format(port=page_port))
        process = run_consumer(config, log, more={"OMP_NUM_THREADS": "1"})
        reader = committed_consumer(bootstrap, SUMMARIES)
        try:
            _wait_until_ready(process, port, log)
            for pair in range(2 * pairs + 2):
                into, n = (alone, 0) if pair % 2 == 0 else (watched, N_READERS)
                with readers(page_port, n):
                    time.sleep(SETTLE_S)
                    segment = measure(reader, process.pid, seconds)
                if pair >= 2:  # the first pair warms up
                    into.append(segment)
        finally:
            reader.close()
            process.terminate()
            process.wait(timeout=120)
    rates = [b.rate / a.rate for a, b in zip(alone, watched, strict=True)]
    times = [b.cpu_ms / a.cpu_ms for a, b in zip(alone, watched, strict=True)]
    spread = statistics.stdev(rates) / len(rates) ** 0.5
    return {
        "alerts/s, one process with a page, no readers": statistics.median(s.rate for s in alone),
        f"alerts/s, {N_READERS} readers": statistics.median(s.rate for s in watched),
        f"%, throughput lost to {N_READERS} readers, mean of pairs": (
            100 * (1 - statistics.mean(rates))
        ),
        "%, its standard error": 100 * spread,
        f"%, CPU time added by {N_READERS} readers, median of pairs": (
            100 * (statistics.median(times) - 1)
        ),
    }


def send(bootstrap: str, artifact_name: str, n: int) -> None:
    """Put the backlog into the topic."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
    for key, value in make_alerts(supported(load_artifact(artifact_name), N_GALAXY), n):
        producer.produce(ALERTS, key=key, value=value)
        producer.poll(0)
    producer.flush()


def main() -> None:
    """Print the table, keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    artifact = load_artifact(options.artifact)
    figures = cost_in_process(artifact, options.repeat)
    figures |= cost_of_page(options.artifact, options.pairs, options.seconds)
    write_report(options.out, "watching", figures, machine=machine, artifact=identify(artifact))


if __name__ == "__main__":
    main()
