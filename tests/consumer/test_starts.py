"""Whether a topic was made anew is told by its id, as soon as the broker tells one."""

from collections.abc import Collection, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from prometheus_client import CollectorRegistry

from consumer import starts as starts_module
from consumer.health import Health
from consumer.kafka import KafkaSource
from consumer.metrics import Metrics
from consumer.settings import Settings
from consumer.starts import Starts


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


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (["a", "a", "b"], [[], ["hosts"]]),
        ([None, "a", "a", None, "b"], [[], [], [], ["hosts"]]),
    ],
)
def test_a_topic_made_anew_is_found(
    starts: Starts, ids: list[str | None], found: list[list[str]]
) -> None:
    """Not one whose id the broker did not tell when it was assigned."""
    starts._admin = FakeAdmin(ids)  # type: ignore[assignment]
    starts._learn_topic_ids({"hosts"})
    assert [starts.find_remade({"hosts"}) for _ in found] == found
