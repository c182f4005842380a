"""Which dead letters a replay tries."""

from collections import Counter

import pytest

from consumer import message as message_module
from consumer.dead_letters import _choose
from consumer.letter_box import TAKE_AT_ONCE, Letter, LetterBox
from consumer.message import ERROR_HEADER_PREFIX, Message, take_window
from consumer.process import printable
from consumer.sections import InputSettings


def letter(topic: str, **errors: str) -> Letter:
    told = {"topic": topic, "partition": "0", "offset": "7", "stage": "decode"} | errors
    headers = tuple((f"{ERROR_HEADER_PREFIX}{k}", v.encode()) for k, v in told.items())
    return Letter(Message(b"x", headers=headers, topic="letters"))


def test_headers_of_others_neither_break_nor_hide_a_letter() -> None:
    source, left = InputSettings(topics=("hosts",)), Counter[str]()
    letters = [
        letter("hosts", attempts="9" * 5000),
        letter("hosts", sha256="0", size="1"),
        letter("hosts", offset="9" * 5000),
    ]
    assert [one.attempts for one in letters] == [0, 0, 0]
    assert [message.topic for message in _choose(letters, source, 3, left)] == ["hosts", "hosts"]
    assert left == {"not ours": 1}
    with pytest.raises(ValueError, match="letters/0/0: expected topic, partition and offset"):
        letters[2].restore()


def test_a_stub_is_left() -> None:
    left = Counter[str]()
    stub = letter("hosts", sha256="0")
    stub = Letter(Message(None, headers=stub.message.headers, topic="letters"))
    assert not list(_choose([stub], InputSettings(topics=("hosts",)), None, left))
    assert left == {"a stub without its bytes": 1}


@pytest.mark.parametrize("text", ["foo\n\x1b[2Jhosts/0/1\tforged", "\u202egnp", "\r"])
def test_text_of_others_stays_on_its_line(text: str) -> None:
    told = printable(text)
    assert told.isprintable()
    assert told.encode().decode("unicode_escape") == text
    assert printable("größer als 3") == "größer als 3"


class Event:
    """A letter of a kilobyte as librdkafka hands it out."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def topic(self) -> str:
        return "letters"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> None:
        return None

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return bytes(1_000)

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1


class FakeConsumer:
    def __init__(self, n: int) -> None:
        self._events = list(map(Event, range(n)))

    def consume(self, n: int, timeout_s: float) -> list[Event]:
        taken, self._events = self._events[:n], self._events[n:]
        return taken


def make_box(n: int) -> LetterBox:
    box = LetterBox.__new__(LetterBox)
    box._consumer = FakeConsumer(n)  # type: ignore[assignment]
    box._open = {("letters", 0): n}
    return box


def test_letters_come_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    box = make_box(50)
    assert [len(box.read(20)) for _ in range(4)] == [20, 20, 10, 0]
    monkeypatch.setattr(message_module, "MAX_WINDOW_BYTES", 20_000)
    box = make_box(50)
    assert [len(box.read(1000)) for _ in range(3)] == [2 * TAKE_AT_ONCE, 50 - 2 * TAKE_AT_ONCE, 0]


def test_messages_are_taken_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = iter([Message(bytes(1_000))] * 10)
    assert len(take_window(messages, 2)) == 2
    monkeypatch.setattr(message_module, "MAX_WINDOW_BYTES", 2_500)
    assert [len(take_window(messages, 5)) for _ in range(4)] == [3, 3, 2, 0]


@pytest.mark.parametrize("max_attempts", [3, None])
def test_only_letters_of_the_input_are_tried(max_attempts: int | None) -> None:
    """One topic may hold those of others, which are no alerts of this stream."""
    source = InputSettings(topics=("hosts", "ztf_{date}"))
    names = ["hosts", "ztf_20260301", "summaries", "hosts"]
    left = Counter[str]()
    found = list(_choose([letter(name) for name in names], source, max_attempts, left))
    assert [message.topic for message in found] == ["hosts", "ztf_20260301", "hosts"]
    assert left == {"its topic is none of input.topics": 1}
