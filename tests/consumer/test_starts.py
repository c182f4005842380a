"""Where reading begins: told by ids where a topic was made anew; a gap is accepted once."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from prometheus_client import CollectorRegistry

from consumer import starts as starts_module
from consumer.errors import BrokerError, OffsetsLostError, WindowAbortedError
from consumer.gaps import Position
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.message import Place
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.starts import Starts

PLACE = ("hosts", 0)
ZERO = "AAAAAAAAAAAAAAAAAAAAAA"
"""Kafka's id of no topic, as its clients write it."""


class Described:
    """What the broker says of a topic."""

    def __init__(self, topic_id: str) -> None:
        self.topic_id = topic_id


class FakeAdmin:
    """Tells the ids of all topics one after the other; None: it does not answer."""

    def __init__(self, ids: Collection[str | None]) -> None:
        self._ids = iter(ids)

    def describe_topics(self, names: TopicCollection, **_: Any) -> dict[str, Future[Described]]:
        answer: Future[Described] = Future()
        if (topic_id := next(self._ids)) is None:
            answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        else:
            answer.set_result(Described(topic_id))
        return {"hosts": answer}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    """Looks at its topics whenever it is asked."""
    monkeypatch.setattr(starts_module, "LOOK_EVERY_S", -1.0)
    settings = Settings.model_validate({"input": {"bootstrap": "127.0.0.1:1", "topics": ["hosts"]}})
    source = KafkaSource(settings, Metrics(CollectorRegistry()), Health())
    yield source.starts
    source._consumer.close()


def test_a_certificate_in_exchange_is_trouble() -> None:
    cluster = {"kafka": {"security.protocol": "ssl", "ssl.ca.location": "/none.pem"}}
    settings = Settings.model_validate({"input": cluster}).input
    with pytest.raises(BrokerError, match=r"input: topics: .*ssl\.ca\.location"):
        Starts(settings, Metrics(CollectorRegistry()), Emptied())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ids", [["a", "a", "b"], [None, "a", "a", None, "b"], [ZERO, "a", "a", ZERO, "b"]]
)
def test_a_topic_made_anew_is_found(starts: Starts, ids: list[str | None]) -> None:
    """Not one whose id the broker did not tell when it was assigned."""
    starts._admin = FakeAdmin(ids)  # type: ignore[assignment]
    starts._learn_topic_ids({"hosts"})
    for _ in ids[2:]:
        starts.check_remade({"hosts"})
    with pytest.raises(BrokerError, match="input: hosts: made anew while it was read"):
        starts.check_remade({"hosts"})


def test_partitions_that_come_do_not_hide_that_the_topic_of_others_was_made_anew(
    starts: Starts,
) -> None:
    """Under a cooperative protocol those that stay are not compared with their positions."""
    starts._consumer = starts._extents._consumer = Emptied()  # type: ignore[assignment]
    starts._admin = FakeAdmin(["a", "b"])  # type: ignore[assignment]
    positions = FakePositions(Position(20, "a"))
    assert starts.find_all([PLACE], positions) == {PLACE: 20}
    other = ("hosts", 1)
    positions.kept[other] = Position(20, "b")
    with pytest.raises(BrokerError, match="input: hosts: made anew while it was read"):
        starts.find_all([other], positions)


def test_a_position_tells_the_id_of_a_topic_whose_broker_did_not(starts: Starts) -> None:
    """Made anew and already longer than the old one, it would be read on in the middle."""
    starts._consumer = starts._extents._consumer = Emptied()  # type: ignore[assignment]
    starts._admin = FakeAdmin([None, "b"])  # type: ignore[assignment]
    positions = FakePositions(Position(20, "a"))
    assert starts.find_all([PLACE], positions) == {PLACE: 20}
    assert starts.topic_id("hosts") == "a"
    with pytest.raises(BrokerError, match="made anew"):
        starts.check_remade({"hosts"})


def test_every_gap_is_told_and_counted_once(starts: Starts) -> None:
    other = ("hosts", 1)
    starts._consumer = starts._extents._consumer = Emptied()  # type: ignore[assignment]
    starts._admin = FakeAdmin(["a"])  # type: ignore[assignment]
    positions = FakePositions(Position(10, "a"))
    positions.kept[other] = Position(15, "a")
    with pytest.raises(
        OffsetsLostError, match=r"hosts\[0\]: .* 10 to 19 .*hosts\[1\]: .* 15 to 19"
    ):
        starts.find_all([PLACE, other], positions)
    assert starts._metrics.offsets_lost._value.get() == 15


class Emptied:
    """A consumer of a partition from which all was deleted, up to offset 20."""

    def __init__(self) -> None:
        self.kept = 10

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(*PLACE, self.kept)]

    def commit(self, offsets: list[TopicPartition], *, asynchronous: bool) -> None:
        (self.kept,) = (place.offset for place in offsets)

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 20, 20


class FakePositions:
    """Keeps positions with the output, as with two clusters; refuses to where it is `lost`."""

    lost = False

    def __init__(self, kept: Position) -> None:
        self.kept = {PLACE: kept}

    def take_over(self, places: Collection[Place]) -> None:
        pass

    def recall(self, places: Collection[Place]) -> Mapping[Place, Position]:
        return self.kept

    def recall_topics(self) -> Sequence[str]:
        return ["hosts"]

    def keep(self, ends: Mapping[Place, int]) -> None:
        if self.lost:
            raise WindowAbortedError("output: rolled back")
        self.kept |= {place: Position(end, "a") for place, end in ends.items()}

    keep_each = keep

    def let_go(self, places: Collection[Place]) -> None:
        pass


@pytest.fixture
def emptied(starts: Starts) -> Starts:
    starts._admin = FakeAdmin(["a"] * 9)  # type: ignore[assignment]
    starts._consumer = starts._extents._consumer = Emptied()
    return starts


def test_what_a_group_does_not_tell_is_not_nothing(emptied: Starts) -> None:
    """Else a topic would be read from where `input.start` says."""
    refused = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    untold = SimpleNamespace(topic="hosts", partition=0, offset=-1001, error=refused)
    emptied._consumer.committed = lambda places, timeout: [untold]  # type: ignore[method-assign]
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        emptied.find_all([PLACE], emptied.group_positions())


def accept(starts: Starts, *, gaps: bool) -> None:
    starts._settings = starts._settings.model_copy(update={"accept_gap": gaps})


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (Position(10), "offsets 10 to 19 were deleted unread"),
        (Position(20, "of before"), "the topic was made anew"),  # its offset stays the same
    ],
)
def test_a_gap_between_two_clusters_is_accepted_once(
    emptied: Starts, kept: Position, reason: str
) -> None:
    positions = FakePositions(kept)
    with pytest.raises(OffsetsLostError, match=reason):
        emptied.find_all([PLACE], positions)
    accept(emptied, gaps=True)
    assert emptied.find_all([PLACE], positions) == {PLACE: 20}
    accept(emptied, gaps=False)
    assert emptied.find_all([PLACE], positions) == {PLACE: 20}


def test_an_accepted_gap_that_cannot_be_kept_is_named(emptied: Starts) -> None:
    positions = FakePositions(Position(10))
    positions.lost = True
    accept(emptied, gaps=True)
    with pytest.raises(BrokerError, match=r"expected .* kept as positions, got a refusal"):
        emptied.find_all([PLACE], positions)


class FakeLog:
    """Remembers what the group may forget."""

    def __init__(self) -> None:
        self.kept: dict[Place, Position] = {}

    def keep(self, positions: Mapping[Place, Position]) -> None:
        self.kept |= positions


def test_what_a_group_keeps_is_remembered(emptied: Starts) -> None:
    """Also where it leads to nothing, such as an accepted gap or an end behind markers."""
    log = FakeLog()
    positions = emptied.group_positions(log)  # type: ignore[arg-type]
    accept(emptied, gaps=True)
    emptied.find_all([PLACE], positions)
    assert log.kept == {PLACE: Position(20, "a")}
    emptied.keep_positions({PLACE: 21}, positions)
    assert log.kept == {PLACE: Position(21, "a")}
