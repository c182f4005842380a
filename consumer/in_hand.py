"""Which messages are in hand, noted in files so that one that kills its process is found.

Before a batch is stepped, its range in each partition is written to the partition's file; once it
is stepped the file goes, so that a death while publishing accuses nobody. A file found when a
partition is taken over tells that its last owner died, and over which messages. Those are then
stepped one at a time. A message that was alone in hand at two deaths is not stepped again: it
becomes a dead letter with stage `crash`. An innocent one, in hand when a process is killed from
outside, only loses the company of others; killed so twice while it is alone, it is brought back by
`sedflow-consumer dlq replay PLACE`.

Without a note, as on a full disk, alerts are answered all the same.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from consumer.errors import SettingsError
from consumer.message import Message, Place
from consumer.settings import Settings

LOG = logging.getLogger("sedflow.in_hand")

MAX_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Suspects:
    """Messages that were in hand when their process died: offsets from `first` to `last`."""

    first: int
    last: int
    company: int
    """How many messages were in hand, those of other partitions included."""
    deaths: int = 0
    """At how many deaths before the message was alone in hand."""

    @property
    def deaths_alone(self) -> int:
        """At how many deaths, the one that left this note included, the message was alone."""
        return self.deaths + 1 if self.company == 1 else 0


class InHand:
    """Notes the messages in hand in `folder`; without one it suspects nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._failing = False
        self._suspects: dict[Place, Suspects] = {}
        self._written: set[Path] = set()

    def note_assigned(self, places: Collection[Place]) -> None:
        """Read what the last owners of partitions left behind."""
        for place in places:
            if left := self._read(place):
                self._suspects[place] = left

    def batches(self, messages: Sequence[Message], size: int) -> Iterator[Sequence[Message]]:
        """Split messages into batches of at most `size`, in order; suspects come alone."""
        for suspect, group in groupby(messages, self.is_suspect):
            run = list(group)
            length = 1 if suspect else size
            yield from (run[i : i + length] for i in range(0, len(run), length))

    def is_suspect(self, message: Message) -> bool:
        """Whether the message was in hand at a death."""
        left = self._suspects.get(message.place)
        return left is not None and left.first <= message.offset <= left.last

    def is_poison(self, message: Message) -> bool:
        """Whether the message has killed its process often enough."""
        return self.is_suspect(message) and self._deaths(message) >= MAX_DEATHS

    def note(self, batch: Sequence[Message]) -> None:
        """Write down that `batch` is about to be stepped, if that can be written."""
        if self._folder is None:
            return
        try:
            self._write(self._folder, batch)
            self._failing = False
        except OSError as error:
            if not self._failing:
                LOG.error("no note of what is in hand", extra={"fields": {"error": str(error)}})
            self._failing = True

    def clear(self) -> None:
        """Write down that nothing is in hand."""
        for path in self._written:
            with suppress(OSError):
                path.unlink()
        self._written.clear()

    def _write(self, folder: Path, batch: Sequence[Message]) -> None:
        for place, (first, last) in _ranges(batch).items():
            deaths = self._deaths(batch[0]) if len(batch) == 1 else 0
            path = self._path(folder, place)
            note = {"first": first, "last": last, "company": len(batch), "deaths": deaths}
            self._written.add(path)
            path.write_text(json.dumps(note))

    def _deaths(self, message: Message) -> int:
        left = self._suspects.get(message.place)
        alone = left is not None and left.first == left.last == message.offset
        return left.deaths_alone if left is not None and alone else 0

    def _read(self, place: Place) -> Suspects | None:
        if self._folder is None:
            return None
        try:
            return Suspects(**json.loads(self._path(self._folder, place).read_text()))
        except (OSError, ValueError, TypeError):  # none, or cut short by the death
            return None

    @staticmethod
    def _path(folder: Path, place: Place) -> Path:
        topic, partition = place
        return folder / f"{topic}-{partition}.json"


def notes_folder(settings: Settings) -> Path | None:
    """Make and return the folder for the notes of a group, None where the settings want none.

    Raises SettingsError where it cannot be made or written to.
    """
    if settings.state.folder is None:
        return None
    folder = settings.state.folder / quote(settings.input.group, safe="")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"state.folder: expected to make {folder}: {error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"state.folder: expected a folder to write to, got {folder}")
    return folder


def _ranges(batch: Sequence[Message]) -> Mapping[Place, tuple[int, int]]:
    ranges: dict[Place, tuple[int, int]] = {}
    for message in batch:
        place = message.place
        first, _ = ranges.get(place, (message.offset, 0))
        ranges[place] = first, message.offset
    return ranges
