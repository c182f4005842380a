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

from collections.abc import Collection, Mapping

from consumer.gaps import Position
from consumer.kafka import KafkaSource
from consumer.kafka_client import find_limits
from consumer.kafka_sink import Transactions
from consumer.message import Place, Window, next_offsets
from consumer.metrics import Metrics
from consumer.position_log import PositionLog, produce_positions
from consumer.settings import Settings


class TwoClusterSink:
    """Publishes each partition's part of a window, and its position, in one transaction."""

    def __init__(
        self, settings: Settings, metrics: Metrics, source: KafkaSource, input_cluster: str
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._source = source
        self.limits = find_limits(settings)
        self._log = PositionLog(settings, input_cluster, source.beat)
        self._transactions: dict[Place, Transactions] = {}

    def take_over(self, places: Collection[Place]) -> None:
        """Shut former owners out. Raises BrokerError."""
        for place in sorted(places):
            self._source.beat()
            self._transactions[place] = Transactions(
                self._settings,
                self._metrics,
                f"{self._settings.input.group}-{place[0]}-{place[1]}",
                self.limits,
            )

    def recall(self, places: Collection[Place]) -> Mapping[Place, Position]:
        """Return where reading goes on. Raises BrokerError."""
        return self._log.recall(places)

    def recall_topics(self) -> Collection[str]:
        """Return the topics in which there are positions. Raises BrokerError."""
        return self._log.recall_topics()

    def keep(self, offsets: Mapping[Place, int]) -> None:
        """Keep positions that lead to nothing, all or none, as the owner of the first of them.

        Raises as `Transactions.publish` does.
        """

        def add_offsets(transactions: Transactions, _: Window) -> None:
            self._produce_positions(transactions, offsets)

        self._transactions[min(offsets)].publish(Window((), (), ()), add_offsets)

    def keep_each(self, offsets: Mapping[Place, int]) -> None:
        """Keep positions that lead to nothing, as `keep` does, each as its partition's owner."""
        for place, offset in offsets.items():
            self._source.beat()
            self.keep({place: offset})

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
            self._transactions[place].publish_again(part, self._add_position, self._source.beat)
            self._source.advance(part)

    def close(self) -> None:
        """Close what reads the positions."""
        self._log.close()

    def _add_position(self, transactions: Transactions, part: Window) -> None:
        self._produce_positions(transactions, next_offsets(part.consumed))

    def _produce_positions(self, transactions: Transactions, offsets: Mapping[Place, int]) -> None:
        produce_positions(transactions, self._log, offsets, self._source.starts.topic_id)


def split_by_place(window: Window) -> dict[Place, Window]:
    """Return the part of the window of each partition, in the order they first appear."""
    outcomes = list(window.outcomes())
    places = dict.fromkeys(m.place for m in window.consumed)
    parts = {}
    for place in places:
        mine = [(m, o) for m, o in outcomes if m.place == place]
        parts[place] = Window.of([m for m, _ in mine], [o for _, o in mine])
    return parts
