"""Where reading of a partition begins once it is assigned: decided here and nowhere else.

- It has a position, kept by the group or, with two clusters, by `Positions`: reading goes on there.
  Where messages behind it are gone, `OffsetsLostError` names them, unless the gap was accepted.
- It has none, but other partitions of its topic have: it was added later; it is read from its
  beginning.
- Nothing of its topic was ever read: it begins where `input.start` says. So does a topic that was
  deleted and made anew, if the group keeps the positions: the broker forgets them with the topic.
"""

from collections.abc import Collection, Mapping
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.errors import OffsetsLostError
from consumer.gaps import Extent, Position, find_gap
from consumer.kafka_client import CALL_TIMEOUT_S, LOG
from consumer.message import Place
from consumer.metrics import Metrics
from consumer.sections import InputSettings

POSITIONS_TIMEOUT_S = 60.0


class Positions(Protocol):
    """Where the positions of the input are kept, if the group does not keep them."""

    def take_over(self, places: Collection[Place]) -> Mapping[Place, Position]:
        """Shut former owners out, then return where reading goes on; none for a new partition."""

    def let_go(self, places: Collection[Place]) -> None:
        """Note that partitions belong to others now."""


class Starts:
    """Finds where reading begins, and what is missing there."""

    def __init__(self, settings: InputSettings, metrics: Metrics, consumer: Consumer) -> None:
        self._settings = settings
        self._metrics = metrics
        self._consumer = consumer
        self._topic_ids: dict[str, str] = {}

    def find_all(self, places: Collection[Place], positions: Positions | None) -> dict[Place, int]:
        """Return the first offset to read of each partition.

        Raises OffsetsLostError, BrokerError or, from librdkafka, KafkaException.
        """
        self._learn_topic_ids({topic for topic, _ in places})
        known = positions.take_over(places) if positions else self._group_positions(places)
        read = {topic for topic, _ in known}
        return {
            place: self.find(place, known[place])
            if place in known
            else self._find_first(place, added_later=place[0] in read)
            for place in places
        }

    def find(self, place: Place, position: Position) -> int:
        """Return where to go on in a partition that was read up to `position`. Raises as above."""
        gap = find_gap(position, self._extent(place))
        if gap is None:
            return position.offset
        self._metrics.offsets_lost.inc(gap.lost)
        message = f"input: {place[0]}[{place[1]}]: {gap.reason}"
        if not self._settings.accept_gap:
            raise OffsetsLostError(f"{message}: expected every message, or --accept-gap")
        LOG.error("gap accepted", extra={"fields": {"gap": message, "go_on_at": gap.start}})
        return gap.start

    def topic_id(self, topic: str) -> str | None:
        """Return the id of a topic that was assigned; None where the broker does not tell it."""
        return self._topic_ids.get(topic)

    def _find_first(self, place: Place, *, added_later: bool) -> int:
        extent = self._extent(place)
        begin = added_later or self._settings.start == "earliest"
        return extent.low if begin else extent.high

    def _group_positions(self, places: Collection[Place]) -> dict[Place, Position]:
        wanted = [TopicPartition(*place) for place in places]
        known = self._consumer.committed(wanted, timeout=POSITIONS_TIMEOUT_S)
        return {
            (p.topic, p.partition): Position(p.offset, p.metadata or None)
            for p in known
            if p.offset >= 0
        }

    def _extent(self, place: Place) -> Extent:
        partition = TopicPartition(*place)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=CALL_TIMEOUT_S)
        return Extent(low, high, self.topic_id(place[0]))

    def _learn_topic_ids(self, topics: Collection[str]) -> None:
        client = AdminClient({**self._settings.client_config(), "log_level": 3}, logger=LOG)
        found = client.describe_topics(
            TopicCollection(list(topics)), request_timeout=CALL_TIMEOUT_S
        )
        for topic, description in found.items():
            try:
                self._topic_ids[topic] = str(description.result().topic_id)
            except KafkaException as error:
                fields = {"topic": topic, "error": error.args[0].str()}
                LOG.warning("no topic id", extra={"fields": fields})
