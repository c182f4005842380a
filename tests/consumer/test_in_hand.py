"""Messages in hand are noted, and one that kills every process that steps it is found."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import SettingsError
from consumer.in_hand import InHand, notes_folder
from consumer.message import Message
from consumer.sections import InputSettings, StateSettings
from consumer.settings import Settings

PLACES = [("a", 0), ("a", 1), ("b", 0)]


def make_messages(n: int, *, first: int = 0) -> list[Message]:
    """`n` messages of three partitions in turn."""
    offsets = range(first, first + n)
    return [Message(value=b"", topic=PLACES[i % 3][0], partition=PLACES[i % 3][1], offset=i // 3)
            for i in offsets]  # fmt: skip


def die_at(deadly: Message, messages: Sequence[Message], folder: Path, size: int) -> bool:
    """Whether a process that steps `messages` dies; the note of what it had in hand stays."""
    in_hand = InHand(folder)
    in_hand.note_assigned(PLACES)
    for batch in in_hand.batches(messages, size):
        if in_hand.is_poison(batch[0]):
            assert batch == [deadly]
            continue
        in_hand.note(batch)
        if deadly in batch:
            return True
        in_hand.clear()
    return False


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_a_deadly_message_is_isolated(tmp_path: Path, size: int, place: int) -> None:
    messages = make_messages(100)
    deaths = 0
    while die_at(messages[place], messages, tmp_path, size):
        deaths += 1
    assert deaths == (2 if size == 1 else 3)


def test_an_innocent_message_in_hand_at_a_death_is_stepped_again(tmp_path: Path) -> None:
    messages = make_messages(20)
    first = InHand(tmp_path)
    first.note(messages[:10])  # killed here, from outside
    second = InHand(tmp_path)
    second.note_assigned(PLACES)
    batches = list(second.batches(messages, 10))
    assert [len(batch) for batch in batches] == [1] * 10 + [10]
    assert not any(second.is_poison(message) for message in messages)


def test_nothing_is_noted_without_a_folder() -> None:
    in_hand = InHand(None)
    in_hand.note(make_messages(3))
    in_hand.note_assigned(PLACES)
    assert not in_hand.is_suspect(make_messages(1)[0])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"first": 1}'])
def test_a_note_cut_short_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a-0.json").write_text(text)
    in_hand = InHand(tmp_path)
    in_hand.note_assigned(PLACES)
    assert not in_hand.is_suspect(make_messages(1)[0])


def test_alerts_are_answered_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is gone, as the disk may be full: told once, until it works again."""
    folder = tmp_path / "gone"
    in_hand = InHand(folder)
    for _ in range(3):
        in_hand.note(make_messages(3))
        in_hand.clear()
    assert len(caplog.records) == 1
    folder.mkdir()
    in_hand.note(make_messages(3))
    assert len(list(folder.iterdir())) == 3
    in_hand.clear()
    assert list(folder.iterdir()) == []


def notes_of(folder: Path, group: str) -> Path | None:
    state, source = StateSettings(folder=folder), InputSettings(group=group)
    return notes_folder(Settings(state=state, input=source))


def test_each_group_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = [notes_of(tmp_path / "some", group) for group in ("night", "a/b", "a", "night")]
    assert folders[0] == folders[3]
    assert len({folder for folder in folders if folder and folder.is_dir()}) == 3
    assert notes_folder(Settings()) is None


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"state\.folder: expected to make .*file"):
        notes_of(tmp_path / "file", "night")


@given(n=st.integers(0, 50), size=st.integers(1, 60), first=st.integers(0, 9))
def test_batches_hold_every_message_in_order(n: int, size: int, first: int) -> None:
    messages = make_messages(n, first=first)
    batches = list(InHand(None).batches(messages, size))
    assert [message for batch in batches for message in batch] == messages
    assert all(len(batch) <= size for batch in batches)
