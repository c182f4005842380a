"""The dead-letter topics as a source: letters in the order of each partition, up to today's end.

Letters that come while reading are not read: what a replay sends back is not tried twice in a row.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumer.errors import BrokerError
from consumer.kafka_client import (
    CALL_TIMEOUT_S,
    CONSUMER_DEFAULTS,
    LOG,
    client_config,
    foreign_errors,
    to_message,
)
from consumer.message import ERROR_HEADER_PREFIX, Message, Place, is_full, number_of
from consumer.sections import ClientOption
from consumer.settings import Settings

ATTEMPTS = f"{ERROR_HEADER_PREFIX}attempts"
"""Header with the number of replays that a letter came back from."""
DEFAULTS: Mapping[str, ClientOption] = {**CONSUMER_DEFAULTS, "auto.offset.reset": "earliest"}
TAKE_AT_ONCE = 16
POLL_S = 1.0
MAX_SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it lies in its topic."""

    message: Message

    @property
    def place(self) -> str:
        """Where it lies, as the commands name it."""
        return f"{self.message.topic}/{self.message.partition}/{self.message.offset}"

    @property
    def errors(self) -> dict[str, str]:
        """What the `__sedflow.errors.*` headers say, without their prefix."""
        return {
            name.removeprefix(ERROR_HEADER_PREFIX): (value or b"").decode(errors="replace")
            for name, value in self.message.headers
            if name.startswith(ERROR_HEADER_PREFIX)
        }

    @property
    def attempts(self) -> int:
        """How many replays it came back from."""
        return self._number("attempts") or 0

    @property
    def origin(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the original message; None where they are not told."""
        partition, offset = self._number("partition"), self._number("offset")
        if partition is None or offset is None or "topic" not in self.errors:
            return None
        return self.errors["topic"], partition, offset

    @property
    def is_stub(self) -> bool:
        """Whether it stands for a message whose bytes were too many."""
        return self.message.value is None and "sha256" in self.errors

    def _number(self, name: str) -> int | None:
        """The number in a header, which whoever wrote the message may have set."""
        return number_of(self.errors.get(name, ""))

    def restore(self) -> Message:
        """Return the original message, marked as tried once more.

        Raises ValueError where its origin is not told.
        """
        if self.origin is None:
            raise ValueError(f"{self.place}: expected topic, partition and offset of a message")
        topic, partition, offset = self.origin
        headers = tuple(h for h in self.message.headers if not h[0].startswith(ERROR_HEADER_PREFIX))
        return Message(
            value=self.message.value,
            key=self.message.key,
            headers=(*headers, (ATTEMPTS, b"%d" % (self.attempts + 1))),
            topic=topic,
            partition=partition,
            offset=offset,
            timestamp_ms=self.message.timestamp_ms,
        )


class LetterBox:
    """Reads the dead-letter topics of the settings, as the group `<group>.dlq`.

    Begins where the group's last replay ended, or at the beginning where `from_beginning`. Raises
    BrokerError when the broker does not serve.
    """

    def __init__(self, settings: Settings, *, from_beginning: bool) -> None:
        forced: dict[str, ClientOption] = {
            "group.id": letter_group(settings),
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
        config = client_config("output", settings.output, DEFAULTS, forced)
        topics = settings.input.topics_on(datetime.now(UTC).date())
        self.topics = sorted({settings.output.dead_letter_topic_of(topic) for topic in topics})
        with foreign_errors("output: dead letters"):
            self._consumer = Consumer(config, logger=LOG)
            self.group_metadata = self._consumer.consumer_group_metadata()
            self._open = self._begin(from_beginning)

    def read(self, max_letters: int) -> Sequence[Letter]:
        """Return the next letters, about as many as a window takes; none at the end."""
        letters: list[Letter] = []
        silent_s = 0.0
        while self._open and len(letters) < max_letters and not is_full(x.message for x in letters):
            n, wait_s = min(TAKE_AT_ONCE, max_letters - len(letters)), 0.0 if letters else POLL_S
            with foreign_errors("output: dead letters"):
                events = self._consumer.consume(n, wait_s)
            letters += [Letter(to_message(event)) for event in events if self._is_letter(event)]
            if letters and not events:
                break
            silent_s = 0.0 if events else silent_s + wait_s
            if silent_s > MAX_SILENCE_S:
                raise BrokerError(f"output: expected dead letters within {MAX_SILENCE_S:.0f} s")
        return letters

    def __iter__(self) -> Iterator[Letter]:
        """Yield every letter to the end."""
        while letters := self.read(1000):
            yield from letters

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()

    def _begin(self, from_beginning: bool) -> dict[Place, int]:
        """Assign every partition that holds letters to read; return where each ends."""
        places = [place for topic in self.topics for place in self._partitions(topic)]
        if not places:
            return {}
        committed = _patiently(self._consumer.committed, places)
        ends: dict[Place, int] = {}
        starts = []
        for place in committed:
            low, high = _patiently(self._consumer.get_watermark_offsets, place)
            start = low if from_beginning else max(low, place.offset)
            if start < high:
                ends[place.topic, place.partition] = high
                starts.append(TopicPartition(place.topic, place.partition, start))
        self._consumer.assign(starts)
        return ends

    def _partitions(self, topic: str) -> list[TopicPartition]:
        found = self._consumer.list_topics(topic, timeout=CALL_TIMEOUT_S).topics[topic]
        if found.error is not None:
            raise BrokerError(f"output: dead letters of {topic}: {found.error.str()}")
        return [TopicPartition(topic, number) for number in found.partitions]

    def _is_letter(self, event: Any) -> bool:
        """Whether to keep an event; notes where a partition is at its end."""
        place, error = (event.topic(), event.partition()), event.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise BrokerError(f"output: dead letters: {error.str()}")
        end = self._open.get(place)
        if end is not None and (error is not None or event.offset() >= end - 1):
            del self._open[place]
        return error is None and end is not None and event.offset() < end


def letter_group(settings: Settings) -> str:
    """Return the group whose positions tell how far dead letters were replayed."""
    return f"{settings.input.group}.dlq"


def _patiently(call: Callable[..., Any], *arguments: object) -> Any:
    """Ask the broker, again for a while: a leader or a coordinator may be moving just now."""
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while True:
        try:
            return call(*arguments, timeout=CALL_TIMEOUT_S)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S / 10)
