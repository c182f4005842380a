"""Which dead letters a replay tries."""

from collections import Counter

import pytest

from consumer.dead_letters import _choose
from consumer.letter_box import Letter
from consumer.message import ERROR_HEADER_PREFIX, Message
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


@pytest.mark.parametrize("max_attempts", [3, None])
def test_only_letters_of_the_input_are_tried(max_attempts: int | None) -> None:
    """One topic may hold those of others, which are no alerts of this stream."""
    source = InputSettings(topics=("hosts", "ztf_{date}"))
    names = ["hosts", "ztf_20260301", "summaries", "hosts"]
    left = Counter[str]()
    found = list(_choose([letter(name) for name in names], source, max_attempts, left))
    assert [message.topic for message in found] == ["hosts", "ztf_20260301", "hosts"]
    assert left == {"its topic is none of input.topics": 1}
