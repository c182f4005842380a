"""What the tests put into Kafka arrives, whole and where it was sent."""

from confluent_kafka import Producer

from .conftest import Topics
from .traffic import Sent, hand_over, read_committed

N_MESSAGE, PARTITION = 500, 2


def test_a_full_producer_is_waited_for(bootstrap: str, topics: Topics) -> None:
    options = {"queue.buffering.max.messages": 10, "linger.ms": 5}
    producer = Producer({"bootstrap.servers": bootstrap, **options})
    sent = [Sent(b"%d" % i, None, [("n", b"%d" % i)], 1_000 + i) for i in range(N_MESSAGE)]
    refused: list[object] = []
    for message in sent:
        hand_over(producer, topics.alerts, message, PARTITION, lambda e, _: refused.append(e))
    assert producer.flush(60) == 0
    assert refused == [None] * N_MESSAGE
    got = read_committed(bootstrap, topics.alerts)
    assert {message.partition() for message in got} == {PARTITION}
    assert [
        Sent(m.key() or b"", m.value(), m.headers() or [], m.timestamp()[1]) for m in got
    ] == sent
