"""The daemon's Prometheus metrics, all with the prefix `sedflow_`.

Labels are bounded: topics, partitions, surveys, statuses, stages, flags and bands, never an id.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.message import Window

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
STAGE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LATENCY_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)

Lag = Mapping[tuple[str, int], int]
"""Messages behind, by topic and partition."""


class Metrics:
    """Every metric of one process, registered in `registry`.

    Raises ValueError when `registry` already holds metrics of the same names.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._lagging: set[tuple[str, int]] = set()
        self._newest_s: float | None = None
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
        self.commit_failures = counter("commit_failures_total", "Windows rolled back")
        self.retries = counter("retries_total", "Calls made again after an error", "target")
        self.support_flags = counter("support_flags_total", "Support flags set, by flag", "flag")
        self.missing_bands = counter("missing_band_total", "Bands without a flux, by band", "band")

    def _declare_histograms(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sedflow_{name}", text, labels, buckets=buckets, registry=registry)

        self.batch_size = histogram("batch_size", "Messages in one window", BATCH_BUCKETS)
        self.stage_duration = histogram(
            "stage_duration_seconds", "Time one window takes, by stage", STAGE_BUCKETS, "stage"
        )
        self.latency = histogram(
            "end_to_end_latency_seconds",
            "From the input message's timestamp to its committed output",
            LATENCY_BUCKETS,
        )

    def _declare_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sedflow_{name}", text, labels, registry=registry)

        self.lag_messages = gauge(
            "consumer_lag_messages",
            "High watermark minus own last committed position",
            "topic",
            "partition",
        )
        self.lag_seconds = gauge(
            "consumer_lag_seconds", "Age of the last committed message; 0 with nothing to read"
        )
        self.last_message_timestamp = gauge(
            "last_message_timestamp_seconds", "Timestamp of the newest message committed"
        )
        self.artifact_info = gauge(
            "artifact_info", "The artifact that answers", "name", "version", "sha256"
        )

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Record how long the body takes as the duration of `stage`."""
        start = perf_counter()
        yield
        self.stage_duration.labels(stage).observe(perf_counter() - start)

    def count_window(self, window: Window, now: datetime) -> None:
        """Count a window that was published at `now`."""
        self.batch_size.observe(len(window.consumed))
        for message in window.consumed:
            self.consumed.labels(message.topic).inc()
        for result in window.results:
            self.processed.labels(result.survey, result.status).inc()
            for flag in result.flags:
                self.support_flags.labels(flag).inc()
            for band in result.missing_bands:
                self.missing_bands.labels(band).inc()
        self.published.inc(len(window.results))
        for letter in window.rejected:
            self.dead_letters.labels(letter.stage).inc()
        self._observe_timestamps(window, now.timestamp())

    def _observe_timestamps(self, window: Window, now_s: float) -> None:
        times = [m.timestamp_ms / 1e3 for m in window.consumed if m.timestamp_ms is not None]
        for time_s in times:
            self.latency.observe(max(0.0, now_s - time_s))
        if times:
            self._newest_s = max(times)
            self.last_message_timestamp.set(self._newest_s)

    def set_lag(self, lag: Lag, now: datetime) -> None:
        """Replace the lag of every partition; partitions no longer held disappear."""
        for topic, partition in self._lagging - lag.keys():
            self.lag_messages.remove(topic, str(partition))
        for (topic, partition), behind in lag.items():
            self.lag_messages.labels(topic, str(partition)).set(behind)
        self._lagging = set(lag)
        newest_s = self._newest_s if any(lag.values()) else None
        self.lag_seconds.set(0.0 if newest_s is None else max(0.0, now.timestamp() - newest_s))

    def set_artifact(self, name: str, version: str, sha256: str) -> None:
        """Name the artifact that answers."""
        self.artifact_info.labels(name, version, sha256).set(1)
