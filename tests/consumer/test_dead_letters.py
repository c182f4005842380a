"""Which dead letters a replay tries."""

from collections import Counter

import pytest

from consumer.dead_letters import _choose
from consumer.letter_box import Letter
from consumer.message import ERROR_HEADER_PREFIX, Message
from consumer.sections import InputSettings


def letter(topic: str, **errors: str) -> Letter:
    told = {"topic": topic, "partition": "0", "offset": "7", "stage": "decode"} | errors
    headers = tuple((f"{ERROR_HEADER_PREFIX}{k}", v.encode()) for k, v in told.items())
    return Letter(Message(b"x", headers=headers, topic="letters"))


@pytest.mark.parametrize("max_attempts", [3, None])
def test_only_letters_of_the_input_are_tried(max_attempts: int | None) -> None:
    """One topic may hold those of others, which are no alerts of this stream."""
    source = InputSettings(topics=("hosts", "ztf_{date}"))
    names = ["hosts", "ztf_20260301", "summaries", "hosts"]
    left = Counter[str]()
    found = list(_choose([letter(name) for name in names], source, max_attempts, left))
    assert [message.topic for message in found] == ["hosts", "ztf_20260301", "hosts"]
    assert left == {"its topic is none of input.topics": 1}
