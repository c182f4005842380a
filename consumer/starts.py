"""Where reading of a partition begins once it is assigned: decided here and nowhere else.

- It has a position, in a store of `positions.py`: reading goes on there. Where messages behind it
  are gone, `OffsetsLostError` names them, unless the gap was accepted.
- It has none, but its topic was read before, or the same topic of another day: it was added later;
  it is read from its beginning.
- It has a position, but no broker leads it, so that nobody can say what it holds: reading goes on
  there once one does, and what is missing is told then. The other partitions do not wait for it.
- Nothing of its topic was ever read: it begins where `input.start` says. The latest is the end that
  the topic has when the first of the group comes to it, and the beginning where its process was
  there before the topic. Before anything is read, these places in all its partitions are kept as
  positions, so that from then on nothing is skipped and nothing older is read: by whoever is
  assigned a partition next, and however quiet it was until then.

Behind the last message of a partition may lie the markers of its writers' transactions. Retention
deletes them like messages, so a position goes on behind them once nothing is in hand.

A broker forgets what a group keeps when the topic is deleted, or when the group was away for long.
What `position_log.py` remembers then takes its place. A topic made anew while it is read is noticed
within seconds; librdkafka alone would read on where the old one ended. What it read by then comes
again once the gap is accepted: the new topic is read from its beginning.
"""

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import UTC, date, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient

from consumer.days import choose_unfinished, find_earlier
from consumer.errors import BrokerError, ConsumerError, OffsetsLostError, WindowAbortedError
from consumer.extents import Extents
from consumer.gaps import Gap, Position, find_gap
from consumer.kafka_client import CALL_TIMEOUT_S, LOG, foreign_errors, open_admin
from consumer.message import Place
from consumer.metrics import Metrics
from consumer.position_log import PositionLog
from consumer.positions import GroupPositions, PositionStore
from consumer.sections import InputSettings

WAIT_FOR_FIRST_S = 0.1
LOOK_EVERY_S = 10.0
"""How often it is looked whether topics are the ones that were assigned."""
UNTOLD_ID = str(Uuid(0, 0))
"""What stands where a broker does not tell the id of a topic."""


class Starts:
    """Finds where reading begins, and what is missing there."""

    def __init__(
        self,
        settings: InputSettings,
        metrics: Metrics,
        consumer: Consumer,
        absent: Collection[str] = (),
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._consumer = consumer
        with foreign_errors("input: topics"):
            self._admin = open_admin(settings)
        self._absent = absent
        self._beat = beat
        self._topic_ids: dict[str, str] = {}
        self._extents = Extents(consumer, self.topic_id, beat)
        self._asked: Mapping[str, Future[Any]] = {}
        self._asked_s = time.monotonic()

    def group_positions(self, log: PositionLog | None = None) -> GroupPositions:
        """Return the group as the store of its positions, with what remembers them."""
        return GroupPositions(self._settings.group, self._consumer, self._admin, self.topic_id, log)

    def find_all(self, places: Collection[Place], positions: PositionStore) -> dict[Place, int]:
        """Return the first offset to read of each partition.

        Raises OffsetsLostError, BrokerError, also where the topic of other partitions was made anew
        meanwhile, or, from librdkafka, KafkaException.
        """
        self._learn_topic_ids({topic for topic, _ in places})
        positions.take_over(places)
        known = positions.recall(places)
        if self._settings.start == "latest" and len(known) < len(places):
            self._begin_at_ends(places, positions)
            known = positions.recall(places)
        extents = self._extents.find_all(places, known)
        self._believe(known)
        found = {p: find_gap(known[p], extents[p]) for p in known.keys() & extents.keys()}
        gaps = {place: gap for place, gap in found.items() if gap is not None}
        behind = self._accept(gaps)
        if not self.keep_positions(behind, positions):  # each gap is accepted once
            raise BrokerError(f"input: expected {behind} kept as positions, got a refusal")
        begins = {place: extent.low for place, extent in extents.items()}
        return begins | {place: position.offset for place, position in known.items()} | behind

    def keep_positions(self, offsets: Mapping[Place, int], positions: PositionStore) -> bool:
        """Keep positions before which nothing is to be read; tell whether that was not refused.

        Raises BrokerError or, from librdkafka, KafkaException where no answer came.
        """
        try:
            positions.keep_each(offsets)
        except WindowAbortedError:
            return False
        except KafkaException as error:
            if error.args[0].code() < 0:  # librdkafka's own, not an answer such as of a rebalance
                raise
            return False
        return True

    def find_unfinished(self, day: date, positions: PositionStore) -> tuple[str, ...]:
        """Return topics of days before those read on `day` (UTC) that were not read to their ends.

        Raises BrokerError or, from librdkafka, KafkaException.
        """
        if not self._settings.dated:
            return ()
        present = self._admin.list_topics(timeout=CALL_TIMEOUT_S).topics
        earlier = find_earlier(self._settings, day, present)
        known = set(positions.recall_topics())
        unfinished: list[str] = []
        for days in earlier.values():
            finished = {}
            for topic in known & set(days.values()):
                places = [(topic, partition) for partition in present[topic].partitions]
                read = positions.recall(places)
                finished[topic] = all(self._extents.is_finished(p, read.get(p)) for p in places)
            unfinished += choose_unfinished(days, finished)
        return tuple(unfinished)

    def topic_id(self, topic: str) -> str | None:
        """Return the id of a topic that was assigned; None where the broker does not tell it."""
        return self._topic_ids.get(topic)

    def check_remade(self, topics: Collection[str]) -> None:
        """Raise BrokerError if one was made anew since it was assigned, by the last look.

        Never waits.
        """
        now = time.monotonic()
        if topics and now > self._asked_s + LOOK_EVERY_S:
            self._asked_s, self._asked = now, self._describe(topics)
        answered = {topic: answer for topic, answer in self._asked.items() if answer.done()}
        self._asked = {t: answer for t, answer in self._asked.items() if t not in answered}
        self._note_ids(answered)

    def _accept(self, gaps: Mapping[Place, Gap]) -> dict[Place, int]:
        """Return where to go on behind gaps. Raises OffsetsLostError unless gaps are accepted."""
        told = {(t, p): f"{t}[{p}]: {gap.reason}" for (t, p), gap in sorted(gaps.items())}
        for gap in gaps.values():
            self._metrics.offsets_lost.inc(max(1, gap.lost))  # how many is not always known
        if gaps and not self._settings.accept_gap:
            which = "; ".join(told.values())
            raise OffsetsLostError(f"input: {which}: expected every message, or --accept-gap")
        for place, gap in gaps.items():
            fields = {"gap": f"input: {told[place]}", "go_on_at": gap.start}
            LOG.error("gap accepted", extra={"fields": fields})
        return {place: gap.start for place, gap in gaps.items()}

    def _believe(self, positions: Mapping[Place, Position]) -> None:
        """Take topics whose ids the broker did not tell for those of the positions in them.

        The first look that tells an id compares it.
        """
        for (topic, _), position in positions.items():
            if position.topic_id is not None:
                self._topic_ids.setdefault(topic, position.topic_id)

    def _begin_at_ends(self, places: Collection[Place], positions: PositionStore) -> None:
        """Keep the ends of the topics that were never read as positions in them.

        Who was assigned the first partition keeps them for all; the others wait until it did. Else
        they could take a topic that is just being begun for one with partitions added later.
        """
        entries = {self._settings.entry_of(topic) for topic, _ in places}
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while unread := entries - self._find_read(positions):
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"input: expected the owner of the first partition of {sorted(unread)} to keep "
                    f"first positions within {CALL_TIMEOUT_S:.0f} s, got none"
                )
            for entry in unread:
                present = _find_places(self._admin, self._settings, entry)
                if present and present[0] in places:
                    self._learn_topic_ids({topic for topic, _ in present})
                    came_later = entry in self._absent
                    extents = {place: self._extents.find(place) for place in present}
                    firsts = {p: e.low if came_later else e.high for p, e in extents.items()}
                    positions.keep(firsts)
            time.sleep(WAIT_FOR_FIRST_S)

    def _find_read(self, positions: PositionStore) -> set[str]:
        """Return the entries of `input.topics` in which there are positions."""
        return {self._settings.entry_of(topic) for topic in positions.recall_topics()}

    def _learn_topic_ids(self, topics: Collection[str]) -> None:
        self._asked = {}
        self._note_ids(self._describe(topics))

    def _note_ids(self, answers: Mapping[str, "Future[Any]"]) -> None:
        """Keep the id of each topic that is told for the first time.

        Raises BrokerError for another one than before: new clients compare all their partitions
        with their positions, not only those that come.
        """
        found = {topic: _topic_id(answer) for topic, answer in answers.items()}
        remade = sorted(t for t, i in found.items() if i and i != self._topic_ids.setdefault(t, i))
        if remade:
            raise BrokerError(f"input: {', '.join(remade)}: made anew while it was read")

    def _describe(self, topics: Collection[str]) -> Mapping[str, "Future[Any]"]:
        names = TopicCollection(list(topics))
        answers: Mapping[str, Future[Any]] = self._admin.describe_topics(
            names, request_timeout=CALL_TIMEOUT_S
        )
        return answers


def of_assignment(error: KafkaException | ConsumerError) -> ConsumerError:
    """Ours for what went wrong in an assignment, whose transaction is not the window's in hand."""
    if isinstance(error, KafkaException):
        return BrokerError(f"input: assignment: {error.args[0].str()}")
    return BrokerError(str(error)) if isinstance(error, WindowAbortedError) else error


def find_absent(settings: InputSettings) -> frozenset[str]:
    """Return the entries of `input.topics` that stand for no topic yet. Raises BrokerError.

    Asked once by a process, before it first reads: what comes later is read from its beginning.
    """
    if not (settings.dated and settings.start == "latest"):
        return frozenset()
    with foreign_errors("input: topics"):
        admin = open_admin(settings)
        return frozenset(e for e in settings.topics if not _find_places(admin, settings, e))


def _find_places(admin: AdminClient, settings: InputSettings, entry: str) -> list[Place]:
    """Return the partitions that an entry of `input.topics` stands for today, in order."""
    found = admin.list_topics(timeout=CALL_TIMEOUT_S).topics
    names = settings.topics_on(datetime.now(UTC).date())
    named = [name for name in names if settings.entry_of(name) == entry]
    return sorted((name, p) for name in named if name in found for p in found[name].partitions)


def _topic_id(answer: "Future[Any]") -> str | None:
    """Return the id in an answer; None where the broker does not tell, or the topic is gone."""
    try:
        topic_id = str(answer.result().topic_id)
        return None if topic_id == UNTOLD_ID else topic_id
    except KafkaException as error:
        LOG.warning("no topic id", extra={"fields": {"error": error.args[0].str()}})
        return None
