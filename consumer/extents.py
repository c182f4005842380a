"""What partitions hold, as far as somebody answers for them."""

from collections.abc import Callable, Collection, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from consumer.gaps import Extent, Position
from consumer.kafka_client import CALL_TIMEOUT_S, LOG
from consumer.message import Place

NO_LEADER = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    }
)
"""What is heard of a partition that no broker leads."""


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

    def find(self, place: Place) -> Extent:
        """Return what a partition holds. Raises KafkaException where nobody says."""
        self._beat()
        partition = TopicPartition(*place)
        low, high = self._consumer.get_watermark_offsets(partition, timeout=CALL_TIMEOUT_S)
        return Extent(low, high, self._topic_id(place[0]))

    def find_all(
        self, places: Collection[Place], known: Mapping[Place, Position]
    ) -> dict[Place, Extent]:
        """Return what partitions hold; those without a leader are left out where one is known.

        Raises KafkaException.
        """
        extents = {}
        for place in places:
            try:
                extents[place] = self.find(place)
            except KafkaException as error:
                if error.args[0].code() not in NO_LEADER or not self._is_of(
                    known.get(place), place
                ):
                    raise
                name = f"{place[0]}[{place[1]}]"
                fields = {"partition": name, "error": error.args[0].str()}
                LOG.warning("no leader", extra={"fields": fields})
        return extents

    def is_finished(self, place: Place, read: Position | None) -> bool:
        """Whether a partition was read to its end; not where nobody says. Raises KafkaException."""
        try:
            extent = self.find(place)
        except KafkaException as error:
            if error.args[0].code() not in NO_LEADER:
                raise
            return False
        return (read.offset if read else extent.low) >= extent.high

    def _is_of(self, position: Position | None, place: Place) -> bool:
        """Whether this is a position in the topic that is there now, not in one before it."""
        topic_id = self._topic_id(place[0])
        return position is not None and (not topic_id or position.topic_id in (None, topic_id))
