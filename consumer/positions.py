"""Exactly once from one cluster to another: the input's positions live beside the output.

A Kafka transaction cannot span clusters, and a reader often may not write to the cluster it reads.
So the position behind a window goes, in the transaction of its summaries, to the compacted topic
`<output>.sedflow.offsets` on the output's cluster, under the key
`[input cluster id, group, topic, partition]`. Each partition has a transactional id of its own,
`<group>-<topic>-<partition>`. Who is assigned the partition

1. starts transactions under that id: what its former owner left open is rolled back, and whatever
   that owner still tries is refused, however long it slept;
2. reads the topic up to the end it has at this moment, not merely to where it is stable: another
   partition's open transaction may lie before the record wanted;
3. goes on reading behind the position found.

A window is split by partition. A part that was rolled back is tried again as it is: its partition
cannot have changed hands without this producer being refused.
"""

import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from consumer.errors import BrokerError, WindowAbortedError
from consumer.gaps import Position
from consumer.kafka import KafkaSource, next_offsets
from consumer.kafka_client import (
    CALL_TIMEOUT_S,
    LOG,
    client_config,
    find_letter_limit,
    foreign_errors,
)
from consumer.kafka_sink import Transactions
from consumer.message import DeadLetter, Place, Result, Window
from consumer.metrics import Metrics
from consumer.sections import ClientOption
from consumer.settings import Settings

CATCH_UP_S = 60.0
MAX_ABORTS_IN_A_ROW = 5
FIRST_PAUSE_S = 0.1


class TwoClusterSink:
    """Publishes each partition's part of a window, and its position, in one transaction."""

    def __init__(
        self, settings: Settings, metrics: Metrics, source: KafkaSource, input_cluster: str
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._source = source
        self._input_cluster = input_cluster
        self._letter_limit = find_letter_limit(settings)
        self._log = PositionLog(settings)
        self._transactions: dict[Place, Transactions] = {}

    def take_over(self, places: Collection[Place]) -> Mapping[Place, Position]:
        """Shut former owners out, then return where reading goes on.

        Raises BrokerError.
        """
        for place in sorted(places):
            self._transactions[place] = Transactions(
                self._settings,
                self._metrics,
                f"{self._settings.input.group}-{place[0]}-{place[1]}",
                self._letter_limit,
            )
        known = self._log.read_to_end()
        keys = {place: self._key(place) for place in places}
        return {place: known[key] for place, key in keys.items() if key in known}

    def let_go(self, places: Collection[Place]) -> None:
        """Forget the producers of partitions that belong to others now."""
        for place in places:
            self._transactions.pop(place, None)

    def publish(self, window: Window) -> None:
        """Commit the parts of the window, each with its position.

        Raises BrokerError when a part was rolled back time and again, WorkerLostError when the
        process must end; parts before it are committed then, as their positions tell.
        """
        for place, part in split_by_place(window).items():
            self._publish_part(self._transactions[place], part)
            self._source.advance(part)

    def close(self) -> None:
        """Close what reads the positions."""
        self._log.close()

    def _publish_part(self, transactions: Transactions, part: Window) -> None:
        for aborts in range(MAX_ABORTS_IN_A_ROW):
            try:
                return transactions.publish(part, self._add_position)
            except WindowAbortedError as error:
                last = error
                self._metrics.commit_failures.inc()
                LOG.warning("window rolled back", extra={"fields": {"error": str(error)}})
                time.sleep(FIRST_PAUSE_S * 2**aborts)
        raise BrokerError(f"expected a window to commit, got aborts only: {last}") from last

    def _add_position(self, transactions: Transactions, part: Window) -> None:
        for place, offset in next_offsets(part.consumed).items():
            position = {"offset": offset, "topicId": self._source.starts.topic_id(place[0])}
            topic, value = self._settings.output.positions_topic, json.dumps(position).encode()
            transactions.produce(topic, self._key(place), value, ())

    def _key(self, place: Place) -> bytes:
        return json.dumps([self._input_cluster, self._settings.input.group, *place]).encode()


class PositionLog:
    """Reads the topic of positions, once and then what was added."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.output.positions_topic
        forced: dict[str, ClientOption] = {
            "group.id": f"{settings.input.group}.positions",  # never joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
        config = client_config("output", settings.output, {}, forced)
        self._known: dict[bytes, Position] = {}
        self._read_to: dict[int, int] = {}
        with foreign_errors("output: positions"):
            self._admin = AdminClient({**settings.output.client_config(), "log_level": 3})
            self._consumer = Consumer(config, logger=LOG)
            topics = self._consumer.list_topics(self._topic, timeout=CALL_TIMEOUT_S).topics
            partitions = [TopicPartition(self._topic, p) for p in topics[self._topic].partitions]
            for partition in partitions:
                low, _ = self._consumer.get_watermark_offsets(partition, timeout=CALL_TIMEOUT_S)
                partition.offset = self._read_to[partition.partition] = low
            self._consumer.assign(partitions)

    def read_to_end(self) -> Mapping[bytes, Position]:
        """Return every position committed up to now, by key. Raises BrokerError."""
        with foreign_errors("output: positions"):
            ends = self._find_ends()
            deadline = time.monotonic() + CATCH_UP_S
            while any(self._read_to[p] < end for p, end in ends.items()):
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"output: expected {self._topic} read up to {ends} within "
                        f"{CATCH_UP_S:.0f} s, got {self._read_to}"
                    )
                for event in self._consumer.consume(1000, 0.1):
                    self._note(event)
        return self._known

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _find_ends(self) -> dict[int, int]:
        """The ends of the partitions, open transactions included."""
        wanted = {TopicPartition(self._topic, p): OffsetSpec.latest() for p in self._read_to}
        found = self._admin.list_offsets(wanted, request_timeout=CALL_TIMEOUT_S)
        return {p.partition: future.result().offset for p, future in found.items()}

    def _note(self, event: Any) -> None:
        error = event.error()
        if error is None:
            record = json.loads(event.value())
            self._known[event.key()] = Position(record["offset"], record["topicId"])
            self._read_to[event.partition()] = event.offset() + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            self._read_to[event.partition()] = event.offset()
        elif not error.retriable():
            raise KafkaException(error)


def split_by_place(window: Window) -> dict[Place, Window]:
    """Return the part of the window of each partition, in the order they first appear."""
    outcomes = list(window.outcomes())
    places = dict.fromkeys((m.topic, m.partition) for m in window.consumed)
    parts = {}
    for place in places:
        mine = [(m, o) for m, o in outcomes if (m.topic, m.partition) == place]
        parts[place] = Window(
            tuple(message for message, _ in mine),
            tuple(outcome for _, outcome in mine if isinstance(outcome, Result)),
            tuple(outcome for _, outcome in mine if isinstance(outcome, DeadLetter)),
        )
    return parts
