"""The circuit breaker: whether the messages are bad, or the stream is.

A few undecodable messages are dead letters. When most are, the wrong topic, a new schema or a
broken publisher is more likely, and a night of alerts does not belong into the dead letters. The
loop asks `check` before it publishes a window; what it refuses is not committed and is read again
after a restart, when someone has put things right or raised `breaker.max_bad_fraction`.
"""

from collections import deque

from consumer.errors import BreakerError
from consumer.message import Window
from consumer.sections import BreakerSettings


class Breaker:
    """Remembers how many of the latest messages were bad."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._passed: deque[tuple[int, int]] = deque()

    def check(self, window: Window) -> None:
        """Raise BreakerError if this window, with those before it, says the stream is wrong."""
        counts = [*self._passed, _count(window)]
        messages, bad = (sum(column) for column in zip(*counts, strict=True))
        limit = self._settings.max_bad_fraction
        if messages >= self._settings.min_messages and bad > limit * messages:
            letter = window.rejected[-1] if window.rejected else None
            raise BreakerError(
                f"expected at most {limit:.0%} bad messages, got {bad} of the last {messages}"
                + (f"; the last one: {letter.stage}: {letter.error}" if letter else "")
            )

    def note(self, window: Window) -> None:
        """Remember a window that was published; forget those beyond the latest messages."""
        self._passed.append(_count(window))
        while sum(n for n, _ in self._passed) - self._passed[0][0] >= self._settings.window:
            self._passed.popleft()


def _count(window: Window) -> tuple[int, int]:
    return len(window.consumed), len(window.rejected)
