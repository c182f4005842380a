"""OpenTelemetry traces: what happened to an alert on its way through. Needs the extra `tracing`.

Each alert is a span, child of the one that its message names in the header `traceparent`; its
summary carries it on. The work is done for many alerts at once: their spans are linked to the one
`step` that answered them, which has a child for each part of it, and `publish` is linked to the
steps since the last one. Dead letters keep their headers as they are.

Without an address to send them to there are no spans, and nothing of OpenTelemetry is loaded.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from time import time_ns
from typing import TYPE_CHECKING

from consumer.daemon import StepFunction
from consumer.message import DeadLetter, Headers, Message, Result, Sink, Window
from consumer.settings import Settings
from consumer.step import Watch
from sedflow_core.errors import MissingExtraError
from sedflow_core.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

MAX_STATE_BYTES = 512
"""Of a `tracestate` that is carried on; the standard asks for no more."""
MAX_LINKED = 64
"""Steps that one publication is linked to."""


@contextmanager
def open_traces(settings: Settings) -> Iterator["Traces | None"]:
    """Yield what traces, sent to the address of the settings at the end too; None without one.

    Raises MissingExtraError without the extra `tracing`.
    """
    endpoint = settings.tracing.endpoint
    if endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise MissingExtraError("opentelemetry", "tracing") from None
    slot = {"service.name": "sedflow", "service.instance.id": settings.output.slot}
    provider = TracerProvider(resource=Resource.create(slot))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    try:
        yield Traces(provider)
    finally:
        provider.shutdown()


class Traces:
    """Makes the spans of one worker."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer = provider.get_tracer("sedflow", __version__)
        self._steps: deque[Span] = deque(maxlen=MAX_LINKED)

    def watch(self, also: Watch) -> Watch:
        """Return what makes a span of each part of the step, and does what `also` does."""

        @contextmanager
        def both(name: str) -> Iterator[None]:
            with ExitStack() as stack:
                stack.enter_context(also(name))
                stack.enter_context(self._tracer.start_as_current_span(name))
                yield

        return both

    def over(self, step: StepFunction) -> StepFunction:
        """Return the step, its summaries with the context of their alerts in their headers."""

        def traced(
            messages: Sequence[Message], *, replay: bool, now: Callable[[], datetime]
        ) -> Window:
            begin_ns = time_ns()
            with self._tracer.start_as_current_span("step") as span:
                span.set_attribute("messaging.batch.message_count", len(messages))
                window = step(messages, replay=replay, now=now)
            self._steps.append(span)
            outcomes = [self._note(span, begin_ns, *pair) for pair in window.outcomes()]
            return replace(window, results=tuple(r for r in outcomes if isinstance(r, Result)))

        return traced

    def through(self, sink: Sink) -> Sink:
        """Return the sink, its publications with a span each."""
        return _TracedSink(sink, self._publication)

    def _publication(self) -> "AbstractContextManager[Span]":
        from opentelemetry.trace import Link

        links = [Link(span.get_span_context()) for span in self._steps]
        self._steps.clear()
        return self._tracer.start_as_current_span("publish", links=links)

    def _note(
        self, step: "Span", begin_ns: int, message: Message, outcome: Result | DeadLetter
    ) -> Result | DeadLetter:
        """Make the span of an alert; return its outcome, a summary with the span's context."""
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "alert",
            context=extract_context(message.headers),
            kind=SpanKind.CONSUMER,
            attributes=_describe(message),
            links=[Link(step.get_span_context())],
            start_time=begin_ns,
        )
        if isinstance(outcome, Result):
            span.set_attribute("sedflow.status", outcome.status)
            outcome = replace(outcome, headers=outcome.headers + inject_context(span))
        else:
            span.set_attribute("sedflow.stage", outcome.stage)
            span.set_status(Status(StatusCode.ERROR, outcome.error))
        span.end()
        return outcome


class _TracedSink:
    def __init__(
        self, sink: Sink, publication: "Callable[[], AbstractContextManager[Span]]"
    ) -> None:
        self._sink = sink
        self._publication = publication

    def publish(self, window: Window) -> None:
        """Publish under a span, which tells of the trouble if there is any."""
        with self._publication():
            self._sink.publish(window)

    def close(self) -> None:
        """Finish the output."""
        self._sink.close()


def _describe(message: Message) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": message.topic,
        "messaging.destination.partition.id": str(message.partition),
        "messaging.kafka.offset": message.offset,
    }


def extract_context(headers: Headers) -> "Context":
    """Return the context that the headers carry; what is not one is ignored."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {
        name: value.decode("ascii", errors="replace")
        for name, value in headers
        if value is not None
        and (name == "traceparent" or (name == "tracestate" and len(value) <= MAX_STATE_BYTES))
    }
    return TraceContextTextMapPropagator().extract(carrier)


def inject_context(span: "Span") -> Headers:
    """Return the headers that carry a span's context."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return tuple((name, value.encode()) for name, value in carrier.items())
