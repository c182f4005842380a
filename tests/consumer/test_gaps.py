"""What lies between a position and what a partition holds."""

import pytest

from consumer.gaps import Extent, Position, find_gap


@pytest.mark.parametrize("offset", [5, 7, 10])
@pytest.mark.parametrize("ids", [("x", "x"), (None, "x"), ("x", None)])
def test_a_position_within_the_partition_has_no_gap(
    offset: int, ids: tuple[str | None, str | None]
) -> None:
    assert find_gap(Position(offset, ids[0]), Extent(5, 10, ids[1])) is None


def test_deleted_messages_are_named_and_counted() -> None:
    gap = find_gap(Position(2, "x"), Extent(5, 10, "x"))
    assert gap is not None
    assert (gap.start, gap.lost) == (5, 3)
    assert "offsets 2 to 4 were deleted unread" in gap.reason


def test_a_topic_made_anew_is_read_from_its_beginning() -> None:
    gap = find_gap(Position(7, "x"), Extent(0, 10, "y"))
    assert gap is not None
    assert (gap.start, gap.lost) == (0, 0)


def test_a_position_behind_the_end_goes_back_to_it() -> None:
    gap = find_gap(Position(11), Extent(5, 10))
    assert gap is not None
    assert gap.start == 10
