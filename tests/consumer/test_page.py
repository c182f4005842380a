"""What browsers are sent: every galaxy once, however slow they read."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import create_connection
from time import sleep
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from consumer.avro import Record, encode, schemas_path
from consumer.gallery import Follower, Gallery, Kept
from consumer.gather import fetch
from consumer.health import listen
from consumer.message import Result, Window
from consumer.page import NEWS_TICKS, Page, endpoint

SAMPLE = schemas_path() / "1" / "2" / "sample_data" / "posteriorSummary.json"


def show(gallery: Gallery, name: str) -> None:
    value = encode(json.loads(SAMPLE.read_text()) | {"objectId": name}, "posteriorSummary")
    gallery.add(Window((), (Result(None, value, (), "OK", "ZTF"),), ()))


def read_event(event: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return content


def names(event: dict[str, Any]) -> list[str]:
    return [galaxy["name"] for galaxy in event["galaxies"]]


def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.page.REQUEST_TIMEOUT_S", 0.2)
    page = Page(CollectorRegistry(), Follower(Gallery()))
    with (
        listen("page", "127.0.0.1", 0, endpoint(page, lambda _: {})) as port,
        create_connection(("127.0.0.1", port), timeout=30) as silent,
    ):
        assert silent.recv(1) == b""


@pytest.mark.parametrize("number", ["1", "-1", "9" * 5000])
def test_a_galaxy_that_is_not_kept_is_told(number: str) -> None:
    page = Page(CollectorRegistry(), Follower(Gallery()))
    with listen("page", "127.0.0.1", 0, endpoint(page, lambda _: {})) as port:
        status, text = fetch(port, f"/galaxies/{number}")
    assert (status, json.loads(text)) == (404, {"error": "This galaxy is no longer kept."})


def test_a_portrait_that_fails_says_why() -> None:
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    show(gallery, "a")
    page.tick()

    def portray(_: Record) -> Record:
        raise TimeoutError("took 120 s")

    with listen("page", "127.0.0.1", 0, endpoint(page, portray)) as port:
        status, text = fetch(port, "/galaxies/1")
    assert (status, json.loads(text)) == (
        503,
        {"error": "The posterior could not be drawn: took 120 s"},
    )


def test_the_photometry_of_the_last_galaxies_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.page.MAX_KEPT", 2)
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    for name in ("a", "b", "c"):
        show(gallery, name)
    page.tick()
    assert page.inputs_of(1) is None
    assert page.inputs_of(2) is not None
    assert page.inputs_of(3) is not None


def test_who_keeps_up_gets_the_news_alone() -> None:
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    events = page.events()
    assert names(read_event(next(events))) == []
    for name in ("a", "b"):
        show(gallery, name)
        page.tick()
        news = read_event(next(events))
        assert names(news) == [name]
        assert "fresh" not in news


def test_who_misses_ticks_gets_the_news_of_each() -> None:
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    events = page.events()
    next(events)
    for name in ("a", "b", "c"):
        show(gallery, name)
        page.tick()
    news = [read_event(event) for event in next(events).split(b"\n\n") if event]
    assert [names(event) for event in news] == [["a"], ["b"], ["c"]]


def test_who_is_far_behind_gets_all_that_is_kept() -> None:
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    events = page.events()
    next(events)
    expected = [str(i) for i in range(NEWS_TICKS + 1)]
    for name in expected:
        show(gallery, name)
        page.tick()
    event = read_event(next(events))
    assert event["fresh"]
    assert names(event) == expected


def test_a_summary_that_cannot_be_read_hides_no_other() -> None:
    gallery = Gallery()
    page = Page(CollectorRegistry(), Follower(gallery))
    gallery.add(Window((), (Result(None, b"of another version", (), "OK", "ZTF"),), ()))
    show(gallery, "a")
    page.tick()
    assert names(read_event(next(page.events()))) == ["a"]


class Slow:
    """Workers of which one takes its time."""

    n_asked = 0

    def live(self) -> tuple[bool, str]:
        return True, ""

    def ready(self) -> tuple[bool, str]:
        self.n_asked += 1
        return True, ""


def test_a_browser_that_comes_asks_no_worker() -> None:
    workers = Slow()
    page = Page(CollectorRegistry(), lambda: (), workers)
    for _ in range(3):
        assert read_event(next(page.events()))["numbers"]["ready"]
    assert workers.n_asked == 1


class Watched:
    """Knows how many look at the newest summaries at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0

    def __call__(self) -> Sequence[Kept]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        sleep(0.01)
        self.inside -= 1
        return ()


def test_ticks_of_two_threads_do_not_meet() -> None:
    watched = Watched()
    page = Page(CollectorRegistry(), watched)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(page.tick) for _ in range(12)]:
            done.result()
    assert watched.most == 1
