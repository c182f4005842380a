"""Why a cluster does not serve: who does not trust whom, and which right is missing.

Librdkafka only says that it got no answer; the cause goes to its error callback, which is asked
here.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from consumer.errors import BrokerError, NoAnswerError
from consumer.sections import ClusterSettings

ANSWER_WITHIN_S = 8.0
ATTEMPT_S = 0.5

ADVICE: Mapping[int, str] = {
    KafkaError._AUTHENTICATION: "check username, password or token, and sasl.mechanism",
    KafkaError._SSL: "check the certificates, and the host name in bootstrap",
    KafkaError._RESOLVE: "check the host name in bootstrap",
}
"""What to look at."""
REFUSALS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
"""Errors that waiting does not mend; a name server may be away for a while."""

RIGHTS: Mapping[int, str] = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "READ on the input topics, WRITE on the output topics",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on the group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "WRITE on the transactional id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "IDEMPOTENT_WRITE on the cluster",
}
"""What to ask the broker's owner for."""


class Need(NamedTuple):
    """A right on topics."""

    operation: str
    topics: Collection[str]


def explain(error: KafkaError) -> str:
    """Return what an error says, and the right to ask for where one is missing."""
    right = RIGHTS.get(error.code())
    text: str = error.str()
    return text if right is None else f"{text}: ask for the right {right}"


def describe_cluster(section: str, cluster: ClusterSettings) -> Any:
    """Return the cluster's id, brokers and topics.

    Raises NoAnswerError when it does not answer, BrokerError when it refuses, naming the cause:
    after the time given, for one broker may be gone or refuse where another answers.
    """
    seen: list[KafkaError] = []
    client = _open(section, cluster, seen)
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while True:
        try:
            return client.list_topics(timeout=ATTEMPT_S)
        except KafkaException as error:
            last = error.args[0]
        client.poll(0)
        if time.monotonic() > deadline:
            cause = _most_telling(seen, last)
            failed = BrokerError if cause.code() in REFUSALS else NoAnswerError
            raise failed(_tell(section, cluster, cause))


def check_rights(
    section: str, cluster: ClusterSettings, needs: Iterable[Need], group: str | None = None
) -> None:
    """Check what the broker lets this user do. Raises BrokerError, naming the first right missing.

    What cannot be told now is not checked. A right on the transactional id cannot be asked for: its
    lack shows when transactions start.
    """
    client = _open(section, cluster, [])
    for need in (need for need in needs if need.topics):
        futures = client.describe_topics(
            TopicCollection(sorted(need.topics)),
            include_authorized_operations=True,
            request_timeout=ANSWER_WITHIN_S,
        )
        for topic, future in futures.items():
            _require(section, f"topic {topic}", need.operation, future)
    if group is not None:
        futures = client.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=ANSWER_WITHIN_S
        )
        _require(section, f"group {group}", "READ", futures[group])


def _require(section: str, resource: str, operation: str, future: Any) -> None:
    try:
        granted = future.result().authorized_operations
    except KafkaException as error:
        if error.args[0].code() not in RIGHTS:  # a coordinator that is moving, for instance
            return
        raise BrokerError(f"{section}: {resource}: {explain(error.args[0])}") from error
    names = sorted(right.name for right in granted or ())
    if granted is not None and operation not in names:
        raise BrokerError(
            f"{section}: expected the right {operation} on {resource}, got {names}: ask for it"
        )


def _open(section: str, cluster: ClusterSettings, seen: list[KafkaError]) -> AdminClient:
    config: dict[str, Any] = cluster.client_config() | {"log_level": 0}
    try:
        return AdminClient(config | {"error_cb": seen.append})
    except KafkaException as error:
        raise BrokerError(f"{section}: expected usable settings, {error.args[0].str()}") from error


def _tell(section: str, cluster: ClusterSettings, error: KafkaError) -> str:
    advice = ADVICE.get(error.code())
    told = f"{section}: expected the cluster at {cluster.bootstrap} to answer, got: {error.str()}"
    return told if advice is None else f"{told} ({advice})"


def _most_telling(seen: list[KafkaError], last: KafkaError) -> KafkaError:
    telling = [e for e in seen if e.code() != KafkaError._ALL_BROKERS_DOWN]
    refusals = [e for e in telling if e.code() in REFUSALS]
    return [last, *telling, *refusals][-1]
