"""Where reading a partition begins, and what is missing there.

A position may have lost its messages: retention deleted them before they were read, the topic was
deleted and made anew, or its end lies before the position. `find_gap` decides which it is.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Position(NamedTuple):
    """The offset to read next, and the id of the topic it belongs to where that is known."""

    offset: int
    topic_id: str | None = None


class Extent(NamedTuple):
    """What a partition holds now: offsets from `low` to below `high`, of the topic `topic_id`."""

    low: int
    high: int
    topic_id: str | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing before `start`."""

    start: int
    lost: int
    """How many offsets certainly were not read; 0 where it cannot be known."""
    reason: str


def find_gap(position: Position, extent: Extent) -> Gap | None:
    """Return what lies between a position and what the partition holds now; None: nothing."""
    offset, known_id = position
    if known_id and extent.topic_id and known_id != extent.topic_id:
        reason = f"the topic was made anew; what its predecessor held from {offset} on is gone"
        return Gap(extent.low, 0, reason)
    if offset < extent.low:
        lost = extent.low - offset
        return Gap(extent.low, lost, f"offsets {offset} to {extent.low - 1} were deleted unread")
    if offset > extent.high:
        reason = f"the position {offset} lies behind its end, {extent.high}"
        return Gap(extent.high, 0, reason)
    return None
