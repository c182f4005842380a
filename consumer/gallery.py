"""The latest summaries of a process, kept for the live page: their bytes, nothing decoded.

A summary that leaves the gallery is still in the output topic; nothing waits for it to be seen.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry

from consumer.gather import Ports, fetch_bytes
from consumer.message import Window, number_of
from consumer.settings import Settings

if TYPE_CHECKING:
    from consumer.health import Verdicts

MAX_KEPT = 2000
MAX_KEPT_BYTES = 20_000
"""Of a summary; ten times as many as usual, for one may hold texts of others that are longer."""


class Kept(NamedTuple):
    """One summary and its number; numbers rise by one and start anew with the process."""

    number: int
    value: bytes


Recent = Callable[[], Sequence[Kept]]
"""Returns the summaries that came since the last call, oldest first."""


class Gallery:
    """The last `MAX_KEPT` summaries; added by the loop, read by the HTTP threads."""

    def __init__(self) -> None:
        self._kept: deque[Kept] = deque(maxlen=MAX_KEPT)
        self._numbers = count(1)
        self._lock = Lock()

    def add(self, window: Window) -> None:
        """Keep the summaries of a published window."""
        with self._lock:
            small = (r.value for r in window.results if len(r.value) <= MAX_KEPT_BYTES)
            self._kept.extend(Kept(next(self._numbers), value) for value in small)

    def since(self, number: int) -> list[Kept]:
        """Return what came after `number`, oldest first; all where no number is so high yet."""
        with self._lock:
            newest = self._kept[-1].number if self._kept else 0
            n_new = newest - number if number <= newest else len(self._kept)
            n_new = min(n_new, len(self._kept))
            return [self._kept[i] for i in range(len(self._kept) - n_new, len(self._kept))]


class Follower:
    """Reads a gallery in this process from where it stopped."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._number = 0

    def __call__(self) -> Sequence[Kept]:
        """Return the summaries that came since the last call."""
        kept = self._gallery.since(self._number)
        if kept:
            self._number = kept[-1].number
        return kept


class WorkersFollower:
    """Reads the galleries of worker processes over HTTP."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._numbers: dict[int, int] = {}

    def __call__(self) -> Sequence[Kept]:
        """Return what came to any worker since the last call."""
        return [kept for port in self._ports().values() for kept in self._follow(port)]

    def _follow(self, port: int) -> list[Kept]:
        number = self._numbers.get(port, 0)
        status, body = fetch_bytes(port, f"/summaries?after={number}")
        kept = unpack(body) if status == 200 else []
        if kept:
            self._numbers[port] = kept[-1].number
        return kept


def open_page(
    settings: Settings, registry: CollectorRegistry, recent: Recent, health: "Verdicts"
) -> AbstractContextManager[int | None]:
    """Serve the live page while the body runs, where the settings have a port for it.

    Raises SettingsError for an address that is taken, MissingExtraError without the extra `page`.
    """
    page = settings.page
    if page.port is None:
        return nullcontext()
    from consumer.page import Page, show

    return show(Page(registry, recent, health), settings.artifact.name, page.host, page.port)


def pack(kept: Sequence[Kept]) -> bytes:
    """Return the summaries as one body: for each its number and length, 8 bytes each, then it."""
    return b"".join(number.to_bytes(8) + len(value).to_bytes(8) + value for number, value in kept)


def unpack(body: bytes) -> list[Kept]:
    """Undo `pack`."""
    kept, start = [], 0
    while start < len(body):
        number, length = (int.from_bytes(body[start + i : start + i + 8]) for i in (0, 8))
        kept.append(Kept(number, body[start + 16 : start + 16 + length]))
        start += 16 + length
    return kept


def after_of(query: Mapping[str, Sequence[str]]) -> int | None:
    """Return the number that `?after=` names, 0 without it; None where it is no number."""
    (text, *_) = query.get("after", ["0"])
    return number_of(text)
