"""What every Kafka client here shares: configuration, messages and errors.

Librdkafka's exceptions become ours where it is called, mostly by `foreign_errors`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from consumer.connection import explain
from consumer.errors import (
    BrokerError,
    NoAnswerError,
    SettingsError,
)
from consumer.message import Headers, Message
from consumer.sections import ClientOption, ClusterSettings
from consumer.settings import Settings

LOG = logging.getLogger("sedflow.kafka")

CALL_TIMEOUT_S = 10.0
BROKER_DEFAULT_BYTES = 1_048_588
"""The largest batch of messages that a broker takes unless it is told otherwise."""
NEW_TOPIC_EVERY_MS = 30_000
"""How often it is looked whether tonight's topic is there."""

RECONNECT_AFTER_MS = 1_000
"""While a cluster is away a client logs each attempt, by librdkafka's default ten times as many."""
CONSUMER_DEFAULTS: Mapping[str, ClientOption] = {
    # What waits in memory, and what a single answer of a broker may add to it.
    "queued.max.messages.kbytes": 16_384,
    "fetch.max.bytes": 8_388_608,
}
SESSION_DEFAULTS: Mapping[str, ClientOption] = {
    # The partitions of a worker that died are read by others after this time.
    "session.timeout.ms": 10_000,
}
NO_ANSWER = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._DESTROY_BROKER,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    }
)
"""What is heard where a broker, or the leader of a partition, is not reached."""
OF_A_REBALANCE = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
    }
)
"""Why a group takes no positions now from one who was a member when it read."""


class Limits(NamedTuple):
    """Bytes that the topics take that are published to."""

    letter: int
    """Of a message in any of the dead-letter topics."""
    summary: int
    """Of a message in the output topic."""
    batch: int
    """Of a batch of messages in any topic: a topic's limit is that of a batch."""


DEFAULT_LIMITS = Limits(*3 * [BROKER_DEFAULT_BYTES])
"""Of a broker that nobody told otherwise."""


def client_config(
    section: str,
    cluster: ClusterSettings,
    defaults: Mapping[str, ClientOption],
    forced: Mapping[str, ClientOption],
) -> dict[str, ClientOption]:
    """Return the librdkafka configuration of one client.

    Raises SettingsError when the pass-through options touch what delivery depends on.
    """
    for key in forced.keys() & cluster.kafka.keys():
        raise SettingsError(
            f"{section}.kafka.{key}: expected it left to the daemon, got {cluster.kafka[key]!r}"
        )
    return {**_backoff(cluster), **defaults, **cluster.client_config(), **forced}


def _backoff(cluster: ClusterSettings) -> dict[str, ClientOption]:
    """Return how soon a client tries to connect again, unless the settings bound that."""
    bounded = "reconnect.backoff.max.ms" in cluster.kafka
    return {} if bounded else {"reconnect.backoff.ms": RECONNECT_AFTER_MS}


def consumer_config(settings: Settings) -> dict[str, ClientOption]:
    """Return librdkafka's configuration of the consumer. Raises SettingsError."""
    source = settings.input
    forced: dict[str, ClientOption] = {
        "group.id": source.group,
        "group.protocol": source.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
    }
    if source.static_membership:
        forced["group.instance.id"] = f"{source.group}-{settings.output.slot}"
    defaults = dict(CONSUMER_DEFAULTS)
    if source.dated:
        defaults["topic.metadata.refresh.interval.ms"] = NEW_TOPIC_EVERY_MS
    if source.group_protocol == "classic":  # the broker decides otherwise
        forced["partition.assignment.strategy"] = source.assignor
        defaults |= SESSION_DEFAULTS
    return client_config("input", source, defaults, forced)


def commit(consumer: Consumer, positions: Sequence[TopicPartition]) -> None:
    """Commit positions of the group and wait. Raises KafkaException where one is refused."""
    for position in consumer.commit(offsets=list(positions), asynchronous=False) or ():
        if position.error is not None:
            raise KafkaException(position.error)


def open_admin(cluster: ClusterSettings) -> AdminClient:
    """Return a client that asks a cluster, and says little itself.

    Nobody polls it, so what it logs waits in memory: with `debug` without end.
    """
    config = {k: v for k, v in cluster.client_config().items() if k != "debug"}
    return AdminClient({**_backoff(cluster), **config, "log_level": 3}, logger=LOG)


def find_limits(settings: Settings) -> Limits:
    """Return what the topics take that are published to.

    Where the broker does not let this user see it, its default is taken. Raises BrokerError.
    """
    output = settings.output
    letters = {output.dead_letter_topic_of(topic) for topic in settings.input.topics or ("",)}
    names = sorted({output.topic, *letters})
    wanted = {ConfigResource(ConfigResource.Type.TOPIC, name): name for name in names}
    with foreign_errors("output: size of messages"):
        client = open_admin(output)
        answers = client.describe_configs(list(wanted), request_timeout=CALL_TIMEOUT_S)
    unknown = str(BROKER_DEFAULT_BYTES)
    sizes = {
        topic: int(read_config(topic, answers[resource], "max.message.bytes", unknown))
        for resource, topic in wanted.items()
    }
    letter = min(sizes[name] for name in letters)
    return Limits(letter, sizes[output.topic], min(sizes.values()))


def read_config(topic: str, answer: Future[Any], key: str, default: str) -> str:
    """Return a setting of a topic; the default where this user may not see it."""
    try:
        return str(answer.result()[key].value)
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            failed = NoAnswerError if cause.code() in NO_ANSWER else BrokerError
            raise failed(f"output: {key} of {topic}: {cause.str()}") from error
        text = f"{cause.str()}: ask for the right DESCRIBE_CONFIGS on {topic}"
        fields = {"setting": key, "assumed": default, "error": text}
        LOG.warning("setting of a topic unknown", extra={"fields": fields})
        return default


def to_message(message: Any) -> Message:
    """Return a message of librdkafka as ours."""
    kind, stamp = message.timestamp()
    return Message(
        value=message.value(),
        key=message.key(),
        headers=_find_headers(message),
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=stamp if kind else None,
    )


def _find_headers(message: Any) -> Headers:
    """Return the headers; none where a name is no UTF-8."""
    try:
        return tuple(message.headers() or ())
    except (SystemError, UnicodeDecodeError) as error:  # asked again, it would give null pointers
        fields = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "error": str(error.__cause__ or error),
        }
        LOG.warning("headers left out", extra={"fields": fields})
        return ()


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn librdkafka's exceptions into ours."""
    try:
        yield
    except KafkaException as error:
        raise BrokerError(f"{what}: {explain(error.args[0])}") from error
