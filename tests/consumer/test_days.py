"""Which earlier days of a dated topic are read on."""

from datetime import date

import pytest

from consumer.days import choose_unfinished, date_of, find_earlier
from consumer.sections import InputSettings

DAY = date(2026, 3, 9)
SETTINGS = InputSettings(topics=("ztf_{date}_p1", "fixed"), days=2)


def topics(*days: int) -> dict[date, str]:
    return {date(2026, 3, day): f"ztf_2026030{day}_p1" for day in days}


def test_earlier_days_are_those_before_the_last_ones() -> None:
    present = [*topics(3, 6, 7, 8, 9).values(), "fixed", "ztf_p1", "ztf_20260305_p2", "ztf_2026_p1"]
    assert find_earlier(SETTINGS, DAY, present) == {"ztf_{date}_p1": topics(3, 6, 7)}


def test_what_is_read_today_is_no_earlier_day() -> None:
    """Neither a month that is not over, nor a topic that is named besides."""
    monthly = InputSettings(topics=("ztf_{date}",), date_format="%Y%m")
    months = ["ztf_202601", "ztf_202602", "ztf_202603"]
    earlier = {date(2026, 1, 1): months[0], date(2026, 2, 1): months[1]}
    assert find_earlier(monthly, DAY, months) == {"ztf_{date}": earlier}
    named = InputSettings(topics=("ztf_{date}_p1", "ztf_20260303_p1"))
    assert find_earlier(named, DAY, topics(3, 6).values()) == {"ztf_{date}_p1": topics(6)}


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        ({}, ()),  # nothing was ever begun: what is older than the last days is history
        ({4: True}, (5, 6)),  # a day that nobody began is none that was read
        ({4: False, 6: True}, (4, 5)),
        ({6: False}, (6,)),
        ({6: True}, ()),
    ],
)
def test_reading_goes_on_from_the_first_day_that_was_begun(
    finished: dict[int, bool], expected: tuple[int, ...]
) -> None:
    named = {topic: finished[day.day] for day, topic in topics(*finished).items()}
    assert choose_unfinished(topics(3, 4, 5, 6), named) == list(topics(*expected).values())


def test_dates_are_read_as_they_are_written() -> None:
    dashed = InputSettings(topics=("a.{date}",), date_format="%Y-%m-%d")
    assert date_of(dashed, "a.{date}", "a.2026-03-09") == DAY
    assert date_of(dashed, "a.{date}", "a.20260309") is None
    assert date_of(dashed, "a.{date}", "b.2026-03-09") is None
    assert date_of(SETTINGS, "ztf_{date}_p1", "ztf_202611_p1") is None  # a month
