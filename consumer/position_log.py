"""The compacted topic of input positions on the output's cluster: `<output>.sedflow.offsets`.

Its keys are `[input cluster id, group, topic, partition]`; a value holds the offset to read next
and the id of the topic. Between two clusters it is where the positions are kept. On one cluster the
group keeps them; but a broker forgets a group's positions when the topic is deleted, or after a
week without the group. This topic remembers, so that neither a topic made anew nor a forgotten
group is read from the start unseen.

Where the topic was given more partitions, a key may stand in several: the newer record holds, by
its timestamp.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from consumer.errors import BrokerError
from consumer.gaps import Position
from consumer.kafka_client import (
    CALL_TIMEOUT_S,
    DEFAULT_LIMITS,
    LOG,
    client_config,
    foreign_errors,
    open_admin,
)
from consumer.message import Place
from consumer.outlet import Outlet
from consumer.sections import ClientOption
from consumer.settings import Settings

CATCH_UP_S = 60.0
PREFETCH: Mapping[str, ClientOption] = {"queued.min.messages": 1_000}
"""What is fetched between two recalls waits in memory until the next one."""
OF_THE_GROUP = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED})
"""Librdkafka looks for a coordinator of any group it is given, one that is never joined too."""


class Written(NamedTuple):
    """Partition and time of the latest record of a key."""

    partition: int
    time_ms: int


class PositionLog:
    """Reads the topic of positions, once and then what was added; tells what to write to it.

    The sinks write it, with what they publish; what leads to nothing is written here. `beat` is
    called while much is read.
    """

    def __init__(
        self, settings: Settings, input_cluster: str, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._beat = beat
        self.topic = settings.output.offsets_topic_name
        self._owner = [input_cluster, settings.input.group]
        forced: dict[str, ClientOption] = {
            "group.id": f"{settings.input.group}.positions",  # never joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
        config = client_config("output", settings.output, PREFETCH, forced)
        self._settings = settings
        self._known: dict[bytes, Position] = {}
        self._written: dict[bytes, Written] = {}
        self._read_to: dict[int, int] = {}
        with foreign_errors("output: positions"):
            self._admin = open_admin(settings.output)
            self._consumer = Consumer(config, logger=LOG)
            self._follow_partitions()

    def recall(self, places: Collection[Place], *, stable: bool = False) -> dict[Place, Position]:
        """Return the positions known up to now; `stable`: those before any open transaction.

        Raises BrokerError.
        """
        self._read_on(self._find_ends(stable=stable))
        keys = {place: self._key(place) for place in places}
        return {place: self._known[key] for place, key in keys.items() if key in self._known}

    def recall_topics(self, *, stable: bool = False) -> set[str]:
        """Return the input topics in which a position is known, as `recall` does."""
        self._read_on(self._find_ends(stable=stable))
        ours = json.dumps(self._owner).encode().rstrip(b"]")
        return {json.loads(key)[-2] for key in self._known if key.startswith(ours + b", ")}

    def record(self, place: Place, offset: int, topic_id: str | None) -> tuple[bytes, bytes]:
        """Return key and value of the message that says where to go on in a partition."""
        return self._key(place), json.dumps({"offset": offset, "topicId": topic_id}).encode()

    def keep(self, positions: Mapping[Place, Position]) -> None:
        """Write positions that the group has by now. Raises BrokerError."""
        outlet = self._outlet
        outlet.refused.clear()
        with foreign_errors("output: positions"):
            for place, position in positions.items():
                outlet.produce(self.topic, *self.record(place, *position), ())
            missing = outlet.count_unconfirmed(CALL_TIMEOUT_S)
        if missing:
            raise BrokerError(
                f"output: expected positions written to {self.topic}, got "
                f"{outlet.refused or missing}"
            )

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    @cached_property
    def _outlet(self) -> Outlet:
        """Made when it is needed first: most workers keep nothing but what they publish."""
        return Outlet(self._settings, {"enable.idempotence": True}, DEFAULT_LIMITS)

    def _key(self, place: Place) -> bytes:
        return json.dumps([*self._owner, *place]).encode()

    def _read_on(self, ends: Mapping[int, int]) -> None:
        deadline = time.monotonic() + CATCH_UP_S
        with foreign_errors("output: positions"):
            while any(self._read_to[p] < end for p, end in ends.items()):
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"output: expected {self.topic} read up to {ends}, got {self._read_to} and "
                        f"nothing more for {CATCH_UP_S:.0f} s"
                    )
                self._beat()
                before = dict(self._read_to)
                for event in self._consumer.consume(1000, 0.1):
                    self._note(event)
                if self._read_to != before:
                    deadline = time.monotonic() + CATCH_UP_S

    def _follow_partitions(self) -> None:
        """Read those too that were added since."""
        found = self._admin.list_topics(self.topic, timeout=CALL_TIMEOUT_S).topics[self.topic]
        if found.error is not None:  # it would seem to hold no position
            raise KafkaException(found.error)
        if added := found.partitions.keys() - self._read_to.keys():
            self._read_to |= self._find_offsets(added, OffsetSpec.earliest())
            self._consumer.assign([TopicPartition(self.topic, *at) for at in self._read_to.items()])

    def _find_ends(self, *, stable: bool) -> dict[int, int]:
        """The ends of the partitions, open transactions included unless `stable`."""
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        with foreign_errors("output: positions"):
            self._follow_partitions()
            return self._find_offsets(self._read_to, OffsetSpec.latest(), level)

    def _find_offsets(
        self,
        partitions: Collection[int],
        spec: OffsetSpec,
        level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    ) -> dict[int, int]:
        wanted = {TopicPartition(self.topic, partition): spec for partition in partitions}
        found = self._admin.list_offsets(
            wanted, isolation_level=level, request_timeout=CALL_TIMEOUT_S
        )
        return {p.partition: future.result().offset for p, future in found.items()}

    def _note(self, event: Any) -> None:
        error = event.error()
        if error is None:
            self._note_record(event)
            self._read_to[event.partition()] = event.offset() + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            self._read_to[event.partition()] = event.offset()
        elif error.code() not in OF_THE_GROUP:
            raise KafkaException(error)

    def _note_record(self, event: Any) -> None:
        """Learn a position; a null, by which a key of a compacted topic is deleted, forgets it."""
        written = Written(event.partition(), event.timestamp()[1])
        last = self._written.get(event.key())
        if last and last.partition != written.partition and last.time_ms > written.time_ms:
            return
        self._written[event.key()] = written
        if event.value() is None:
            self._known.pop(event.key(), None)
            return
        try:
            record = json.loads(event.value())
            self._known[event.key()] = Position(record["offset"], record["topicId"])
        except (ValueError, TypeError, KeyError) as error:
            place = f"{event.topic()}[{event.partition()}] at {event.offset()}"
            raise BrokerError(
                f"output: {place}: expected a position, got {event.value()!r:.80}"
            ) from error


def produce_positions(
    outlet: Outlet,
    log: PositionLog,
    offsets: Mapping[Place, int],
    topic_id: Callable[[str], str | None],
) -> None:
    """Produce, with what else an outlet sends, where to go on in each partition."""
    for place, offset in offsets.items():
        outlet.produce(log.topic, *log.record(place, offset, topic_id(place[0])), ())
