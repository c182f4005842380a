"""The live page: what passes through, seen as numbers and as galaxies.

One thread takes a reading every second and decodes the newest summaries; browsers get it as
server-sent events, all the same bytes. A browser that comes late first gets what is kept. A click
on a galaxy asks another process for its posterior, so the loop does not wait. Needs the extra
`page`.

    /               the page
    /events         server-sent events, one a second
    /galaxies/N     the posterior and the fit of galaxy N
"""

import gzip
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from time import time
from typing import Any

from prometheus_client import CollectorRegistry

from consumer.avro import Record, decode_summary
from consumer.errors import DecodeError
from consumer.gallery import MAX_KEPT, Follower, Gallery, Kept, Recent
from consumer.health import REQUEST_TIMEOUT_S, TEXT, Verdicts, listen, url_of
from consumer.message import number_of
from consumer.metrics import Metrics
from consumer.portrait import Artist
from consumer.reading import Reading, calc_latency, calc_rate, read
from consumer.settings import Settings
from sedflow_core.errors import MissingExtraError, SedflowError

LOG = logging.getLogger("sedflow.page")
DEFAULT_PORT = 9109
"""Where a replay shows its page unless the settings say otherwise."""
TICK_S = 1.0
RATE_TICKS = 15
HISTORY_TICKS = 600
NEWS_TICKS = 30
"""A browser that is further behind gets all that is kept again."""
MAX_DECODED = 200
"""Summaries decoded a second: of a faster stream the page shows a part, its numbers show all."""
MAX_TEXT = 100
"""Letters that are kept of a text of others."""
STATIC = Path(__file__).with_name("page_static")
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}

Brief = dict[str, Any]
Portray = Callable[[Record], dict[str, Any]]
"""Draws a galaxy from the `inputs` of its summary."""


def _decode(kept: Sequence[Kept]) -> Iterator[Record]:
    """Yield the summaries that can be read; a worker of another version may write others."""
    errors = []
    for each in kept:
        try:
            yield decode_summary(each.value)
        except DecodeError as error:
            errors.append(str(error))
    if errors:
        LOG.warning("summaries not shown", extra={"fields": {"n": len(errors), "last": errors[-1]}})


class Page:
    """What the browsers see, as of the last tick."""

    def __init__(
        self, registry: CollectorRegistry, recent: Recent, health: Verdicts | None = None
    ) -> None:
        self._registry = registry
        self._recent = recent
        self._health = health
        self._numbers = count(1)
        self._readings: deque[Reading] = deque(maxlen=RATE_TICKS + 1)
        self._described: dict[str, Any] = {}
        self._history: deque[list[float | None]] = deque(maxlen=HISTORY_TICKS)
        self._briefs: deque[Brief] = deque(maxlen=MAX_KEPT)
        self._inputs: dict[int, Record] = {}
        self._n_ticks = 0
        self._closed = False
        self._news: deque[bytes] = deque(maxlen=NEWS_TICKS)
        self._whole: tuple[int, bytes] | None = None
        self._ticking = Lock()
        self._ticked = Condition()
        self.tick()

    def tick(self) -> None:
        """Take a reading and look at the newest summaries; wake those who wait for it."""
        with self._ticking:
            self._tick()

    def _tick(self) -> None:
        reading = read(self._registry.collect(), time())
        self._readings.append(reading)
        fresh = [self._keep(summary) for summary in _decode(self._recent()[-MAX_DECODED:])]
        numbers = self._describe(self._readings[0], reading)
        moment = [reading.time_s, numbers["rate"], numbers["lag"], numbers["latency"]]
        with self._ticked:
            self._described = numbers
            self._history.append(moment)
            self._briefs.extend(fresh)
            self._news.append(_event({"numbers": numbers, "history": [moment], "galaxies": fresh}))
            self._n_ticks += 1
            self._ticked.notify_all()

    def events(self) -> Iterator[bytes]:
        """Yield what is kept, then each tick's news as it comes, until the page is closed."""
        with self._ticked:
            whole, seen = self._tell_all(), self._n_ticks
        yield whole
        while True:
            with self._ticked:
                while self._n_ticks == seen and not self._closed:
                    self._ticked.wait()
                if self._closed:
                    return
                news, seen = self._tell_since(seen), self._n_ticks
            yield news

    def _tell_since(self, seen: int) -> bytes:
        """Return the events since that tick."""
        n_missed = self._n_ticks - seen
        if n_missed > len(self._news):
            return self._tell_all()
        return b"".join(islice(self._news, len(self._news) - n_missed, None))

    def _tell_all(self) -> bytes:
        """Return the event with all that is kept, made once a tick however many ask for it."""
        if self._whole is None or self._whole[0] != self._n_ticks:
            kept = {"history": list(self._history), "galaxies": list(self._briefs)}
            whole = {"numbers": self._described, **kept, "fresh": True}
            self._whole = self._n_ticks, _event(whole)
        return self._whole[1]

    def close(self) -> None:
        """Let those who wait for the next tick go."""
        with self._ticked:
            self._closed = True
            self._ticked.notify_all()

    def inputs_of(self, number: int) -> Record | None:
        """Return the inputs of a galaxy that is still kept and has a posterior."""
        return self._inputs.get(number)

    def _keep(self, summary: Record) -> Brief:
        number = next(self._numbers)
        if summary["posterior"] is not None:
            self._inputs[number] = summary["inputs"]
            for old in list(islice(self._inputs, max(0, len(self._inputs) - MAX_KEPT))):
                del self._inputs[old]
        return describe_briefly(summary, number)

    def _describe(self, old: Reading, new: Reading) -> dict[str, Any]:
        ready, reason = self._health.ready() if self._health else (True, "")
        return {
            "rate": round(calc_rate(old, new), 2),
            "lag": new.lag,
            "lag_s": round(new.lag_s, 1),
            "latency": calc_latency(old, new, 0.5),
            "latency_99": calc_latency(old, new, 0.99),
            "published": new.published,
            "dead_letters": new.dead_letters,
            "statuses": new.statuses,
            "flags": new.flags,
            "artifact": new.artifact,
            "ready": ready,
            "reason": reason,
        }


def describe_briefly(summary: Record, number: int) -> Brief:
    """Return what the table and the plane show of a posteriorSummary."""
    posterior, inputs = summary["posterior"], summary["inputs"] or {}
    derived = posterior["derived"] if posterior else {}
    return {
        "n": number,
        "name": summary["objectId"][:MAX_TEXT],
        "survey": summary["survey"][:MAX_TEXT],
        "ra": summary["ra"],
        "dec": summary["dec"],
        "z": inputs.get("redshift"),
        "status": summary["status"],
        "reasons": [reason[:MAX_TEXT] for reason in summary["statusReasons"]],
        "trusted": summary["trust"] and summary["trust"]["trusted"],
        "mass": _interval(derived.get("log_mstar_surviving")),
        "sfr": _interval(derived.get("log_sfr_1gyr")),
    }


def _interval(marginal: Record | None) -> list[float] | None:
    if marginal is None:
        return None
    return [round(marginal[level], 3) for level in ("q16", "q50", "q84")]


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@contextmanager
def show(page: Page, artifact: str, host: str, port: int) -> Iterator[int]:
    """Serve the page while the body runs; yields the port.

    Raises SettingsError for an address that is taken, MissingExtraError without the extra `page`.
    """
    chart_library()
    stop = Event()
    ticker = Thread(target=_tick_until, args=(page, stop), name="page", daemon=True)
    with (
        closing(Artist(artifact)) as artist,
        listen("page", host, port, endpoint(page, artist)) as bound,
    ):
        ticker.start()
        try:
            yield bound
        finally:
            stop.set()
            page.close()
            ticker.join()


@contextmanager
def show_replay(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """Serve a page while the body replays; yields what `replay` is to be given for it."""
    metrics, gallery = Metrics(CollectorRegistry()), Gallery()
    page = Page(metrics.registry, Follower(gallery))
    host, port = settings.page.host, settings.page.port
    with show(page, settings.artifact.name, host, DEFAULT_PORT if port is None else port) as bound:
        print(f"live page: {url_of(host, bound)}/", flush=True)
        yield {"metrics": metrics, "gallery": gallery}
        page.tick()


def _tick_until(page: Page, stop: Event) -> None:
    while not stop.wait(TICK_S):
        try:
            page.tick()
        except Exception:  # what answers on a worker's port may be something else
            LOG.exception("page trouble")


@cache
def chart_library() -> bytes:
    """Return plotly.js, compressed. Raises MissingExtraError where it is not installed."""
    package = find_spec("plotly")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("plotly", "page")
    path = Path(package.submodule_search_locations[0], "package_data", "plotly.min.js")
    return gzip.compress(path.read_bytes(), 6)


def endpoint(page: Page, portray: Portray) -> type[BaseHTTPRequestHandler]:
    """Return what answers the browsers."""

    class Endpoint(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version = "sedflow"
        sys_version = ""

        def do_GET(self) -> None:
            self.connection.settimeout(None)  # a browser may read slowly what it asked for
            path = self.path.partition("?")[0]
            if path == "/events":
                self._stream()
            elif path == "/plotly.js":
                self._send(chart_library(), "text/javascript; charset=utf-8", gzipped=True)
            elif path in FILES:
                name, content_type = FILES[path]
                self._send((STATIC / name).read_bytes(), content_type)
            elif path.startswith("/galaxies/"):
                self._send_galaxy(number_of(path.removeprefix("/galaxies/")))
            else:
                self._send(b"not here\n", TEXT, HTTPStatus.NOT_FOUND)

        def _stream(self) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            try:
                for event in page.events():
                    self.wfile.write(event)
            except OSError:  # the browser left
                self.close_connection = True

        def _send_galaxy(self, number: int | None) -> None:
            inputs = None if number is None else page.inputs_of(number)
            if inputs is None:
                self._send_json({"error": "This galaxy is no longer kept."}, HTTPStatus.NOT_FOUND)
                return
            try:
                self._send_json(portray(inputs))
            except (SedflowError, TimeoutError, RuntimeError) as error:
                reason = f"The posterior could not be drawn: {error}"
                self._send_json({"error": reason}, HTTPStatus.SERVICE_UNAVAILABLE)

        def _send_json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
            self._send(json.dumps(content).encode(), "application/json", status)

        def _send(
            self,
            body: bytes,
            content_type: str,
            status: HTTPStatus = HTTPStatus.OK,
            *,
            gzipped: bool = False,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "Content-Security-Policy",
                "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'",
            )
            if gzipped:
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Cache-Control", "max-age=86400")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """A page that is looked at is no event of the daemon's log."""

    return Endpoint
