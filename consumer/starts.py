"""Where reading of a partition begins once it is assigned: decided here and nowhere else.

- It has a position, kept by the group or, with two clusters, by `Positions`: reading goes on there.
  Where messages behind it are gone, `OffsetsLostError` names them, unless the gap was accepted.
- It has none, but other partitions of its topic have: it was added later; it is read from its
  beginning.
- Nothing of its topic was ever read: it begins where `input.start` says.

A broker forgets what a group keeps when the topic is deleted, or when the group was away for long.
What `position_log.py` remembers then takes its place. A topic made anew while it is read is noticed
within seconds; librdkafka alone would read on where the old one ended. What it read by then comes
again once the gap is accepted: the new topic is read from its beginning.
"""

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.errors import OffsetsLostError
from consumer.gaps import Extent, Position, find_gap
from consumer.kafka_client import CALL_TIMEOUT_S, LOG
from consumer.message import Place
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.sections import InputSettings

POSITIONS_TIMEOUT_S = 60.0
LOOK_EVERY_S = 10.0
"""How often it is looked whether topics are the ones that were assigned."""


class Positions(Protocol):
    """Where the positions of the input are kept, if the group does not keep them."""

    def take_over(self, places: Collection[Place]) -> Mapping[Place, Position]:
        """Shut former owners out, then return where reading goes on; none for a new partition."""

    def let_go(self, places: Collection[Place]) -> None:
        """Note that partitions belong to others now."""


class Starts:
    """Finds where reading begins, and what is missing there."""

    log: PositionLog | None = None
    """Remembers what the group may forget."""

    def __init__(self, settings: InputSettings, metrics: Metrics, consumer: Consumer) -> None:
        self._settings = settings
        self._metrics = metrics
        self._consumer = consumer
        self._admin = AdminClient({**settings.client_config(), "log_level": 3}, logger=LOG)
        self._topic_ids: dict[str, str] = {}
        self._asked: Mapping[str, Future[Any]] = {}
        self._asked_s = time.monotonic()

    def find_all(self, places: Collection[Place], positions: Positions | None) -> dict[Place, int]:
        """Return the first offset to read of each partition.

        Raises OffsetsLostError, BrokerError or, from librdkafka, KafkaException.
        """
        self._learn_topic_ids({topic for topic, _ in places})
        known = positions.take_over(places) if positions else self._group_positions(places)
        read = {topic for topic, _ in known}
        starts = {
            place: self.find(place, known[place])
            if place in known
            else self._find_first(place, added_later=place[0] in read)
            for place in places
        }
        if positions is None:
            self._keep_accepted({p: starts[p] for p in known if starts[p] != known[p].offset})
        return starts

    def find_again(self, place: Place, offset: int) -> int:
        """Return where to go on in a partition whose reading broke off. Raises as above."""
        position = Position(offset, self.topic_id(place[0]))
        self._learn_topic_ids({place[0]})
        return self.find(place, position)

    def find(self, place: Place, position: Position) -> int:
        """Return where to go on in a partition that was read up to `position`. Raises as above."""
        gap = find_gap(position, self._extent(place))
        if gap is None:
            return position.offset
        self._metrics.offsets_lost.inc(max(1, gap.lost))  # how many is not always known
        message = f"input: {place[0]}[{place[1]}]: {gap.reason}"
        if not self._settings.accept_gap:
            raise OffsetsLostError(f"{message}: expected every message, or --accept-gap")
        LOG.error("gap accepted", extra={"fields": {"gap": message, "go_on_at": gap.start}})
        return gap.start

    def topic_id(self, topic: str) -> str | None:
        """Return the id of a topic that was assigned; None where the broker does not tell it."""
        return self._topic_ids.get(topic)

    def find_remade(self, topics: Collection[str]) -> list[str]:
        """Return those made anew since they were assigned, by the last look; never waits."""
        now = time.monotonic()
        if topics and now > self._asked_s + LOOK_EVERY_S:
            self._asked_s, self._asked = now, self._describe(topics)
        answered = {topic: answer for topic, answer in self._asked.items() if answer.done()}
        self._asked = {t: answer for t, answer in self._asked.items() if t not in answered}
        found = {topic: _topic_id(answer) for topic, answer in answered.items()}
        return sorted(t for t, known in found.items() if known not in (None, self.topic_id(t)))

    def _find_first(self, place: Place, *, added_later: bool) -> int:
        extent = self._extent(place)
        begin = added_later or self._settings.start == "earliest"
        return extent.low if begin else extent.high

    def _group_positions(self, places: Collection[Place]) -> dict[Place, Position]:
        wanted = [TopicPartition(*place) for place in places]
        known = self._consumer.committed(wanted, timeout=POSITIONS_TIMEOUT_S)
        kept = {
            (p.topic, p.partition): Position(p.offset, p.metadata or None)
            for p in known
            if p.offset >= 0
        }
        forgotten = set(places) - kept.keys()
        return kept | (self.log.recall(forgotten, stable=True) if self.log and forgotten else {})

    def _keep_accepted(self, starts: Mapping[Place, int]) -> None:
        """Let the group keep where reading goes on behind gaps: each is accepted once."""
        positions = [
            TopicPartition(*place, offset, metadata=self.topic_id(place[0]) or "")
            for place, offset in starts.items()
        ]
        if positions:
            self._consumer.commit(offsets=positions, asynchronous=False)

    def _extent(self, place: Place) -> Extent:
        partition = TopicPartition(*place)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=CALL_TIMEOUT_S)
        return Extent(low, high, self.topic_id(place[0]))

    def _learn_topic_ids(self, topics: Collection[str]) -> None:
        self._asked = {}
        for topic, answer in self._describe(topics).items():
            if found := _topic_id(answer):
                self._topic_ids[topic] = found

    def _describe(self, topics: Collection[str]) -> Mapping[str, "Future[Any]"]:
        names = TopicCollection(list(topics))
        answers: Mapping[str, Future[Any]] = self._admin.describe_topics(
            names, request_timeout=CALL_TIMEOUT_S
        )
        return answers


def _topic_id(answer: "Future[Any]") -> str | None:
    """Return the id in an answer; None where the broker does not tell, or the topic is gone."""
    try:
        return str(answer.result().topic_id)
    except KafkaException as error:
        LOG.warning("no topic id", extra={"fields": {"error": error.args[0].str()}})
        return None
