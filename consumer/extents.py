"""What partitions hold, as far as somebody answers for them."""

from collections.abc import Callable, Collection, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumer.gaps import Extent, Position
from consumer.kafka_client import CALL_TIMEOUT_S, LOG, NO_ANSWER
from consumer.message import Place

LESS_PATIENT_S = 1.0
"""How long is waited where one was missed already, or where it can be done without."""


class Extents:
    """Asks for the offsets of partitions, one after the other; `beat` is called before each."""

    def __init__(
        self,
        consumer: Consumer,
        topic_id: Callable[[str], str | None],
        beat: Callable[[], None],
    ) -> None:
        self._consumer = consumer
        self._topic_id = topic_id
        self._beat = beat

    def find(self, place: Place, timeout_s: float = CALL_TIMEOUT_S) -> Extent:
        """Return what a partition holds. Raises KafkaException where nobody says."""
        self._beat()
        partition = TopicPartition(*place)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=timeout_s)
        return Extent(low, high, self._topic_id(place[0]))

    def find_all(
        self, places: Collection[Place], known: Mapping[Place, Position]
    ) -> dict[Place, Extent]:
        """Return what partitions hold; those without a leader are left out where one is known.

        Raises KafkaException.
        """
        extents, timeout_s = {}, CALL_TIMEOUT_S
        for place in places:
            try:
                extents[place] = self.find(place, timeout_s)
            except KafkaException as error:
                timeout_s = LESS_PATIENT_S
                if not (self._is_of(known.get(place), place) and self._has_no_leader(place, error)):
                    raise
                name = f"{place[0]}[{place[1]}]"
                fields = {"partition": name, "error": error.args[0].str()}
                LOG.warning("no leader", extra={"fields": fields})
        return extents

    def is_finished(self, place: Place, read: Position | None) -> bool:
        """Whether a partition was read to its end; not where nobody says. Raises KafkaException."""
        try:
            extent = self.find(place, LESS_PATIENT_S)
        except KafkaException as error:
            if not self._has_no_leader(place, error):
                raise
            return False
        return (read.offset if read else extent.low) >= extent.high

    def _is_of(self, position: Position | None, place: Place) -> bool:
        """Whether this is a position in the topic that is there now, not in one before it."""
        return position is not None and position.topic_id in (None, self._topic_id(place[0]))

    def _has_no_leader(self, place: Place, error: KafkaException) -> bool:
        """Whether the error means that the partition is there, but nobody answers for it."""
        code = error.args[0].code()
        if code != KafkaError._UNKNOWN_PARTITION:
            return code in NO_ANSWER
        topics = self._consumer.list_topics(place[0], timeout=CALL_TIMEOUT_S).topics
        partition = topics[place[0]].partitions.get(place[1]) if place[0] in topics else None
        return partition is not None and partition.leader < 0
