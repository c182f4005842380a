"""A trace through the real broker and the daemon, read by a collector of OTLP."""

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from .conftest import Daemon, Topics
from .traffic import Sent, make_good, produce, read_committed

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """A collector; yields its address and the spans it has."""
    spans: list[Span] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def test_the_context_goes_through(
    bootstrap: str, topics: Topics, start_daemon: Callable[..., Daemon]
) -> None:
    context = f"00-{TRACE}-{PARENT}-01".encode()
    now_ms = int(time.time() * 1e3)
    good = [Sent(s.key, s.value, [("traceparent", context)], now_ms) for s in make_good(5)]
    bad = Sent(b"bad", b"rubbish", [("traceparent", context)], now_ms)
    with collector() as (address, spans):
        daemon = start_daemon(environment={"SEDFLOW_TRACING__ENDPOINT": address})
        produce(bootstrap, topics.alerts, [*good, bad])
        summaries = read_committed(bootstrap, topics.summaries, at_least=5)
        (letter,) = read_committed(bootstrap, topics.dead_letters, at_least=1)
        assert daemon.stop() == 0, daemon.log.read_text()
    alerts = [span for span in spans if span.name == "alert"]
    assert {(s.trace_id.hex(), s.parent_span_id.hex()) for s in alerts} == {(TRACE, PARENT)}
    assert len(alerts) == 6
    carried = {dict(m.headers() or [])["traceparent"].decode() for m in summaries}
    answered = {s.span_id.hex() for s in alerts if not s.status.message}
    assert carried == {f"00-{TRACE}-{span}-01" for span in answered}
    assert dict(letter.headers() or [])["traceparent"] == context
    steps = {span.span_id for span in spans if span.name == "step"}
    assert {link.span_id for span in alerts for link in span.links} <= steps
    assert {"decode", "infer", "encode", "publish"} <= {span.name for span in spans}
