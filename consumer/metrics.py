"""The metrics of one process for Prometheus, all with the prefix `sedflow_`.

Labels are bounded: topics, partitions, surveys, statuses, stages, flags and bands, never an id. The
topics of all days count as one, by their entry of `input.topics`; lag goes with its partition.
Several processes behind one address are gathered by `consumer.gather`. What has no sample yet would
be missing from a query, so labels that are known beforehand start at 0.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from time import perf_counter, time
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from consumer.message import Place, Stage, Window
from sedflow_core import Artifact
from sedflow_core.summary import LEVELS

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
STAGE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
REDSHIFT_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
LOG_MASS_BUCKETS = (7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0, 10.5, 11.0, 11.5, 12.0)
WIDTH_BUCKETS = (0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
LATENCY_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)

MASS = "log_mstar_surviving"
VERDICTS = {True: "trusted", False: "doubted", None: "not_judged"}

Lag = Mapping[Place, int]
"""Messages behind, by topic and partition."""


class Metrics:
    """Every metric of one process, registered in `registry`.

    `entry_of` names the topic that a topic is counted as; each counts as itself without it.

    Raises ValueError when `registry` already holds metrics of the same names.
    """

    def __init__(
        self, registry: CollectorRegistry, entry_of: Callable[[str], str] = lambda topic: topic
    ) -> None:
        self.registry = registry
        self._entry_of = entry_of
        self._unread_since_s: dict[Place, float] = {}
        self._newest_s = 0.0
        disable_created_metrics()
        ProcessCollector(namespace="sedflow", registry=registry)
        self._declare_counters(registry)
        self._declare_histograms(registry)
        self._declare_gauges(registry)

    def _declare_counters(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sedflow_{name}", text, labels, registry=registry)

        self.consumed = counter("alerts_consumed_total", "Messages read and published", "topic")
        self.processed = counter(
            "alerts_processed_total", "Alerts that led to a summary", "survey", "status"
        )
        self.published = counter("summaries_published_total", "Summaries published")
        self.dead_letters = counter("dead_letters_total", "Messages dead-lettered", "stage")
        self.rebalances = counter("rebalances_total", "Changes of the partition assignment")
        self.commit_failures = counter("commit_failures_total", "Batches rolled back")
        self.retries = counter("retries_total", "Calls made again after an error", "target")
        self.support_flags = counter("support_flags_total", "Support flags set, by flag", "flag")
        self.missing_bands = counter("missing_band_total", "Bands without a flux, by band", "band")
        self.trust = counter("trust_verdicts_total", "Posteriors by the verdict on them", "verdict")
        self.offsets_lost = counter(
            "offsets_lost_total", "Messages the broker deleted before they were read"
        )
        for stage in get_args(Stage):
            self.dead_letters.labels(stage)
        for verdict in VERDICTS.values():
            self.trust.labels(verdict)
        for target in ("broker", "registry"):
            self.retries.labels(target)

    def _declare_histograms(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sedflow_{name}", text, labels, buckets=buckets, registry=registry)

        self.batch_size = histogram("batch_size", "Messages in one window", BATCH_BUCKETS)
        self.stage_duration = histogram(
            "stage_duration_seconds",
            "Time of poll, step or publish of a window, or of another stage of one of its batches",
            STAGE_BUCKETS,
            "stage",
        )
        self.latency = histogram(
            "end_to_end_latency_seconds",
            "From the input message's timestamp to its committed output",
            LATENCY_BUCKETS,
        )
        self.redshift = histogram(
            "result_redshift", "Redshifts of the galaxies with a posterior", REDSHIFT_BUCKETS
        )
        self.log_mass = histogram(
            "result_log_mass_dex", "Medians of log10 surviving mass [Msun]", LOG_MASS_BUCKETS
        )
        self.log_mass_width = histogram(
            "result_log_mass_width_dex",
            "Standard deviations of log10 surviving mass",
            WIDTH_BUCKETS,
        )

    def _declare_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sedflow_{name}", text, labels, registry=registry)

        self.lag_messages = gauge(
            "consumer_lag_messages",
            "High watermark minus own last committed position, markers before it skipped",
            "topic",
            "partition",
        )
        self.lag_seconds = gauge(
            "consumer_lag_seconds", "How long the oldest unread message waits; 0 without one"
        )
        self.last_message_timestamp = gauge(
            "last_message_timestamp_seconds", "Timestamp of the newest message committed"
        )
        self.halted = gauge("halted", "1 once the process has halted and waits for a person")
        self.partitions_paused = gauge("partitions_paused", "Partitions held but not fetched now")
        self.stage_started = gauge(
            "stage_started_timestamp_seconds",
            "When the stage under way began; 0 while it is not under way",
            "stage",
        )
        self.reference_width = gauge(
            "reference_log_mass_width_dex",
            "Median half width of log10 surviving mass in the validation, or of golden galaxies",
        )
        self.slot_info = gauge(
            "slot_info", "The slot of this worker, which no other live one has", "group", "slot"
        )
        self.artifact_info = gauge(
            "artifact_info", "The artifact that answers", "name", "version", "sha256"
        )

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Record how long the body takes as the duration of `stage`; no duration if it raises."""
        under_way = self.stage_started.labels(stage)
        under_way.set(time())
        start = perf_counter()
        try:
            yield
        finally:
            under_way.set(0)
        self.stage_duration.labels(stage).observe(perf_counter() - start)

    def count_window(self, window: Window, now: datetime) -> None:
        """Count a window that was published at `now`."""
        self.batch_size.observe(len(window.consumed))
        results = window.results
        for topic, n in collections.Counter(message.topic for message in window.consumed).items():
            self.consumed.labels(self._entry_of(topic)).inc(n)
        _add(self.processed, ((result.survey, result.status) for result in results))
        _add(self.support_flags, ((flag,) for result in results for flag in result.flags))
        _add(self.missing_bands, ((band,) for result in results for band in result.missing_bands))
        _add(self.dead_letters, ((letter.stage,) for letter in window.rejected))
        self.published.inc(len(results))
        galaxies = [result.galaxy for result in results if result.galaxy]
        _add(self.trust, ((VERDICTS[galaxy.trusted],) for galaxy in galaxies))
        for galaxy in galaxies:
            self.redshift.observe(galaxy.redshift)
            self.log_mass.observe(galaxy.log_mass)
            self.log_mass_width.observe(galaxy.log_mass_width)
        self._observe_timestamps(window, now.timestamp())

    def _observe_timestamps(self, window: Window, now_s: float) -> None:
        newest_s: dict[Place, float] = {}
        for message in window.consumed:
            if message.timestamp_ms is not None:
                time_s = min(message.timestamp_ms / 1e3, now_s)  # of a clock that is ahead, perhaps
                self.latency.observe(now_s - time_s)
                place = message.place
                newest_s[place] = max(time_s, newest_s.get(place, time_s))
        self._unread_since_s |= newest_s
        if newest_s:
            self._newest_s = max(self._newest_s, *newest_s.values())
            self.last_message_timestamp.set(self._newest_s)

    def set_lag(self, lag: Lag, now: datetime) -> None:
        """Replace the lag of every partition; partitions no longer held disappear.

        What is unread came after the last committed message of its partition, and after the
        partition was last seen without unread ones or, before that, was assigned.
        """
        now_s = now.timestamp()
        for topic, partition in self._unread_since_s.keys() - lag.keys():
            del self._unread_since_s[topic, partition]
            with suppress(KeyError):  # it may have gone before its lag was ever known
                self.lag_messages.remove(topic, str(partition))
        for topic in {topic for topic, _ in lag}:
            self.consumed.labels(self._entry_of(topic))
        for (topic, partition), behind in lag.items():
            self.lag_messages.labels(topic, str(partition)).set(behind)
            if behind == 0:
                self._unread_since_s[topic, partition] = now_s
        waits_s = [now_s - self._unread_since_s.setdefault(place, now_s) for place in lag]
        self.lag_seconds.set(max([0.0, *waits_s]))

    def set_artifact(self, artifact: Artifact) -> None:
        """Name the artifact that answers; its flags and bands are counted from 0."""
        self.artifact_info.labels(artifact.name, artifact.version, artifact.sha256).set(1)
        if MASS in artifact.derived_names:
            self.reference_width.set(find_reference_width(artifact))
        for flag in artifact.flag_names:
            self.support_flags.labels(flag)
        for band in artifact.bands.names:
            self.missing_bands.labels(band)


def find_reference_width(artifact: Artifact) -> float:
    """Return the median half width of log10 surviving mass that the validation recorded [dex].

    That of the golden galaxies where it recorded none.
    """
    widths = (artifact.manifest.get("validation") or {}).get("bias_and_width", {})
    recorded = widths.get(MASS)
    return float(recorded["median_half_width"]) if recorded else calc_golden_width(artifact)


def calc_golden_width(artifact: Artifact) -> float:
    """Return the median half width of log10 surviving mass of the golden galaxies [dex]."""
    column = (artifact.param_names + artifact.derived_names).index(MASS)
    golden = artifact.golden["quantiles"][:, column]
    widths = golden[:, LEVELS.index(0.84)] - golden[:, LEVELS.index(0.16)]
    return float(widths.median()) / 2.0


def _add(counter: Counter, labels: Iterable[tuple[str, ...]]) -> None:
    """Count each tuple of label values; few are different, so they are added up first."""
    for values, n in collections.Counter(labels).items():
        counter.labels(*values).inc(n)
