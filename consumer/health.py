"""The daemon's HTTP endpoints: `/livez`, `/readyz`, `/metrics` and `/summaries`, GET only.

Live: the loop polled within the last minute, or said that it waits; a stuck process is not. Ready:
the artifact has answered once and the broker has assigned partitions to this process.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6
from threading import Thread
from time import monotonic
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from consumer.errors import SettingsError
from consumer.gallery import Gallery, after_of, pack
from consumer.gather import tell_ready
from consumer.message import MAX_DIGITS

LOG = logging.getLogger("sedflow.health")

MAX_SILENCE_S = 60.0
REQUEST_TIMEOUT_S = 5.0
TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


class Verdicts(Protocol):
    """What `/livez` and `/readyz` answer: whether it is so, and the reason."""

    def live(self) -> tuple[bool, str]:
        """Whether the process is at work; one that is not should be restarted."""

    def ready(self) -> tuple[bool, str]:
        """Whether alerts are answered now."""


class Health(Collector):
    """What the daemon knows of itself; written by its loop, read by the HTTP threads.

    Registered with the metrics it adds `sedflow_live` and `sedflow_ready`.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._last_beat = clock()
        self.warmed = False
        self.assigned = False

    def beat(self) -> None:
        """Note that the loop is at work."""
        self._last_beat = self._clock()

    def silence_s(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last_beat

    def live(self) -> tuple[bool, str]:
        """Whether the loop polls, and why not."""
        silence = self.silence_s()
        if silence > MAX_SILENCE_S:
            return False, f"expected a poll every {MAX_SILENCE_S:.0f} s, got none for {silence:.0f}"
        return True, "polling"

    def ready(self) -> tuple[bool, str]:
        """Whether alerts are answered now, and why not."""
        if not self.warmed:
            return False, "the artifact is not warmed up"
        if not self.assigned:
            return False, "no partitions are assigned"
        return True, "ready"

    def collect(self) -> Iterator[Metric]:
        """Yield both verdicts, 1 for yes."""
        yield GaugeMetricFamily("sedflow_live", "1 while the loop polls", self.live()[0])
        yield tell_ready(self.ready()[0])


class Server(ThreadingHTTPServer):
    """A server whose trouble goes to the log."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what a request raised, unless its client went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            LOG.exception("http trouble")


class Server6(Server):
    """The same for addresses of IPv6."""

    address_family = AF_INET6


@contextmanager
def serve(
    health: Verdicts,
    registry: CollectorRegistry,
    host: str,
    port: int,
    gallery: Gallery | None = None,
) -> Iterator[int]:
    """Answer over HTTP while the body runs; yields the port, which is a free one for port 0.

    With a gallery, `/summaries?after=N` answers with its summaries for the page of the parent.

    Raises SettingsError when the address cannot be bound.
    """
    with listen("http", host, port, _endpoint(health, registry, gallery)) as bound:
        yield bound


def url_of(host: str, port: int) -> str:
    """Return where an endpoint listens, as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def listen(
    section: str, host: str, port: int, endpoint: type[BaseHTTPRequestHandler]
) -> Iterator[int]:
    """Serve an endpoint while the body runs; yields the port. Raises SettingsError as `serve`."""
    try:
        server = (Server6 if ":" in host else Server)((host, port), endpoint)
    except OSError as error:
        raise SettingsError(
            f"{section}: expected a free address, got {host}:{port}: {error}"
        ) from error
    thread = Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _endpoint(
    health: Verdicts, registry: CollectorRegistry, gallery: Gallery | None
) -> type[BaseHTTPRequestHandler]:
    class Endpoint(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version = "sedflow"
        sys_version = ""

        def do_GET(self) -> None:
            status, content_type, body = _answer(self.path, health, registry, gallery)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes arrive every few seconds: they are not logged."""

    return Endpoint


def _answer(
    path: str, health: Verdicts, registry: CollectorRegistry, gallery: Gallery | None
) -> tuple[HTTPStatus, str, bytes]:
    url = urlsplit(path)
    match url.path:
        case "/summaries" if gallery is not None:
            after = after_of(parse_qs(url.query))
            if after is None:
                reason = f"after: expected a number of at most {MAX_DIGITS} digits\n"
                return HTTPStatus.BAD_REQUEST, TEXT, reason.encode()
            return HTTPStatus.OK, BYTES, pack(gallery.since(after))
        case "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)
        case "/livez":
            return _verdict(*health.live())
        case "/readyz":
            return _verdict(*health.ready())
    return HTTPStatus.NOT_FOUND, TEXT, b"expected /livez, /readyz or /metrics\n"


def _verdict(good: bool, reason: str) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return status, TEXT, f"{reason}\n".encode()
