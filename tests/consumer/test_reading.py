"""Rates and latencies of two readings, against counts that are known."""

from datetime import UTC, datetime

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily

from consumer.message import Message, Result, Window
from consumer.metrics import LATENCY_BUCKETS, Metrics
from consumer.reading import Reading, calc_latency, calc_rate, calc_rates, read

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def pass_by(metrics: Metrics, latencies_s: list[float]) -> None:
    messages = tuple(
        Message(b"", topic="hosts", timestamp_ms=int((NOW.timestamp() - s) * 1e3))
        for s in latencies_s
    )
    results = tuple(Result(None, b"", (), "OK", "ZTF") for _ in messages)
    metrics.count_window(Window(messages, results, ()), NOW)


def test_the_rate_is_what_came_between() -> None:
    metrics = Metrics(CollectorRegistry())
    pass_by(metrics, [1.0] * 30)
    old = read(metrics.registry.collect(), 100.0)
    pass_by(metrics, [1.0] * 50)
    new = read(metrics.registry.collect(), 105.0)
    assert calc_rate(old, new) == 10.0
    assert calc_rate(new, old) == 0.0
    assert new.statuses == {"OK": 80.0}


@pytest.mark.parametrize("level", [0.1, 0.5, 0.99])
def test_the_latency_lies_in_the_bucket_of_the_true_quantile(level: float) -> None:
    latencies = np.random.default_rng(1).lognormal(1.0, 1.5, 2000)
    metrics = Metrics(CollectorRegistry())
    old = read(metrics.registry.collect(), 0.0)
    pass_by(metrics, latencies.tolist())
    found = calc_latency(old, read(metrics.registry.collect(), 1.0), level)
    bounds = [0.0, *LATENCY_BUCKETS]
    upper = np.searchsorted(bounds, np.quantile(latencies, level))
    assert found is not None
    assert bounds[upper - 1] <= found <= bounds[upper]


@pytest.mark.parametrize(
    ("values", "ready"), [([], False), ([1.0], True), ([1.0, 0.0], False), ([1.0, 1.0], True)]
)
def test_it_is_ready_where_somebody_says_so_and_nobody_else(
    values: list[float], ready: bool
) -> None:
    family = GaugeMetricFamily("sedflow_ready", "", labels=["worker"])
    for i, value in enumerate(values):
        family.add_metric([str(i)], value)
    assert read([family], 0.0).ready is ready


def test_no_alert_has_no_latency() -> None:
    reading = read(Metrics(CollectorRegistry()).registry.collect(), 0.0)
    assert calc_latency(reading, reading, 0.5) is None


def read_workers(time_s: float, **workers: Metrics) -> Reading:
    """Return the reading of a supervisor of these workers."""
    families: list[Metric] = []
    for name, metrics in workers.items():
        for family in metrics.registry.collect():
            named = [s._replace(labels={**s.labels, "worker": name}) for s in family.samples]
            family.samples = named
            families.append(family)
    return read(families, time_s)


def test_a_worker_that_begins_anew_hides_nothing_of_the_others() -> None:
    dying, steady, fresh = (Metrics(CollectorRegistry()) for _ in range(3))
    pass_by(dying, [8.0] * 1000)
    pass_by(steady, [8.0] * 1000)
    old = read_workers(100.0, a=dying, b=steady)
    pass_by(steady, [0.3] * 50)
    new = read_workers(105.0, a=fresh, b=steady)
    assert calc_rates(old, new) == {"b": 10.0}
    assert calc_rate(old, new) == 10.0
    found = calc_latency(old, new, 0.5)
    assert found is not None
    assert found < 1.0
