"""The days of a dated topic that are read besides the last ones: those that are not finished.

A daemon may have been away, or have waited for a person, for longer than `input.days`. What it did
not read of earlier days is read once it is back, as long as the broker has it.
"""

from collections.abc import Collection, Mapping
from datetime import date, datetime, timedelta

from consumer.sections import DATE, InputSettings


def find_earlier(
    settings: InputSettings, day: date, present: Collection[str]
) -> dict[str, dict[date, str]]:
    """Return the topics of the days before those read on `day` (UTC), by their entry and date."""
    begin = day - timedelta(settings.days - 1)
    found: dict[str, dict[date, str]] = {entry: {} for entry in settings.topics if DATE in entry}
    # A month has the date of its first day, and a topic may be named without its date too.
    others = set(present) - set(settings.topics_on(day))
    for entry, days in found.items():
        for topic in others:
            of = date_of(settings, entry, topic)
            if of is not None and of < begin:
                days[of] = topic
    return found


def choose_unfinished(days: Mapping[date, str], finished: Mapping[str, bool]) -> list[str]:
    """Return the topics of one entry that are to be read on, from the first that was read.

    Args:
        days: topics of earlier days.
        finished: of those in which there are positions, whether they are at the end.
    """
    first = min((day for day, topic in days.items() if topic in finished), default=date.max)
    later = sorted(day for day in days if day >= first)
    return [days[day] for day in later if not finished.get(days[day], False)]


def date_of(settings: InputSettings, entry: str, topic: str) -> date | None:
    """Return the day of a topic, None where it is none of this entry of `input.topics`."""
    before, _, after = entry.partition(DATE)
    text = topic.removeprefix(before).removesuffix(after)
    try:
        day = datetime.strptime(text, settings.date_format).date()
    except ValueError:
        return None
    # strptime also takes a month for a day: 202611 for 2026-01-01.
    return day if entry.replace(DATE, day.strftime(settings.date_format)) == topic else None
