"""The breaker halts on a wrong stream and leaves a stream with bad messages alone."""

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from consumer.breaker import Breaker
from consumer.errors import BreakerError
from consumer.message import DeadLetter, Message, Window
from consumer.sections import BreakerSettings

SETTINGS = BreakerSettings(window=100, min_messages=20, max_bad_fraction=0.5)


def make_window(n: int, n_bad: int) -> Window:
    messages = tuple(Message(value=b"", offset=i) for i in range(n))
    now = datetime.now(UTC)
    letters = (DeadLetter(m, "decode", "DecodeError", "got noise", now) for m in messages[:n_bad])
    return Window(messages, (), tuple(letters))


def pass_through(windows: Iterable[Window]) -> int:
    """How many messages pass the breaker before it halts."""
    breaker, passed = Breaker(SETTINGS), 0
    for window in windows:
        try:
            breaker.check(window)
        except BreakerError:
            return passed
        breaker.note(window)
        passed += len(window.consumed)
    return passed


def test_half_bad_passes_and_more_does_not() -> None:
    assert pass_through(make_window(10, 5) for _ in range(50)) == 500
    assert pass_through(make_window(10, 6) for _ in range(50)) == 10


def test_a_wrong_stream_commits_nothing() -> None:
    with pytest.raises(BreakerError, match="got 32 of the last 32; the last one: decode: got no"):
        Breaker(SETTINGS).check(make_window(32, 32))


def test_few_messages_are_not_judged() -> None:
    assert pass_through([make_window(19, 19)]) == 19


def test_a_stream_that_turns_bad_halts_within_its_window() -> None:
    good, bad = [make_window(10, 0)] * 1000, [make_window(10, 10)] * 1000
    assert pass_through([*good, *bad]) == 10_000 + 50


def test_judging_alone_remembers_nothing() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(10):
        breaker.check(make_window(10, 10))
