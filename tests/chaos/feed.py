"""What goes in: alerts and malformed messages, each to a known partition, at a known rate.

One alert in sixteen has a host: inference takes the time here, and delivery is the same for all.
"""

import random
import threading
import time

from confluent_kafka import KafkaError, Producer

from consumer.avro import WIRE_ID, encode
from tests.integration.broker import N_PARTITION
from tests.integration.traffic import Sent, hand_over, in_container, make_alert, make_malformed

HOST_EVERY = 16


def partition_of(i: int) -> int:
    """Return the partition that alert or malformed message `i` goes to."""
    return i // HOST_EVERY % N_PARTITION


class Feed:
    """Produces in the background."""

    def __init__(
        self, n_good: int, n_bad: int, rate: float | None, schema_id: int = WIRE_ID
    ) -> None:
        self.n_good, self.n_bad = n_good, n_bad
        self.trouble: list[KafkaError] = []
        self._rate = rate
        self._schema_id = schema_id

    def start(self, bootstrap: str, topic: str) -> None:
        """Produce everything, `rate` messages a second; at once where there is no rate.

        Whatever is at once is there when this returns.
        """
        producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,  # what comes twice must not have gone in twice
                "message.timeout.ms": 0,
                "linger.ms": 20,
                "log_level": 0,
            }
        )
        messages = self._messages()
        thread = threading.Thread(target=self._run, args=(producer, topic, messages), daemon=True)
        thread.start()
        if self._rate is None:
            thread.join()

    def _messages(self) -> list[tuple[int, Sent]]:
        """Return partition and message of each, in the order of production."""
        good = map(self._make_alert, range(self.n_good))
        pairs = [*enumerate(good), *enumerate(make_malformed(self.n_bad))]
        random.Random(2).shuffle(pairs)
        return [(partition_of(i), sent) for i, sent in pairs]

    def _make_alert(self, i: int) -> Sent:
        alert = make_alert(i)
        alert["host"] = None if i % HOST_EVERY else alert["host"]
        value = encode(alert, "hostAlert", self._schema_id) if i % 10 else in_container(alert)
        return Sent(b"good-%d" % i, value, [], int(time.time() * 1e3))

    def _run(self, producer: Producer, topic: str, messages: list[tuple[int, Sent]]) -> None:
        begin_s = time.monotonic()
        for n, (partition, message) in enumerate(messages):
            if self._rate is not None:
                time.sleep(max(0.0, begin_s + n / self._rate - time.monotonic()))
            hand_over(producer, topic, message, partition, self._delivered)
        producer.flush()

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self.trouble.append(error)
