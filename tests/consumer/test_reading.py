"""Rates and latencies of two readings, against counts that are known."""

from datetime import UTC, datetime

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from consumer.message import Message, Result, Window
from consumer.metrics import LATENCY_BUCKETS, Metrics
from consumer.reading import calc_latency, calc_rate, read

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


def test_workers_are_told_apart() -> None:
    metrics = Metrics(CollectorRegistry())
    pass_by(metrics, [1.0])
    families = list(metrics.registry.collect())
    for family in families:
        family.samples = [s._replace(labels={**s.labels, "worker": "a"}) for s in family.samples]
    assert read(families, 0.0).workers == {"a": 1.0}
