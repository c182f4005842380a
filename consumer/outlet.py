"""What hands windows to a producer, and how: the part that every sink shares.

A topic of dead letters may refuse what the daemon cannot foresee, such as letters as old as their
messages. The producer then tells only that some message was refused. When the window is tried
again, its letters fall back by one form: with the present time and a key, then without their bytes.
"""

import time
from collections.abc import Mapping
from enum import IntEnum

from confluent_kafka import KafkaError, Producer

from consumer.kafka_client import LOG, Limits, client_config, foreign_errors
from consumer.message import DeadLetter, Headers, Window
from consumer.sections import ClientOption
from consumer.settings import Settings

MIN_MESSAGE_BYTES = 1_000_000
"""What the producer takes even where the dead-letter topic takes less: librdkafka's default."""
MAX_MESSAGE_BYTES = 1_000_000_000
"""The most that librdkafka can be told."""

PRODUCER_DEFAULTS: dict[str, ClientOption] = {
    "delivery.timeout.ms": 8_000,
    "retry.backoff.ms": 10,
    "queue.buffering.max.kbytes": 262_144,
    "queue.buffering.max.messages": 200_000,
}
REFUSED_MESSAGES = frozenset(
    {
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.INVALID_RECORD,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
    }
)
"""What a broker says that takes no message like this one, however often it is tried."""
STUB_BYTES = 4_000

NOW = 0
"""The timestamp that librdkafka replaces by the time of producing."""


class LetterForm(IntEnum):
    """How dead letters are produced, each form where the one before was refused.

    As they came; with the present time and a key; without bytes, too, if they are large.
    """

    ORIGINAL = 0
    RESTAMPED = 1
    STUB = 2


class Outlet:
    """Produces windows; what a transactional sink and a plain one share."""

    def __init__(
        self, settings: Settings, forced: Mapping[str, ClientOption], limits: Limits
    ) -> None:
        self._output = settings.output
        self._letter_limit = limits.letter
        self._letter_form = LetterForm.ORIGINAL
        self.refused: list[KafkaError] = []
        config = producer_config(settings, forced, limits)
        with foreign_errors("output: producer"):
            self._producer = Producer(config, logger=LOG)

    def produce(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, stamp: int = NOW
    ) -> None:
        """Hand a message to the producer, which tells what became of it."""
        self._producer.produce(
            topic,
            value=value,
            key=key,
            headers=list(headers),
            timestamp=stamp,
            on_delivery=self._delivered,
        )

    def count_unconfirmed(self, timeout_s: float) -> int:
        """Wait for what was handed over; return how much of it the broker has not taken by then.

        Why, where it said so, is in `refused`.
        """
        return self._producer.flush(timeout_s) + len(self.refused)

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self.refused.append(error)

    def produce_window(self, window: Window) -> None:
        """Hand over the summaries and the dead letters of a window."""
        for result in window.results:
            self.produce(self._output.topic, result.key, result.value, result.headers)
        for letter in window.rejected:
            self._produce_letter(letter)

    def _produce_letter(self, letter: DeadLetter) -> None:
        topic, limit = self._output.dead_letter_topic_of(letter.message.topic), self._letter_limit
        fitting = letter.fit(
            min(limit, STUB_BYTES) if self._letter_form == LetterForm.STUB else limit
        )
        message = fitting.message
        # A broker refuses what is stamped too far ahead of its clock.
        key, stamp = message.key, min(message.timestamp_ms or NOW, int(time.time() * 1e3))
        if self._letter_form >= LetterForm.RESTAMPED:
            key = key or f"{message.topic}/{message.partition}/{message.offset}".encode()
            stamp = NOW
        self.produce(topic, key, message.value, fitting.headers(), stamp)

    def fall_back(self, window: Window, *errors: object) -> None:
        """Give the letters of a window that was not published the next form, if one was refused."""
        known = (e for e in (*errors, *self.refused) if isinstance(e, KafkaError))
        refusal = next((e for e in known if e.code() in REFUSED_MESSAGES), None)
        self.refused.clear()
        if refusal is None:
            return
        if window.rejected:
            self._letter_form = LetterForm(min(self._letter_form + 1, max(LetterForm)))
        fields = {"error": refusal.str(), "letters": self._letter_form.name.lower()}
        LOG.warning("messages refused", extra={"fields": fields})

    def restore_bytes(self) -> None:
        """Let letters have their bytes again; times that were refused once would be again."""
        self.refused.clear()
        self._letter_form = min(self._letter_form, LetterForm.RESTAMPED)


def producer_config(
    settings: Settings, forced: Mapping[str, ClientOption], limits: Limits
) -> dict[str, ClientOption]:
    """Return librdkafka's configuration of a producer. Raises SettingsError."""
    sizes: dict[str, ClientOption] = {
        "message.max.bytes": min(max(limits.letter, MIN_MESSAGE_BYTES), MAX_MESSAGE_BYTES),
        "batch.size": min(limits.batch, MIN_MESSAGE_BYTES),
    }
    return client_config("output", settings.output, PRODUCER_DEFAULTS | sizes, forced)
