"""What is looked at before anything is read: topics, rights, options of clients, secrets."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import ConfigResource

from consumer.connection import Need, check_rights, describe_cluster
from consumer.errors import BrokerError, SettingsError
from consumer.kafka_client import (
    CALL_TIMEOUT_S,
    DEFAULT_LIMITS,
    consumer_config,
    foreign_errors,
    open_admin,
    read_config,
)
from consumer.kafka_sink import PLAIN, transactional
from consumer.outlet import producer_config
from consumer.sections import DATE, ClientOption, OutputSettings
from consumer.settings import Settings


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
    policy = read_config(topic, asked[resource], "cleanup.policy", "compact")
    if policy != "compact":
        raise BrokerError(f"output: {topic}: expected cleanup.policy=compact, got {policy}")


def output_user_moves_offsets(settings: Settings, *, apart: bool) -> bool:
    """Whether the output's user moves, in its transactions, what the input's user reads."""
    source, sink = settings.input, settings.output
    one_user = source.username == sink.username
    return sink.delivery == "exactly-once" and not (apart or one_user)


def check_output(output: OutputSettings, topics: Collection[str]) -> None:
    """Check before a replay that the output's cluster holds `topics`. Raises BrokerError."""
    _require("output", describe_cluster("output", output), topics)


def check_clients(settings: Settings) -> None:
    """Make the clients once, to see whether librdkafka takes their options; read every secret.

    Raises SettingsError, naming the section. Later on the same refusal is trouble that may pass,
    such as a certificate that is being replaced.
    """
    forced = PLAIN if settings.output.delivery == "at-least-once" else transactional("check")
    quiet: dict[str, ClientOption] = {"log_level": 0}
    settings.registry.read_password()
    with options_taken("input"):
        Consumer(consumer_config(settings) | quiet).close()
    with options_taken("output"):
        Producer(producer_config(settings, forced, DEFAULT_LIMITS) | quiet)


@contextmanager
def options_taken(section: str) -> Iterator[None]:
    """Raise SettingsError where librdkafka refuses the options of a client."""
    try:
        yield
    except (KafkaException, TypeError) as error:
        cause = error.args[0]
        text = cause.str() if isinstance(cause, KafkaError) else cause
        raise SettingsError(
            f"{section}.kafka: expected options that librdkafka takes, got: {text}"
        ) from error


def _require(section: str, cluster: Any, topics: Collection[str]) -> None:
    if missing := sorted(set(topics) - cluster.topics.keys()):
        raise BrokerError(
            f"{section}: expected the topics {missing}, got none of these names "
            "that this user may DESCRIBE"
        )
