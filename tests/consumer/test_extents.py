"""What partitions hold: one that no broker leads keeps no other from being read."""

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from consumer.extents import Extents
from consumer.gaps import Extent, Position

LED, LEADERLESS, UNREACHED, FORBIDDEN, GONE = (("hosts", partition) for partition in range(5))
REFUSALS = {
    LEADERLESS: KafkaError._UNKNOWN_PARTITION,  # librdkafka's word for a leader of -1
    UNREACHED: KafkaError._TIMED_OUT,
    FORBIDDEN: KafkaError.TOPIC_AUTHORIZATION_FAILED,
    GONE: KafkaError._UNKNOWN_PARTITION,
}
LEADERS = {LED: 1, LEADERLESS: -1, UNREACHED: 2, FORBIDDEN: 1}
BEGAN = Extent(3, 9, "now")


class Broker:
    """Leads one partition."""

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        if refusal := REFUSALS.get((place.topic, place.partition)):
            raise KafkaException(KafkaError(refusal))
        return 3, 9

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        partitions = {
            number: SimpleNamespace(leader=leader) for (_, number), leader in LEADERS.items()
        }
        return SimpleNamespace(topics={"hosts": SimpleNamespace(partitions=partitions)})


@pytest.fixture
def beats() -> list[None]:
    return []


@pytest.fixture
def extents(beats: list[None]) -> Extents:
    return Extents(Broker(), lambda _: "now", lambda: beats.append(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [LEADERLESS, UNREACHED])
@pytest.mark.parametrize("topic_id", [None, "now"])
def test_a_partition_without_a_leader_is_left_out_where_its_position_is_known(
    extents: Extents, beats: list[None], place: tuple[str, int], topic_id: str | None
) -> None:
    assert extents.find_all([place, LED], {place: Position(5, topic_id)}) == {LED: BEGAN}
    assert len(beats) == 2


@pytest.mark.parametrize(
    ("place", "position"),
    [
        (LEADERLESS, None),  # where it begins cannot be known
        (LEADERLESS, Position(5, "before")),  # nor where its successor does
        (FORBIDDEN, Position(5)),
        (GONE, Position(5)),
    ],
)
def test_others_are_trouble(
    extents: Extents, place: tuple[str, int], position: Position | None
) -> None:
    with pytest.raises(KafkaException):
        extents.find_all([LED, place], {place: position} if position else {})


def test_a_position_in_a_topic_that_does_not_tell_its_id_is_trouble() -> None:
    """It may have been made anew, and the position be one in its predecessor."""
    extents = Extents(Broker(), lambda _: None, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(KafkaException):
        extents.find_all([LEADERLESS], {LEADERLESS: Position(5, "before")})


@pytest.mark.parametrize(
    ("place", "read", "finished"),
    [
        (LED, Position(9), True),
        (LED, Position(8), False),
        (LED, None, False),
        (LEADERLESS, Position(9), False),
        (UNREACHED, Position(9), False),
    ],
)
def test_a_partition_is_finished_where_its_end_is_known(
    extents: Extents, place: tuple[str, int], read: Position | None, finished: bool
) -> None:
    assert extents.is_finished(place, read) is finished
