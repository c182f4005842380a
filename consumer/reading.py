"""What people want to know of the metrics: one reading, and what happened between two.

The page reads its own process, `sedflow-consumer top` any daemon over HTTP; both see the same.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from prometheus_client import Metric

Counts = dict[str, float]


def _counts() -> Counts:
    return defaultdict(float)


@dataclass(slots=True)
class Reading:
    """The metrics at one time, summed over topics and partitions, counters of some by worker."""

    time_s: float
    published: float = 0.0
    dead_letters: float = 0.0
    lag: float = 0.0
    lag_s: float = 0.0
    votes: list[bool] = field(default_factory=list)
    """Whether each process that is to answer alerts is ready."""
    artifact: str = ""
    statuses: Counts = field(default_factory=_counts)
    flags: Counts = field(default_factory=_counts)
    consumed: Counts = field(default_factory=_counts)
    """Alerts read, by worker; a single process has no name."""
    latency: dict[float, Counts] = field(default_factory=lambda: defaultdict(_counts))
    """Alerts by the upper bound of their latency [s], cumulative, and by worker."""

    @property
    def ready(self) -> bool:
        """Whether there is a process, and each is ready."""
        return bool(self.votes) and all(self.votes)


def read(families: Iterable[Metric], time_s: float) -> Reading:
    """Return the reading of a scrape at `time_s`."""
    reading = Reading(time_s)
    for family in families:
        for sample in family.samples:
            _note(reading, sample.name.removeprefix("sedflow_"), sample.labels, sample.value)
    return reading


def _note(reading: Reading, name: str, labels: dict[str, str], value: float) -> None:
    worker = labels.get("worker", "")
    match name:
        case "alerts_consumed_total":
            reading.consumed[worker] += value
        case "summaries_published_total":
            reading.published += value
        case "dead_letters_total":
            reading.dead_letters += value
        case "consumer_lag_messages":
            reading.lag += value
        case "consumer_lag_seconds":
            reading.lag_s = max(reading.lag_s, value)
        case "ready":
            reading.votes.append(value == 1)
        case "artifact_info":
            reading.artifact = f"{labels['name']} {labels['version']}"
        case "alerts_processed_total":
            reading.statuses[labels["status"]] += value
        case "support_flags_total":
            reading.flags[labels["flag"]] += value
        case "end_to_end_latency_seconds_bucket":
            reading.latency[float(labels["le"])][worker] += value


def calc_rates(old: Reading, new: Reading) -> Counts:
    """Return the alerts per second of each worker between two readings; 0 after its restart."""
    elapsed_s = new.time_s - old.time_s
    if elapsed_s <= 0:
        return dict.fromkeys(new.consumed, 0.0)
    return {
        worker: count / elapsed_s for worker, count in _grown(old.consumed, new.consumed).items()
    }


def calc_rate(old: Reading, new: Reading) -> float:
    """Return the alerts per second of all workers between two readings."""
    return sum(calc_rates(old, new).values())


def _grown(old: Counts, new: Counts) -> Counts:
    """Return how much each count grew; 0 for one that began anew."""
    return {worker: max(0.0, count - old.get(worker, 0.0)) for worker, count in new.items()}


def calc_latency(old: Reading, new: Reading, level: float) -> float | None:
    """Return the latency [s] that a fraction `level` stays below, from the buckets' bounds.

    None where no alert came between the readings; the largest finite bound where it is beyond.
    """
    bounds = sorted(new.latency)
    counts = [
        sum(_grown(old.latency.get(bound, {}), new.latency[bound]).values()) for bound in bounds
    ]
    if not counts or counts[-1] == 0:
        return None
    wanted, low, below = level * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            return low if bound == inf else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low
