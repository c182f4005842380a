"""A worker whose broker is away: how long it waits before it tries again."""

from threading import Event
from types import SimpleNamespace

import pytest

from consumer import worker as worker_module
from consumer.daemon import Tally
from consumer.errors import BrokerError
from consumer.settings import Settings
from consumer.worker import LONGEST_PAUSE_S, Worker

AWAY = BrokerError("output: expected an answer, got none")


class Pauses(Event):
    """Is set after so many pauses, which take no time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.lengths_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.lengths_s.append(timeout or 0.0)
        if len(self.lengths_s) == self.n:
            self.set()
        return self.is_set()


def pauses(monkeypatch: pytest.MonkeyPatch, n: int, *, served: bool) -> list[float]:
    """Seconds between attempts that fail after a long while, with or without partitions."""
    monkeypatch.setattr(worker_module, "LONG_LIFE_S", -1.0)
    stop = Pauses(n)
    worker = Worker(Settings(), stop)

    def serve() -> Tally:
        worker._source = SimpleNamespace(served=served)  # type: ignore[assignment]
        raise AWAY

    monkeypatch.setattr(worker, "_serve", serve)
    worker.work()
    return stop.lengths_s


def test_pauses_grow_and_stay_bounded_however_long_the_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths_s = pauses(monkeypatch, 1100, served=False)
    assert lengths_s[0] <= 1.0
    assert min(lengths_s[10:]) >= LONGEST_PAUSE_S / 2
    assert max(lengths_s) <= LONGEST_PAUSE_S


def test_pauses_begin_anew_after_partitions_were_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(pauses(monkeypatch, 20, served=True)) <= 1.0
