"""promtool's linter has nothing to say about the metrics, and the handbook names them all."""

import re
from contextlib import ExitStack
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from consumer.gather import Gathered
from consumer.health import Health, serve
from consumer.message import DeadLetter, Galaxy, Message, Result, Window
from consumer.metrics import Metrics
from consumer.refit import RefitMetrics
from consumer.settings import Settings
from consumer.shadow import Shadowed
from consumer.supervisor import Crew
from sedflow_core import Artifact

from .files import DEPLOY
from .promtool import promtool

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_metrics(tiny: Artifact) -> Metrics:
    """Metrics with a sample of every name."""
    metrics = Metrics(CollectorRegistry())
    message = Message(value=b"", topic="hosts", timestamp_ms=int(NOW.timestamp() * 1e3))
    result = Result(None, b"", (), "OK", "ZTF", ("flag",), ("u",), Galaxy(0.1, 10.0, 0.1))
    letter = DeadLetter(message, "decode", "DecodeError", "bad", NOW)
    metrics.count_window(Window((message, message), (result,), (letter,)), NOW)
    metrics.set_lag({("hosts", 0): 3}, NOW)
    metrics.set_artifact(tiny)
    with metrics.time("step"):
        pass
    return metrics


def test_one_process(tiny: Artifact) -> None:
    text = generate_latest(make_metrics(tiny).registry).decode()
    assert promtool("check", "metrics", text=text).strip() == ""


def test_several_processes(tiny: Artifact) -> None:
    registry = CollectorRegistry()
    with ExitStack() as stack:
        ports = {
            str(i): stack.enter_context(
                serve(Health(), make_metrics(tiny).registry, "127.0.0.1", 0)
            )
            for i in range(2)
        }
        registry.register(Gathered(lambda: ports))
        text = generate_latest(registry).decode()
    assert promtool("check", "metrics", text=text).strip() == ""


def declared(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    """Name -> labels and meaning of each metric, but for those of every process."""
    rows = {}
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            name = collector._name + ("_total" if isinstance(collector, Counter) else "")
            rows[name] = (*collector._labelnames, collector._documentation)
        elif isinstance(collector, Health):
            rows |= {family.name: (family.documentation,) for family in collector.collect()}
    return rows


def test_the_handbook_names_every_metric(tiny: Artifact) -> None:
    registry = make_metrics(tiny).registry
    registry.register(Health())
    RefitMetrics(registry)
    Shadowed(lambda *_, **__: Window((), (), ()), lambda _: [], registry)
    Crew(Settings(), 1, registry)
    _, table = (
        (DEPLOY / "README.md").read_text().split("| metric | labels | meaning |\n|---|---|---|\n")
    )
    rows = [re.findall(r"[^|`]+", row) for row in table.split("\n\n")[0].splitlines()]
    cells = ([cell.strip(" ,") for cell in row] for row in rows)
    told = [tuple(cell for cell in row if cell) for row in cells]
    assert {name: tuple(rest) for name, *rest in told} == declared(registry)
    assert len(told) == len(declared(registry))
