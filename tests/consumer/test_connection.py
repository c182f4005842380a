"""A cluster of which some brokers do not answer, or refuse: told once nobody answered in time."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from consumer import connection
from consumer.connection import describe_cluster
from consumer.errors import BrokerError, NoAnswerError
from consumer.sections import InputSettings

RESOLVE, SSL, DOWN = KafkaError._RESOLVE, KafkaError._SSL, KafkaError._ALL_BROKERS_DOWN
PASSWORD, TRANSPORT = KafkaError._AUTHENTICATION, KafkaError._TRANSPORT


class FakeAdmin:
    """Reports errors of its brokers, some at each poll; after all of them another one answers."""

    def __init__(self, rounds: list[list[int]], report: Callable[[KafkaError], None]) -> None:
        self._rounds, self._report = rounds, report

    def list_topics(self, timeout: float) -> str:
        if self._rounds:
            raise KafkaException(KafkaError(TRANSPORT))
        return "the cluster"

    def poll(self, timeout: float) -> None:
        for code in self._rounds.pop(0):
            self._report(KafkaError(code))


def describe(monkeypatch: pytest.MonkeyPatch, *rounds: list[int]) -> Any:
    """Ask a cluster that has these errors."""

    def make(config: dict[str, Any]) -> FakeAdmin:
        return FakeAdmin(list(rounds), config["error_cb"])

    monkeypatch.setattr(connection, "AdminClient", make)
    return describe_cluster("input", InputSettings(bootstrap="a:9092,b:9092"))


@pytest.mark.parametrize("code", [RESOLVE, SSL, PASSWORD])
def test_one_broker_does_not_speak_for_all(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    assert describe(monkeypatch, [code], [code, DOWN]) == "the cluster"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([SSL], "check the certificates"),
        ([PASSWORD], "check username"),
        ([PASSWORD, RESOLVE, DOWN], "check username"),
    ],
)
def test_a_refusal_is_told_when_time_is_up(
    monkeypatch: pytest.MonkeyPatch, codes: list[int], message: str
) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN_S", -1.0)
    with pytest.raises(BrokerError, match=message) as caught:
        describe(monkeypatch, codes)
    assert not isinstance(caught.value, NoAnswerError)


@pytest.mark.parametrize("codes", [[RESOLVE], [TRANSPORT, RESOLVE, DOWN]])
def test_a_host_that_no_name_server_knows_is_named_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN_S", -1.0)
    with pytest.raises(NoAnswerError, match=r"a:9092,b:9092 to answer.*check the host name"):
        describe(monkeypatch, codes)
