"""Where the positions of the input are kept: by the group, or with an output on another cluster."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from consumer.gaps import Position
from consumer.kafka_client import CALL_TIMEOUT_S, commit
from consumer.message import Place
from consumer.position_log import PositionLog

ANSWER_TIMEOUT_S = 60.0


class PositionStore(Protocol):
    """Keeps and tells positions."""

    def take_over(self, places: Collection[Place]) -> None:
        """Shut former owners out."""

    def recall(self, places: Collection[Place]) -> Mapping[Place, Position]:
        """Return where reading goes on; nothing for a partition without a position."""

    def recall_topics(self) -> Collection[str]:
        """Return the topics in which there are positions."""

    def keep(self, offsets: Mapping[Place, int]) -> None:
        """Keep positions that lead to nothing, such as the first, all or none.

        The first of these places was taken over.
        """

    def keep_each(self, offsets: Mapping[Place, int]) -> None:
        """Keep positions that lead to nothing, of places that were all taken over."""

    def let_go(self, places: Collection[Place]) -> None:
        """Note that partitions belong to others now."""


class GroupPositions:
    """The group keeps them; `log`, if there is one, remembers what a broker forgets of a group.

    All raise KafkaException, as librdkafka does, or what `PositionLog` raises.
    """

    def __init__(
        self,
        group: str,
        consumer: Consumer,
        admin: AdminClient,
        topic_id: Callable[[str], str | None],
        log: PositionLog | None,
    ) -> None:
        self._group = group
        self._consumer = consumer
        self._admin = admin
        self._topic_id = topic_id
        self._log = log

    def take_over(self, places: Collection[Place]) -> None:
        """Do nothing: the group knows its members."""

    def recall(self, places: Collection[Place]) -> dict[Place, Position]:
        """Return where reading goes on; nothing for a partition without a position."""
        wanted = [TopicPartition(*place) for place in places]
        known = self._consumer.committed(wanted, timeout=ANSWER_TIMEOUT_S)
        _raise_first([p.error for p in known])
        kept = {
            (p.topic, p.partition): Position(p.offset, p.metadata or None)
            for p in known
            if p.offset >= 0
        }
        forgotten = set(places) - kept.keys()
        return kept | (self._log.recall(forgotten, stable=True) if self._log and forgotten else {})

    def recall_topics(self) -> set[str]:
        """Return the topics in which there are positions."""
        wanted = [ConsumerGroupTopicPartitions(self._group)]
        (answer,) = self._admin.list_consumer_group_offsets(
            wanted, request_timeout=CALL_TIMEOUT_S
        ).values()
        found = answer.result().topic_partitions
        _raise_first([p.error for p in found])
        kept = {p.topic for p in found if p.offset >= 0}
        return kept | (self._log.recall_topics(stable=True) if self._log else set())

    def keep(self, offsets: Mapping[Place, int]) -> None:
        """Let the group keep positions, and then what remembers them."""
        kept = {
            place: Position(offset, self._topic_id(place[0])) for place, offset in offsets.items()
        }
        positions = [
            TopicPartition(*place, offset, metadata=topic_id or "")
            for place, (offset, topic_id) in kept.items()
        ]
        if positions:
            commit(self._consumer, positions)
            if self._log is not None:
                self._log.keep(kept)

    keep_each = keep

    def let_go(self, places: Collection[Place]) -> None:
        """Do nothing: the group knows its members."""


def _raise_first(errors: Collection[KafkaError | None]) -> None:
    """Raise KafkaException for the first error: what a partition refuses to tell is not nothing."""
    for error in errors:
        if error is not None:
            raise KafkaException(error)
