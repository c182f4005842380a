"""Throughput among poison: `make bench-poison`.

A real broker and `sedflow-consumer run --workers N` work on this machine. Stretches of good alerts
and stretches in which one message in ten is poison, of every kind in turn, take turns in one run;
so what else the machine does weighs on both. A message that kills its process costs a restart, not
throughput, and is no part of this.
"""

import argparse
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from sedflow_core import load_artifact
from tests.bench.load import make_alerts
from tests.bench.pure import supported
from tests.bench.report import identify, write_report
from tests.bench.stream import ALERTS, N_GALAXY, SUMMARIES, running_workers
from tests.bench.timing import describe_machine
from tests.integration.broker import N_PARTITION, committed_consumer, kafka_broker
from tests.integration.poison import KINDS, LARGE_BYTES, make_poison

LETTERS = f"{ALERTS}.sedflow.dlq"
STALL_S = 300.0
Pair = tuple[bytes, bytes | None]
"""Key and value of a message."""


@dataclass(frozen=True)
class Stretch:
    """How long some messages took, from the first sent to the last summary or letter read."""

    n_good: int
    n_poison: int
    wall_s: float

    @property
    def good_per_s(self) -> float:
        """Good alerts answered per second."""
        return self.n_good / self.wall_s


class Line:
    """A producer of alerts and the readers of all that becomes of them."""

    def __init__(self, bootstrap: str) -> None:
        largest = {"message.max.bytes": LARGE_BYTES + 200_000}
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, **largest})
        self._readers = [committed_consumer(bootstrap, topic) for topic in (SUMMARIES, LETTERS)]

    def time(self, good: list[Pair], poison: list[Pair]) -> Stretch:
        """Send the messages, mixed by chance, and wait for all of them."""
        messages = [*good, *poison]
        random.Random(len(messages)).shuffle(messages)
        start = time.monotonic()
        for key, value in messages:
            self._producer.produce(ALERTS, key=key, value=value)
            self._producer.poll(0)
        self._producer.flush()
        self._read(len(messages))
        return Stretch(len(good), len(poison), time.monotonic() - start)

    def close(self) -> None:
        """Close the readers."""
        for reader in self._readers:
            reader.close()

    def _read(self, n: int) -> None:
        deadline = time.monotonic() + STALL_S
        while n > 0:
            n -= sum(_count(reader) for reader in self._readers)
            if time.monotonic() > deadline:
                raise RuntimeError(f"expected every message within {STALL_S:.0f} s, {n} are left")


def _count(reader: Consumer) -> int:
    return sum(message.error() is None for message in reader.consume(500, 0.05))


def create_roomy_topics(bootstrap: str) -> None:
    """Create topics that take 10 MB."""
    roomy = {"max.message.bytes": str(LARGE_BYTES + 300_000)}
    names = (ALERTS, SUMMARIES, LETTERS)
    wanted = [NewTopic(name, N_PARTITION, 1, config=roomy) for name in names]
    client = AdminClient({"bootstrap.servers": bootstrap})
    for created in client.create_topics(wanted).values():
        created.result()


def run(artifact: str, n_workers: int, n_pair: int, n_good: int) -> list[tuple[Stretch, Stretch]]:
    """Time pairs of stretches, a clean one and a poisoned one, in turns which comes first."""
    galaxies = supported(load_artifact(artifact), N_GALAXY)
    good = list(make_alerts(galaxies, n_good))
    poison = [(sent.key, sent.value) for _, sent in make_poison(n_good // 9)]
    pairs = []
    with kafka_broker() as bootstrap:
        create_roomy_topics(bootstrap)
        with running_workers(bootstrap, artifact, n_workers):
            line = Line(bootstrap)
            line.time(good, poison)  # connections open, memory grows to its size
            for i in range(n_pair):
                stretches = [line.time(good, bad) for bad in ([], poison)[:: 1 if i % 2 else -1]]
                clean, poisoned = sorted(stretches, key=lambda stretch: stretch.n_poison)
                pairs.append((clean, poisoned))
            line.close()
    return pairs


def summarise(pairs: Iterable[tuple[Stretch, Stretch]]) -> dict[str, float]:
    """What the pairs came to."""
    pairs = list(pairs)
    ratios = [poisoned.good_per_s / clean.good_per_s for clean, poisoned in pairs]
    return {
        "kinds of poison": len(KINDS),
        "pairs of stretches": len(pairs),
        "good alerts per stretch": pairs[0][0].n_good,
        "poison messages per poisoned stretch": pairs[0][1].n_poison,
        "good alerts/s, clean": median(clean.good_per_s for clean, _ in pairs),
        "good alerts/s, poisoned": median(poisoned.good_per_s for _, poisoned in pairs),
        "ratio, poisoned to clean, median of pairs": median(ratios),
        "ratio, lowest pair": min(ratios),
        "ratio, highest pair": max(ratios),
    }


def main() -> None:
    """Run it, print its table, keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--good", type=int, default=9 * len(KINDS))
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    pairs = run(options.artifact, options.workers, options.pairs, options.good)
    artifact = identify(load_artifact(options.artifact))
    machine = describe_machine()
    write_report(options.out, "poison", summarise(pairs), machine=machine, artifact=artifact)


if __name__ == "__main__":
    main()
