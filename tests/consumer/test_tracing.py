"""Traces: an alert's span goes on from its producer's, and its summary carries it on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from consumer.errors import WindowAbortedError
from consumer.message import Message, Window
from consumer.settings import Settings
from consumer.step import Step
from consumer.tracing import Traces, open_traces
from sedflow_core import Artifact

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = ("traceparent", f"00-{TRACE}-{PARENT}-01".encode())


class Kept:
    """A sink that keeps what it was given, or refuses it."""

    def __init__(self, refuses: bool = False) -> None:
        self.windows: list[Window] = []
        self._refuses = refuses

    def publish(self, window: Window) -> None:
        if self._refuses:
            raise WindowAbortedError("no")
        self.windows.append(window)

    def close(self) -> None:
        pass


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Traces(provider)
    provider.shutdown()


@pytest.fixture
def messages(make_message: Callable[..., Message]) -> list[Message]:
    """One in a trace, one with a header that is none, one without, one that cannot be read."""
    return [
        replace(make_message(1), headers=(("other", None), CONTEXT, ("tracestate", b"a=1"))),
        replace(make_message(2), headers=(("traceparent", b"\xff"),)),
        make_message(3, redshift=None),
        Message(b"rubbish", topic="hosts", offset=4, headers=(CONTEXT,)),
    ]


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def test_an_alert_is_followed(
    tiny: Artifact,
    settings: Settings,
    messages: list[Message],
    now: Callable[[], datetime],
    traces: Traces,
    exporter: InMemorySpanExporter,
) -> None:
    step = Step(tiny, settings, traces.watch(nullcontext))
    window = traces.over(step)(messages, replay=False, now=now)
    sink = Kept()
    traces.through(sink).publish(window)
    spans = exporter.get_finished_spans()
    (whole,), (publication,) = named(spans, "step"), named(spans, "publish")
    for name in ("decode", "infer", "encode"):
        (part,) = named(spans, name)
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
    assert [link.context.span_id for link in publication.links] == [whole.context.span_id]
    alerts = named(spans, "alert")
    assert [s.attributes["messaging.kafka.offset"] for s in alerts if s.attributes] == [1, 2, 3, 4]
    assert all(s.links[0].context.span_id == whole.context.span_id for s in alerts)
    first, second, third, bad = alerts
    assert first.parent is not None
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, PARENT)
    assert second.parent is None
    assert third.parent is None
    assert f"{bad.context.trace_id:032x}" == TRACE
    assert bad.status.status_code is StatusCode.ERROR
    headers = [dict(result.headers) for result in sink.windows[0].results]
    expected = f"00-{TRACE}-{first.context.span_id:016x}-01".encode()
    assert headers[0] == {"traceparent": expected, "tracestate": b"a=1"}
    assert all(
        f"{span.context.span_id:016x}".encode() in header["traceparent"]
        for span, header in zip((first, second, third), headers, strict=True)
    )


def test_the_summaries_and_letters_are_the_same(
    step: Step, messages: list[Message], now: Callable[[], datetime], traces: Traces
) -> None:
    plain = step(messages, replay=False, now=now)
    traced = traces.over(step)(messages, replay=False, now=now)
    assert traced.rejected == plain.rejected
    assert [replace(r, headers=()) for r in traced.results] == list(plain.results)
    assert all(result.headers == () for result in plain.results)


def test_a_window_rolled_back_is_told(
    step: Step,
    messages: list[Message],
    now: Callable[[], datetime],
    traces: Traces,
    exporter: InMemorySpanExporter,
) -> None:
    window = traces.over(step)(messages, replay=False, now=now)
    with pytest.raises(WindowAbortedError):
        traces.through(Kept(refuses=True)).publish(window)
    (publication,) = named(exporter.get_finished_spans(), "publish")
    assert publication.status.status_code is StatusCode.ERROR


def test_without_an_address_there_are_none() -> None:
    with open_traces(Settings()) as traces:
        assert traces is None
