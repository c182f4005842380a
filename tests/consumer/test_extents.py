"""What partitions hold: one that no broker leads keeps no other from being read."""

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from consumer.extents import Extents
from consumer.gaps import Extent, Position

LED, LEADERLESS, FORBIDDEN = ("hosts", 0), ("hosts", 1), ("hosts", 2)
REFUSALS = {
    LEADERLESS: KafkaError.LEADER_NOT_AVAILABLE,
    FORBIDDEN: KafkaError.TOPIC_AUTHORIZATION_FAILED,
}
BEGAN = Extent(3, 9, "now")


class Broker:
    """Leads one partition."""

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        if refusal := REFUSALS.get((place.topic, place.partition)):
            raise KafkaException(KafkaError(refusal))
        return 3, 9


@pytest.fixture
def beats() -> list[None]:
    return []


@pytest.fixture
def extents(beats: list[None]) -> Extents:
    return Extents(Broker(), lambda _: "now", lambda: beats.append(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("topic_id", [None, "now"])
def test_a_partition_without_a_leader_is_left_out_where_its_position_is_known(
    extents: Extents, beats: list[None], topic_id: str | None
) -> None:
    known = {LEADERLESS: Position(5, topic_id)}
    assert extents.find_all([LED, LEADERLESS], known) == {LED: BEGAN}
    assert len(beats) == 2


@pytest.mark.parametrize(
    ("place", "position"),
    [
        (LEADERLESS, None),  # where it begins cannot be known
        (LEADERLESS, Position(5, "before")),  # nor where its successor does
        (FORBIDDEN, Position(5)),
    ],
)
def test_others_are_trouble(
    extents: Extents, place: tuple[str, int], position: Position | None
) -> None:
    with pytest.raises(KafkaException):
        extents.find_all([LED, place], {place: position} if position else {})


@pytest.mark.parametrize(
    ("place", "read", "finished"),
    [
        (LED, Position(9), True),
        (LED, Position(8), False),
        (LED, None, False),
        (LEADERLESS, Position(9), False),
    ],
)
def test_a_partition_is_finished_where_its_end_is_known(
    extents: Extents, place: tuple[str, int], read: Position | None, finished: bool
) -> None:
    assert extents.is_finished(place, read) is finished
