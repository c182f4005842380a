"""Source and sink over Kafka: each window is one transaction.

The order of `KafkaSink.publish`, which nothing else repeats:

1. begin a transaction;
2. produce the summaries to the output topic and the dead letters to the dead-letter topic;
3. send the input positions behind the window to the same transaction; a replay has none;
4. commit. Only now have the positions moved, together with what they led to.

What can go wrong, each decided here:

- An error that can be tried again (time-out, coordinator moving) is tried again for a while.
- An error that ends the transaction, such as an assignment that changed meanwhile: abort, raise
  `WindowAbortedError`. The loop rewinds the source to before the window and polls again.
- A fatal error, such as another process with the same transactional id, or a call that does not
  come back: raise `BrokerError`. The process must end; at its restart the same transactional id
  finishes or rolls back what is open.

On a rebalance: `poll` is called between windows only, so none is open while partitions are revoked,
and messages of revoked partitions that `poll` had in hand are dropped for their new owner to read.
Each window is committed under the group membership it was read with, so partitions that were lost
to another worker while it was in the making cannot be committed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from consumer.errors import BrokerError, WindowAbortedError
from consumer.health import Health
from consumer.kafka_client import CALL_TIMEOUT_S, LOG, call_within, client_config, foreign_errors
from consumer.message import Headers, Message, Window
from consumer.metrics import Metrics
from consumer.sections import ClientOption
from consumer.settings import Settings

RETRY_FOR_S = 60.0
RETRY_PAUSE_S = 0.1
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

CONSUMER_DEFAULTS: Mapping[str, ClientOption] = {
    "auto.offset.reset": "earliest",
    # The partitions of a worker that died are read by others after this time.
    "session.timeout.ms": 10_000,
    # What waits in memory, and what a single answer of a broker may add to it.
    "queued.max.messages.kbytes": 16_384,
    "fetch.max.bytes": 8_388_608,
}
PRODUCER_DEFAULTS: Mapping[str, ClientOption] = {
    "transaction.timeout.ms": 15_000,
    "delivery.timeout.ms": 10_000,
    "retry.backoff.ms": 10,
    "message.max.bytes": MAX_MESSAGE_BYTES,
}

NOW = 0
"""The timestamp that librdkafka replaces by the time of producing."""

PASSING_ERRORS = frozenset({KafkaError._MAX_POLL_EXCEEDED, KafkaError._ALL_BROKERS_DOWN})
"""Errors among polled messages that librdkafka recovers from, although not marked as retriable."""

Place = tuple[str, int]
"""A topic and a partition."""


class KafkaSource:
    """Messages of the input topics, as one member of the consumer group."""

    def __init__(self, settings: Settings, metrics: Metrics, health: Health) -> None:
        forced: dict[str, ClientOption] = {
            "group.id": settings.input.group,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
        config = client_config("input", settings.input, CONSUMER_DEFAULTS, forced)
        self._metrics = metrics
        self._health = health
        self._held: set[Place] = set()
        self._position: dict[Place, int] = {}
        with foreign_errors("input: subscribe"):
            self._consumer = Consumer(config, logger=LOG)
            self._consumer.subscribe(
                list(settings.input.topics),
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._revoked,
            )
            self.group_metadata = self._consumer.consumer_group_metadata()

    @property
    def exhausted(self) -> bool:
        """Never: more may always follow."""
        return False

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """Return up to `max_messages`, fewer once `timeout_s` is over.

        Raises BrokerError when the broker refuses to serve.
        """
        self._metrics.set_lag(self._lag(), datetime.now(UTC))
        with foreign_errors("input: consume"):
            events = self._consumer.consume(max_messages, timeout_s)
            self.group_metadata = self._consumer.consumer_group_metadata()
            member = bool(self._consumer.memberid())
        messages = [_message(event) for event in events if self._is_message(event)]
        # Without a membership the metadata would let a commit pass unchecked.
        return [m for m in messages if member and (m.topic, m.partition) in self._held]

    def advance(self, window: Window) -> None:
        """Note that `window` was committed; the end of a partition, if seen, is further on."""
        for place, offset in _next_offsets(window.consumed).items():
            self._position[place] = max(offset, self._position.get(place, 0))

    def rewind(self, window: Window) -> None:
        """Go back to where `window` began, in the partitions still held."""
        with foreign_errors("input: seek"):
            for place, offset in _first_offsets(window.consumed).items():
                if place in self._held:
                    self._consumer.seek(TopicPartition(*place, offset))
                    self._position[place] = offset

    def close(self) -> None:
        """Leave the group, so that other members take the partitions over at once."""
        with foreign_errors("input: close"):
            self._consumer.close()

    def _lag(self) -> dict[Place, int]:
        """For each partition held, how many offsets its committed position is behind."""
        behind = {}
        for place in self._held & self._position.keys():
            with foreign_errors("input: watermark"):
                marks = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if marks and marks[1] >= 0:
                behind[place] = max(0, marks[1] - self._position[place])
        return behind

    def _is_message(self, event: Any) -> bool:
        error = event.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            self._position[event.topic(), event.partition()] = event.offset()
        elif error.retriable() or error.code() in PASSING_ERRORS:
            LOG.warning("input trouble", extra={"fields": {"error": error.str()}})
        else:
            raise BrokerError(f"input: {error.str()}")
        return False

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._held |= _places(partitions)
        self._note_rebalance("partitions assigned", partitions, assigned=True)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._held -= _places(partitions)
        for place in _places(partitions):
            self._position.pop(place, None)
        self._note_rebalance("partitions revoked", partitions, assigned=bool(self._held))

    def _note_rebalance(
        self, event: str, partitions: list[TopicPartition], *, assigned: bool
    ) -> None:
        self._health.assigned = assigned
        self._metrics.rebalances.inc()
        names = sorted(f"{p.topic}[{p.partition}]" for p in partitions)
        LOG.info(event, extra={"fields": {"partitions": names}})


class KafkaSink:
    """Publishes windows in transactions, each of which moves the positions of `source`.

    Without a source, in a replay, there are no positions to move.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, source: KafkaSource | None = None
    ) -> None:
        forced: dict[str, ClientOption] = {
            "transactional.id": f"{settings.input.group}-{settings.output.slot}",
            "enable.idempotence": True,
        }
        config = client_config("output", settings.output, PRODUCER_DEFAULTS, forced)
        self._output = settings.output
        self._source = source
        self._metrics = metrics
        with foreign_errors("output: start transactions"):
            self._producer = Producer(config, logger=LOG)
            self._patiently(self._producer.init_transactions)

    def publish(self, window: Window) -> None:
        """Commit the window's summaries, dead letters and input positions as one.

        Raises WindowAbortedError when it was rolled back, BrokerError when the process must end.
        """
        try:
            self._transact(window)
        except (KafkaException, BufferError) as error:
            self._roll_back(error)
        if self._source is not None:
            self._source.advance(window)

    def close(self) -> None:
        """Do nothing: no message is in flight between windows."""

    def _transact(self, window: Window) -> None:
        self._producer.begin_transaction()
        for result in window.results:
            self._produce(self._output.topic, result.key, result.value, result.headers, NOW)
        for letter in window.rejected:
            original = letter.message
            topic = self._output.dead_letter_topic_of(original.topic)
            stamp = original.timestamp_ms or NOW
            self._produce(topic, original.key, original.value, letter.headers(), stamp)
        if self._source is not None:
            offsets = _next_offsets(window.consumed).items()
            positions = [TopicPartition(*place, offset) for place, offset in offsets]
            self._patiently(
                self._producer.send_offsets_to_transaction, positions, self._source.group_metadata
            )
        self._patiently(self._producer.commit_transaction)

    def _produce(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int
    ) -> None:
        self._producer.produce(
            topic, value=value, key=key, headers=list(headers), timestamp=timestamp
        )

    def _roll_back(self, cause: Exception) -> None:
        error = cause.args[0]
        if isinstance(error, KafkaError) and error.fatal():
            raise BrokerError(f"output: {error.str()}") from cause
        with foreign_errors("output: abort"):
            self._patiently(self._producer.abort_transaction)
        raise WindowAbortedError(f"output: {cause}") from cause

    def _patiently(self, call: Callable[..., Any], *arguments: object) -> None:
        """Make a call of the transactional interface, again while its error says so."""
        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            try:
                call_within(2 * CALL_TIMEOUT_S, call, *arguments, CALL_TIMEOUT_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
            self._metrics.retries.labels("broker").inc()
            time.sleep(RETRY_PAUSE_S)


def _message(message: Any) -> Message:
    kind, stamp = message.timestamp()
    return Message(
        value=message.value(),
        key=message.key(),
        headers=tuple(message.headers() or ()),
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=stamp if kind else None,
    )


def _places(partitions: Iterable[TopicPartition]) -> set[Place]:
    return {(p.topic, p.partition) for p in partitions}


def _first_offsets(messages: Iterable[Message]) -> dict[Place, int]:
    first: dict[Place, int] = {}
    for message in messages:
        first.setdefault((message.topic, message.partition), message.offset)
    return first


def _next_offsets(messages: Iterable[Message]) -> dict[Place, int]:
    return {(m.topic, m.partition): m.offset + 1 for m in messages}
