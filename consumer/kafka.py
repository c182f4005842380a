"""Source over Kafka: one member of the consumer group, and where its reading begins.

- A partition is assigned: `starts.py` tells where reading it begins.
- A partition is revoked or lost: what `poll` had taken of it is dropped for its new owner to read.
- While a window takes long, `keep_alive` keeps the membership with every partition paused; it tells
  when a partition of the window is gone.

Librdkafka never chooses an offset by itself: `auto.offset.reset` is `error`.
"""

import time
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumer.errors import BrokerError, ConsumerError, WindowAbortedError
from consumer.health import Health
from consumer.kafka_client import (
    LOG,
    OF_A_REBALANCE,
    commit,
    consumer_config,
    foreign_errors,
    to_message,
)
from consumer.message import Message, Place, Window, is_full, next_offsets
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.positions import PositionStore
from consumer.settings import Settings
from consumer.starts import Starts, of_assignment

IDLE_S = 0.5
"""How long `poll` waits for a first message."""
TAKE_AT_ONCE = 64
KEEP_ALIVE_S = 5.0

PASSING_ERRORS = frozenset({KafkaError._MAX_POLL_EXCEEDED, KafkaError._ALL_BROKERS_DOWN})
"""Errors among polled messages that librdkafka recovers from."""


class AssignmentListener(Protocol):
    """Who wants to know which partitions come."""

    def note_assigned(self, places: Collection[Place]) -> None:
        """Note that partitions were assigned."""


class KafkaSource:
    """Messages of the input topics, as one member of the consumer group."""

    served = False
    """Whether it ever held partitions."""
    log: PositionLog | None = None
    """Remembers what the group may forget."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        health: Health,
        absent: Collection[str] = (),
    ) -> None:
        self._settings = settings.input
        self._metrics = metrics
        self._health = health
        self._listener: AssignmentListener | None = None
        self._day: date | None = None
        self._topics: tuple[str, ...] = ()
        self._held: set[Place] = set()
        self._gone: set[Place] = set()
        self._paused: set[Place] = set()
        self._taken: list[Message] = []
        self._in_hand: set[Place] = set()
        # Offsets behind the last published message, to which `rewind` goes back; and the same, or
        # the end where that was seen further on, from which the lag is counted.
        self._committed: dict[Place, int] = {}
        self._seen_to: dict[Place, int] = {}
        self._trouble: Exception | None = None
        self._leaving = False
        self._last_poll_s = time.monotonic()
        config = consumer_config(settings)
        with foreign_errors("input: consumer"):
            self._consumer = Consumer(config, logger=LOG)
            self.group_metadata = self._consumer.consumer_group_metadata()
        self.starts = Starts(settings.input, metrics, self._consumer, absent, health.beat)
        self._store: PositionStore = self.starts.group_positions()

    def subscribe(
        self,
        positions: PositionStore | None = None,
        listener: AssignmentListener | None = None,
        log: PositionLog | None = None,
    ) -> None:
        """Join the group. Without `positions` the group keeps them, and `log` what it forgets."""
        self._store = positions or self.starts.group_positions(log)
        self._listener, self.log = listener, log
        self._subscribe_for(datetime.now(UTC))

    @property
    def exhausted(self) -> bool:
        """Never: more may always follow."""
        return False

    def poll(self, max_messages: int, max_delay_s: float) -> Sequence[Message]:
        """Return up to `max_messages`; the first of them waits at most `max_delay_s` for others.

        Raises BrokerError when the broker refuses to serve, OffsetsLostError when messages are
        gone.
        """
        now = datetime.now(UTC)
        self._metrics.set_lag(self._lag(), now)
        self._subscribe_for(now)
        self.starts.check_remade({topic for topic, _ in self._held})
        self._resume()
        self._take(1, IDLE_S)
        deadline = time.monotonic() + max_delay_s
        while self._taken and (left := max_messages - len(self._taken)) > 0:
            wait_s = deadline - time.monotonic()
            self._take(min(left, TAKE_AT_ONCE), max(0.0, wait_s))
            if wait_s <= 0 or is_full(self._taken):
                break
        member = self._renew_membership()
        self._gone.clear()
        messages, self._taken = self._taken, []
        if not member:  # whoever is assigned the partitions next, perhaps this one, reads it again
            self.rewind(messages)
            return []
        self._in_hand = {m.place for m in messages}
        if not messages:
            self._move_behind_markers()
        return messages

    def keep_alive(self) -> None:
        """Poll without reading on, if the last poll was long ago.

        Raises WindowAbortedError when a partition of the window in hand is gone.
        """
        if time.monotonic() - self._last_poll_s < KEEP_ALIVE_S:
            return
        with foreign_errors("input: pause"):
            self._paused |= self._held
            self._consumer.pause([TopicPartition(*place) for place in self._held])
        self._metrics.partitions_paused.set(len(self._held))
        self._take(1, 0.0)
        self._metrics.set_lag(self._lag(self._in_hand), datetime.now(UTC))
        if self._gone & self._in_hand:
            raise WindowAbortedError("input: a partition was revoked while its window was made")
        self._renew_membership()

    def beat(self) -> None:
        """Tell that what takes long goes on."""
        self._health.beat()

    def advance(self, window: Window) -> None:
        """Note that `window` was committed; the end of a partition, if seen, may be further on."""
        for place, offset in next_offsets(window.consumed).items():
            self._committed[place] = offset
            self._seen_to[place] = max(offset, self._seen_to.get(place, 0))

    def commit(self, window: Window) -> None:
        """Move the group's positions. Raises WindowAbortedError in a rebalance, or BrokerError."""
        with foreign_errors("input: commit"):
            try:
                commit(self._consumer, self.positions_behind(window))
            except KafkaException as error:
                if error.args[0].code() in OF_A_REBALANCE:
                    raise WindowAbortedError(f"input: commit: {error.args[0].str()}") from error
                raise
        self.advance(window)

    def positions_behind(self, window: Window) -> list[TopicPartition]:
        """Return the positions behind a window, with the ids of its topics as metadata."""
        return [
            TopicPartition(topic, partition, offset, metadata=self.starts.topic_id(topic) or "")
            for (topic, partition), offset in next_offsets(window.consumed).items()
        ]

    def rewind(self, messages: Sequence[Message]) -> None:
        """Go back to where these messages began, in the partitions still held."""
        places = {m.place for m in messages}
        self._taken = [m for m in self._taken if m.place not in places]
        with foreign_errors("input: seek"):
            for place in places & self._held:
                offset = self._committed[place]
                self._consumer.seek(TopicPartition(*place, offset))
                self._seen_to[place] = offset

    def close(self) -> None:
        """Leave the group, so that other members take the partitions over at once."""
        self._leaving = True
        with foreign_errors("input: close"):
            self._consumer.close()

    def _subscribe_for(self, now: datetime) -> None:
        day = now.date()
        if day == self._day:
            return
        with foreign_errors("input: topics"):
            earlier = self.starts.find_unfinished(day, self._store)
        topics = self._settings.topics_on(day) + earlier
        self._day = day
        if topics == self._topics:
            return
        LOG.info("subscribed", extra={"fields": {"topics": topics}})
        with foreign_errors("input: subscribe"):
            self._consumer.subscribe(
                list(topics),
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._revoked,
            )
        self._topics = topics

    def _renew_membership(self) -> bool:
        """Commit as a member of the group's present generation from now on, if it is one."""
        with foreign_errors("input: membership"):
            metadata = self._consumer.consumer_group_metadata()
            # Without a membership the metadata would let a commit pass unchecked.
            member = bool(self._consumer.memberid())
        if member:
            self.group_metadata = metadata
        return member

    def _move_behind_markers(self) -> None:
        """Keep the ends that were seen as positions, now that nothing is in hand.

        Behind the last message may lie markers of transactions: they are deleted like messages.
        """
        known = self._held & self._seen_to.keys()
        ends = {p: self._seen_to[p] for p in known if self._seen_to[p] > self._committed[p]}
        with foreign_errors("input: commit"):
            if ends and self.starts.keep_positions(ends, self._store):
                self._committed |= ends

    def _resume(self) -> None:
        if self._paused:  # those that went, too: should they come back, they would still be paused
            with foreign_errors("input: resume"):
                self._consumer.resume([TopicPartition(*place) for place in self._paused])
        self._paused.clear()
        self._metrics.partitions_paused.set(0)

    def _take(self, n: int, timeout_s: float) -> None:
        """Move up to `n` messages from the broker into the window in the making."""
        self._last_poll_s = time.monotonic()
        with foreign_errors("input: consume"):
            events = self._consumer.consume(n, timeout_s)
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble
        for event in events:
            if self._is_message(event) and (event.topic(), event.partition()) in self._held:
                self._taken.append(to_message(event))

    def _lag(self, in_hand: Collection[Place] = ()) -> dict[Place, int]:
        """For each partition held, how many offsets its committed position is behind.

        The position is that of its end, if seen, but where a window of it is in hand.
        """
        behind = {}
        for place in self._held & self._seen_to.keys():
            with foreign_errors("input: watermark"):
                marks = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if marks and marks[1] >= 0:
                position = (self._committed if place in in_hand else self._seen_to)[place]
                behind[place] = max(0, marks[1] - position)
        return behind

    def _is_message(self, event: Any) -> bool:
        error = event.error()
        if error is None:
            return True
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._seen_to[event.topic(), event.partition()] = event.offset()
        elif code == KafkaError._AUTO_OFFSET_RESET:
            self._give_up((event.topic(), event.partition()), error.str())
        elif code in PASSING_ERRORS or (
            self._settings.dated and code == KafkaError.UNKNOWN_TOPIC_OR_PART  # tonight's, perhaps
        ):
            LOG.warning("input trouble", extra={"fields": {"error": error.str()}})
        else:
            raise BrokerError(f"input: {error.str()}")
        return False

    def _give_up(self, place: Place, reason: str) -> None:
        """Raise BrokerError for a partition that lost what was to be read next.

        Librdkafka takes no seek of it: new clients begin at its position, which is kept for them
        to see the gap also where nothing of it was published yet.
        """
        if place not in self._held:
            return
        with foreign_errors("input: commit"):
            self.starts.keep_positions({place: self._committed[place]}, self._store)
        name = f"{place[0]}[{place[1]}]"
        raise BrokerError(f"input: {name}: what was to be read next is gone: {reason}")

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = {(p.topic, p.partition) for p in partitions}
        assign = consumer.incremental_assign if self._settings.cooperative else consumer.assign
        if self._leaving:  # what a rebalance gives in this moment, the next one takes
            assign([])
            return
        try:
            if self._listener is not None:
                self._listener.note_assigned(places)
            starts = self.starts.find_all(places, self._store)
        except (KafkaException, ConsumerError) as error:
            # An exception must not pass through librdkafka: `poll` raises it.
            self._trouble = of_assignment(error)
            assign([])
            return
        assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        self._held |= places
        self.served |= bool(places)
        self._committed |= starts
        self._seen_to |= starts
        self._note_rebalance("partitions assigned", places)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        places = {(p.topic, p.partition) for p in partitions}
        self._held -= places
        self._gone |= places
        self._taken = [m for m in self._taken if m.place in self._held]
        for place in places:
            self._seen_to.pop(place, None)
        self._store.let_go(places)
        self._note_rebalance("partitions revoked", places)

    def _note_rebalance(self, event: str, places: set[Place]) -> None:
        self._health.assigned = bool(self._held)
        self._metrics.rebalances.inc()
        names = sorted(f"{topic}[{partition}]" for topic, partition in places)
        LOG.info(event, extra={"fields": {"partitions": names}})
