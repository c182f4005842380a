"""What every Kafka client here shares: configuration, start-up checks, messages and errors.

Librdkafka's exceptions become ours where it is called, mostly by `foreign_errors`.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from consumer.connection import Need, check_rights, describe_cluster, explain
from consumer.errors import (
    BrokerError,
    ConsumerError,
    NoAnswerError,
    SettingsError,
    WindowAbortedError,
    WorkerLostError,
)
from consumer.message import Headers, Message
from consumer.sections import DATE, ClientOption, ClusterSettings, OutputSettings
from consumer.settings import Settings

LOG = logging.getLogger("sedflow.kafka")

CALL_TIMEOUT_S = 10.0
HANGS_AFTER_S = CALL_TIMEOUT_S + 2.0
"""What has not come back by then, although its time-out is over, never will."""
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


class Clusters(NamedTuple):
    """The ids of the clusters that are read and written."""

    input: str
    output: str
    remembers: bool
    """Whether there is a topic of positions; see `position_log.py`."""

    @property
    def apart(self) -> bool:
        """Whether they are two, which no transaction can span."""
        return self.input != self.output


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


def check_topics(settings: Settings) -> Clusters:
    """Check at start that the clusters hold every topic that is read or written.

    Raises SettingsError for no topics, BrokerError for a missing topic or right, NoAnswerError for
    a cluster that does not answer.
    """
    inputs = settings.input.topics
    if not inputs:
        raise SettingsError("input.topics: expected at least one topic, got none")
    source = describe_cluster("input", settings.input)
    sink = describe_cluster("output", settings.output)
    positions = settings.output.offsets_topic_name
    clusters = Clusters(source.cluster_id, sink.cluster_id, positions in sink.topics)
    named = [topic for topic in inputs if DATE not in topic]
    _require("input", source, named)
    dead_letters = map(settings.output.dead_letter_topic_of, inputs)
    written = {settings.output.topic, *dead_letters}
    if clusters.apart and settings.output.delivery == "exactly-once":
        written.add(positions)
    _require("output", sink, written)
    if positions in written:
        _check_compacted(settings.output)
    group = settings.input.group
    check_rights("input", settings.input, [Need("READ", named)], group)
    remembered = [positions] if clusters.remembers else []
    needs = [Need("WRITE", written | {*remembered}), Need("READ", remembered)]
    check_rights("output", settings.output, needs)
    if output_user_moves_offsets(settings, apart=clusters.apart):
        check_rights("output", settings.output, [Need("READ", named)], group)
    return clusters


def _check_compacted(output: OutputSettings) -> None:
    """Of positions that are deleted by age, a quiet partition would be answered anew."""
    topic = output.offsets_topic_name
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    with foreign_errors("output: positions"):
        client = open_admin(output)  # it must outlive its answers
        asked = client.describe_configs([resource], request_timeout=CALL_TIMEOUT_S)
    policy = _read_config(topic, asked[resource], "cleanup.policy", "compact")
    if policy != "compact":
        raise BrokerError(f"output: {topic}: expected cleanup.policy=compact, got {policy}")


def output_user_moves_offsets(settings: Settings, *, apart: bool) -> bool:
    """Whether the output's user moves, in its transactions, what the input's user reads."""
    source, sink = settings.input, settings.output
    one_user = source.username == sink.username
    return sink.delivery == "exactly-once" and not (apart or one_user)


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


def check_output(output: OutputSettings, topics: Collection[str]) -> None:
    """Check before a replay that the output's cluster holds `topics`. Raises BrokerError."""
    _require("output", describe_cluster("output", output), topics)


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
        topic: int(_read_config(topic, answers[resource], "max.message.bytes", unknown))
        for resource, topic in wanted.items()
    }
    letter = min(sizes[name] for name in letters)
    return Limits(letter, sizes[output.topic], min(sizes.values()))


def _read_config(topic: str, answer: Future[Any], key: str, default: str) -> str:
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


def _require(section: str, cluster: Any, topics: Collection[str]) -> None:
    if missing := sorted(set(topics) - cluster.topics.keys()):
        raise BrokerError(
            f"{section}: expected the topics {missing}, got none of these names "
            "that this user may DESCRIBE"
        )


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


def call_within(limit_s: float, call: Callable[..., Any], *arguments: object) -> None:
    """Make a call that librdkafka may never return from although it was given a time-out.

    send_offsets_to_transaction does so when its coordinator goes away (librdkafka issue 5456).
    Raises WorkerLostError after `limit_s`: the process must end then, for the call goes on.
    """
    outcome: Future[object] = Future()

    def make_call() -> None:
        try:
            outcome.set_result(call(*arguments))
        except Exception as error:
            outcome.set_exception(error)

    Thread(target=make_call, daemon=True).start()
    try:
        outcome.result(limit_s)
    except TimeoutError:
        what = f"{getattr(call, '__name__', 'call')}: expected an answer within {limit_s:.0f} s"
        raise WorkerLostError(f"{what}, got none") from None


def of_assignment(error: KafkaException | ConsumerError) -> ConsumerError:
    """Ours for what went wrong in an assignment, whose transaction is not the window's in hand."""
    if isinstance(error, KafkaException):
        return BrokerError(f"input: assignment: {error.args[0].str()}")
    return BrokerError(str(error)) if isinstance(error, WindowAbortedError) else error


@contextmanager
def foreign_errors(what: str) -> Iterator[None]:
    """Turn librdkafka's exceptions into ours."""
    try:
        yield
    except KafkaException as error:
        raise BrokerError(f"{what}: {explain(error.args[0])}") from error
