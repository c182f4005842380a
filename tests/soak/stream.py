"""The messages of a soak: made as they are needed, counted as they come out."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.avro import encode
from tests.integration.broker import N_PARTITION, committed_consumer
from tests.integration.traffic import make_alert

ALERTS, SUMMARIES, LETTERS = "soak.hostAlert", "soak.posteriorSummary", "soak.deadLetters"
MAX_AHEAD = 20_000
"""So many messages at most wait to be processed: the broker keeps few."""
BAD_EVERY, HOST_EVERY = 100, 10
N_TEMPLATE = 400
"""Different galaxies."""


def create_short_topics(bootstrap: str) -> None:
    """Create topics that keep only what was written lately: a soak needs no disk."""
    config = {"retention.bytes": "67108864", "segment.bytes": "16777216"}
    client = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(name, N_PARTITION, 1, config=config) for name in (ALERTS, SUMMARIES)]
    wanted.append(NewTopic(LETTERS, 1, 1, config=config))
    for created in client.create_topics(wanted).values():
        created.result()


@dataclass
class Passed:
    """What came out of `n_messages` messages."""

    n_messages: int
    counts: bytearray = field(init=False)
    """How often each message led to something."""
    n: int = 0
    topics: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.counts = bytearray(self.n_messages)

    @property
    def complete(self) -> bool:
        """Whether as much came out as went in."""
        return self.n >= self.n_messages

    def follow(self, bootstrap: str, done: Event) -> None:
        """Count what is committed until `done`."""
        readers = [committed_consumer(bootstrap, topic) for topic in (SUMMARIES, LETTERS)]
        while not done.is_set():
            for reader in readers:
                for message in reader.consume(1_000, 0.2):
                    if message.error() is None:
                        self._note(message.topic(), message.key())
        for reader in readers:
            reader.close()

    def faults(self) -> Iterator[str]:
        """What was lost or came twice, and what should have been a letter and was not."""
        if lost := self.counts.count(0):
            yield f"{lost} messages led to nothing"
        if twice := self.n_messages - lost - self.counts.count(1):
            yield f"{twice} messages led to more than one summary or letter"
        if (letters := self.topics[LETTERS]) != (expected := -(-self.n_messages // BAD_EVERY)):
            yield f"expected {expected} dead letters, got {letters}"

    def _note(self, topic: str | None, key: bytes | None) -> None:
        place = int((key or b"").removeprefix(b"soak-"))
        self.counts[place] = min(255, self.counts[place] + 1)
        self.n += 1
        self.topics[str(topic)] += 1


def make_values(n: int) -> Iterator[bytes]:
    """Yield the bytes of n messages, the first of every hundred undecodable."""
    templates = [make_alert(4 * i) for i in range(N_TEMPLATE)]
    for i in range(n):
        if i % BAD_EVERY == 0:
            yield b"\xff" + b"%d" % i
            continue
        template = templates[i // HOST_EVERY % N_TEMPLATE]
        host = template["host"] if i % HOST_EVERY == 5 else None
        name = {"alertId": i, "objectId": f"soak-{i}", "host": host}
        yield encode(template | name, "hostAlert")


def send(bootstrap: str, passed: Passed, done: Event) -> None:
    """Produce the messages, never too far ahead of what came out."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
    for i, value in enumerate(make_values(passed.n_messages)):
        while i - passed.n > MAX_AHEAD and not done.is_set():
            producer.poll(0.2)
        if done.is_set():
            break
        producer.produce(ALERTS, key=b"soak-%d" % i, value=value, timestamp=int(time.time() * 1e3))
        producer.poll(0)
    producer.flush()
