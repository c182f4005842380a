"""promtool's linter has nothing to say about the metrics, of one process or of several."""

from contextlib import ExitStack
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest

from consumer.gather import Gathered
from consumer.health import Health, serve
from consumer.message import DeadLetter, Galaxy, Message, Result, Window
from consumer.metrics import Metrics
from sedflow_core import Artifact

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
