"""The gallery keeps the newest summaries, for this process or for a parent over HTTP."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from consumer.gallery import (
    MAX_KEPT,
    Follower,
    Gallery,
    Kept,
    WorkersFollower,
    pack,
    unpack,
)
from consumer.gather import fetch
from consumer.health import Health, serve
from consumer.message import MAX_DIGITS, Result, Window


def make_window(*values: bytes) -> Window:
    return Window((), tuple(Result(None, value, (), "OK", "ZTF") for value in values), ())


def test_a_follower_sees_each_summary_once_in_order() -> None:
    gallery = Gallery()
    follow = Follower(gallery)
    seen = []
    for i in range(5):
        gallery.add(make_window(b"%d-a" % i, b"%d-b" % i))
        seen += [kept.value for kept in follow()]
    assert seen == [b"%d-%s" % (i, x) for i in range(5) for x in (b"a", b"b")]
    assert follow() == []


def test_it_forgets_the_oldest() -> None:
    gallery = Gallery()
    gallery.add(make_window(*(b"%d" % i for i in range(MAX_KEPT + 10))))
    kept = gallery.since(0)
    assert len(kept) == MAX_KEPT
    assert kept[0] == Kept(11, b"10")
    assert gallery.since(kept[-1].number) == []


def test_numbers_of_another_gallery_hide_nothing() -> None:
    """A worker that begins where one died counts anew."""
    gallery = Gallery()
    gallery.add(make_window(b"a", b"b"))
    assert [kept.value for kept in gallery.since(1_000)] == [b"a", b"b"]


@given(st.lists(st.tuples(st.integers(0, 2**63), st.binary())))
def test_packing_is_undone(kept: list[tuple[int, bytes]]) -> None:
    assert unpack(pack([Kept(*item) for item in kept])) == [Kept(*item) for item in kept]


def test_the_summaries_of_workers_come_together() -> None:
    galleries = {name: Gallery() for name in ("0", "1")}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(serve(Health(), CollectorRegistry(), "127.0.0.1", 0, gallery))
            for name, gallery in galleries.items()
        }
        follow = WorkersFollower(lambda: {**ports, "gone": 1})
        for gallery in galleries.values():
            gallery.add(make_window(b"first", b"\x00\xff"))
        assert [kept.value for kept in follow()] == [b"first", b"\x00\xff"] * 2
        assert follow() == []
        galleries["1"].add(make_window(b"next"))
        assert [kept.value for kept in follow()] == [b"next"]


@pytest.mark.parametrize(
    ("after", "status"),
    [
        ("", 200),
        ("?after=0", 200),
        ("?after=-1", 400),
        ("?after=" + "9" * MAX_DIGITS, 200),
        ("?after=" + "9" * 5000, 400),  # more digits than Python reads
    ],
)
def test_what_is_asked_for_is_a_number(after: str, status: int) -> None:
    with serve(Health(), CollectorRegistry(), "127.0.0.1", 0, Gallery()) as port:
        assert fetch(port, "/summaries" + after)[0] == status
