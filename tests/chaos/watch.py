"""What comes out, as a reader under read_committed sees it: how much, how soon, how steadily."""

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from tests.integration.broker import N_PARTITION
from tests.integration.conftest import Topics

from .feed import partition_of


@dataclass(frozen=True)
class Fault:
    """When something was done, by the clock of messages [ms] and by that of waiting [s]."""

    at_ms: float = field(default_factory=lambda: time.time() * 1e3)
    at_s: float = field(default_factory=time.monotonic)


@dataclass
class Watch:
    """Follows the output while things break."""

    expected: Counter[int] = field(default_factory=Counter)
    """Alerts by input partition."""
    ids: set[int] = field(default_factory=set)
    letters: set[bytes] = field(default_factory=set)
    recoveries_s: list[float] = field(default_factory=list)
    longest_stall_s: float = 0.0
    """Longest time between two neighbours in a partition of the output."""
    _done: Counter[int] = field(default_factory=Counter)
    _newest_ms: dict[int, int] = field(default_factory=dict)
    _arrived_s: dict[int, float] = field(default_factory=dict)
    _open: list[Fault] = field(default_factory=list)

    def start(self, bootstrap: str, topics: Topics, stop: threading.Event) -> None:
        """Read in the background until `stop`, from fixed places: no group can lose them."""
        arguments = (bootstrap, topics, stop)
        threading.Thread(target=self._read, args=arguments, daemon=True).start()

    def note_fault(self) -> None:
        """Time from now on until every input partition is served again."""
        self._open.append(Fault())

    @property
    def recovered(self) -> bool:
        """Whether there is no fault that some partition has not recovered from."""
        return not self._open

    def forget_stalls(self) -> None:
        """Measure stalls anew from here on."""
        self.longest_stall_s = 0.0
        self._arrived_s.clear()

    def _read(self, bootstrap: str, topics: Topics, stop: threading.Event) -> None:
        consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "watch",  # never joined
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        names, partitions = (topics.summaries, topics.dead_letters), range(N_PARTITION)
        consumer.assign([TopicPartition(n, p, OFFSET_BEGINNING) for n in names for p in partitions])
        while not stop.is_set():
            with suppress(KafkaException):
                for message in consumer.consume(1000, 0.1):
                    if message.error() is None:
                        self._note(message, message.topic() == topics.summaries)
            self._close_faults()
        consumer.close()

    def _note(self, message: Message, is_summary: bool) -> None:
        key = message.key() or b""
        if not is_summary:
            self.letters.add(key)
            return
        alert_id = int(key.rpartition(b"-")[2])
        place, now_s = partition_of(alert_id), time.monotonic()
        if alert_id not in self.ids:
            self.ids.add(alert_id)
            self._done[place] += 1
        self._newest_ms[place] = max(self._newest_ms.get(place, 0), message.timestamp()[1])
        written = message.partition() or 0
        stall_s = now_s - self._arrived_s.get(written, now_s)
        self.longest_stall_s = max(self.longest_stall_s, stall_s)
        self._arrived_s[written] = now_s

    def _close_faults(self) -> None:
        for fault in [fault for fault in self._open if self._is_over(fault)]:
            self.recoveries_s.append(time.monotonic() - fault.at_s)
            self._open.remove(fault)

    def _is_over(self, fault: Fault) -> bool:
        """Whether each input partition had a summary made after the fault, or is at its end."""
        return all(
            self._newest_ms.get(place, 0) > fault.at_ms or self._done[place] >= wanted
            for place, wanted in self.expected.items()
        )
