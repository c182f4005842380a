"""`sedflow-consumer topics plan | check`: what the clusters must hold, and whether they do.

`wanted` is the one place that says how each topic should be. `plan` prints it as commands of
Kafka's own tools, the rights included; `check` compares it with the clusters as this client sees
them. An error would stop the daemon or lose something; a warning is for a person to weigh.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AclOperation, ConfigResource

from consumer.connection import Need, check_rights, describe_cluster, explain
from consumer.errors import BrokerError, SettingsError
from consumer.kafka_client import (
    BROKER_DEFAULT_BYTES,
    CALL_TIMEOUT_S,
    LOG,
    open_admin,
)
from consumer.letter_box import letter_group
from consumer.sections import DATE, ClusterSettings
from consumer.settings import Settings
from consumer.start_checks import output_user_moves_offsets
from consumer.topic_checks import Found, Section, Wanted, bytes_of, doubts, faults

LETTER_MARGIN_BYTES = 65_536
"""What a dead letter may hold beside its message."""
SAFE_REPLICATION = 3
NEW_PARTITIONS = 4
"""Where no input topic is there to count the partitions of."""

READING = frozenset({AclOperation.READ, AclOperation.DESCRIBE})
WRITING = frozenset({AclOperation.WRITE, AclOperation.DESCRIBE})
CONFIGS = frozenset({AclOperation.DESCRIBE_CONFIGS})
JOINING = frozenset({AclOperation.READ})


class Cluster:
    """What can be asked of one cluster. Raises BrokerError where it does not answer."""

    def __init__(self, section: Section, settings: ClusterSettings) -> None:
        self.section = section
        self.bootstrap = settings.bootstrap
        self.config = settings.client_config()
        listed = describe_cluster(section, settings)
        self.admin = open_admin(settings)
        self.id = str(listed.cluster_id)
        self.replication = min(SAFE_REPLICATION, len(listed.brokers))
        self.names = frozenset(listed.topics)

    def find(self, name: str) -> Found | None:
        """Return the topic as it is, None where there is none or it may not be seen."""
        wanted = TopicCollection([name])
        answer = self.admin.describe_topics(
            wanted, include_authorized_operations=True, request_timeout=CALL_TIMEOUT_S
        )[name]
        try:
            topic = answer.result()
        except KafkaException:
            return None
        replicas = [len(partition.replicas) for partition in topic.partitions]
        rights = topic.authorized_operations
        return Found(
            len(replicas),
            min(replicas),
            self._find_config(name),
            None if rights is None else frozenset(rights),
        )

    def _find_config(self, name: str) -> dict[str, str]:
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        answer = self.admin.describe_configs([resource], request_timeout=CALL_TIMEOUT_S)[resource]
        try:
            return {key: str(entry.value) for key, entry in answer.result().items()}
        except KafkaException:
            return {}


def plan(settings: Settings, *, letters: bool = True) -> list[str]:
    """Return the commands that make the topics and give the rights. Raises BrokerError.

    Input topics are made where input and output are one cluster: another one is the survey's.
    `letters`: with the rights of `dlq replay`, which reads none of the slow lane.
    """
    source, sink = _connect(settings)
    ours = {"output"} if source.id != sink.id else {"input", "output"}
    commands = []
    for topic in wanted(settings, source, sink):
        cluster = source if topic.section == "input" else sink
        if topic.section in ours and topic.name not in cluster.names:
            commands.append(_creation(topic, cluster))
        commands.append(_permission(settings, topic, cluster))
    dated = [_prefixed("topic", e.partition(DATE)[0]) for e in settings.input.topics if DATE in e]
    group = f"--group {settings.input.group}"
    commands += (_allow(settings, source, topics, READING) for topics in dated)
    commands.append(_allow(settings, source, group, JOINING))
    if output_user_moves_offsets(settings, apart=source.id != sink.id):
        read = [*(f"--topic {name}" for name in settings.input.topics if DATE not in name), *dated]
        commands += (_allow(settings, sink, topics, READING) for topics in read)
        commands.append(_allow(settings, sink, group, JOINING))
    return [
        *commands,
        *(_letters_permissions(settings, sink) if letters else ()),
        _transactions_permission(settings, sink),
    ]


def plan_replay(settings: Settings) -> list[str]:
    """Return the commands for what `replay --to-kafka` writes, by settings of its own.

    Raises BrokerError.
    """
    sink = Cluster("output", settings.output)
    letter_bytes = BROKER_DEFAULT_BYTES + LETTER_MARGIN_BYTES
    commands = []
    for topic in _published(settings, sink, NEW_PARTITIONS, letter_bytes):
        if topic.name not in sink.names:
            commands.append(_creation(topic, sink))
        commands.append(_permission(settings, topic, sink))
    return [*commands, _transactions_permission(settings, sink)]


def check(settings: Settings) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings. Raises BrokerError where a cluster does not answer."""
    source, sink = _connect(settings)
    errors: list[str] = []
    warnings: list[str] = []
    for topic in wanted(settings, source, sink):
        cluster = source if topic.section == "input" else sink
        found = cluster.find(topic.name)
        if found is None:
            text = f"{topic.section}: expected the topic {topic.name}, got none of this name"
            if topic.needed:
                errors.append(f"{text} that this user may DESCRIBE")
            else:
                warnings.append(f"{text}: an input made anew would be read from its start unseen")
            continue
        errors += (f"{topic.section}: {topic.name}: {text}" for text in faults(topic, found))
        warnings += (f"{topic.section}: {topic.name}: {text}" for text in doubts(topic, found))
    group, inputs = settings.input.group, [t for t in settings.input.topics if DATE not in t]
    errors += _faults_of_rights("input", settings.input, (), group)
    if output_user_moves_offsets(settings, apart=source.id != sink.id):
        errors += _faults_of_rights("output", settings.output, inputs, group)
    if settings.output.delivery == "exactly-once":
        errors += _probe_transactions(settings, sink)
    return errors, warnings


def wanted(settings: Settings, source: Cluster, sink: Cluster) -> Iterator[Wanted]:
    """Yield every topic that is read or written, as it should be."""
    output = settings.output
    inputs = [topic for topic in settings.input.topics if DATE not in topic]
    present = {name: found for name in inputs if (found := source.find(name))}
    partitions = max((found.partitions for found in present.values()), default=NEW_PARTITIONS)
    sizes = [bytes_of(found.config) for found in present.values()]
    letter_bytes = max(sizes, default=BROKER_DEFAULT_BYTES) + LETTER_MARGIN_BYTES
    for name in inputs:
        yield Wanted("input", name, partitions, source.replication, {}, READING)
    yield from _published(settings, sink, partitions, letter_bytes)
    kept = _safe(sink) | {"cleanup.policy": "compact", "segment.ms": "3600000"}
    needed = source.id != sink.id and output.delivery == "exactly-once"
    name = output.offsets_topic_name
    yield Wanted("output", name, 1, sink.replication, kept, WRITING | READING, needed, CONFIGS)


def _published(
    settings: Settings, sink: Cluster, partitions: int, letter_bytes: int
) -> Iterator[Wanted]:
    """Yield the topics of summaries and of dead letters."""
    output, safe, copies = settings.output, _safe(sink), sink.replication
    yield Wanted("output", output.topic, partitions, copies, safe, WRITING, useful=CONFIGS)
    letters = safe | {"max.message.bytes": str(letter_bytes), "retention.ms": "-1"}
    inputs, useful = settings.input.topics or ("",), READING | CONFIGS
    for name in sorted({output.dead_letter_topic_of(topic) for topic in inputs}):
        yield Wanted("output", name, 1, copies, letters, WRITING, useful=useful)


def _safe(sink: Cluster) -> dict[str, str]:
    return {"min.insync.replicas": str(max(1, sink.replication - 1))}


def _connect(settings: Settings) -> tuple[Cluster, Cluster]:
    if not settings.input.topics:
        raise SettingsError("input.topics: expected at least one topic, got none")
    return Cluster("input", settings.input), Cluster("output", settings.output)


def _faults_of_rights(
    section: Section, cluster: ClusterSettings, topics: Sequence[str], group: str
) -> list[str]:
    """What this user lacks to read topics as a member of the group."""
    try:
        check_rights(section, cluster, [Need("READ", topics)], group)
    except BrokerError as error:
        return [str(error)]
    return []


def _probe_transactions(settings: Settings, sink: Cluster) -> list[str]:
    """Start transactions under an id that no worker has, as only that shows the right to."""
    name = f"{settings.input.group}-check"
    config: dict[str, Any] = {**sink.config, "transactional.id": name, "log_level": 3}
    try:
        Producer(config, logger=LOG).init_transactions(CALL_TIMEOUT_S)
    except KafkaException as error:
        return [
            f"output: expected transactions under ids that begin with {settings.input.group}-, "
            f"got {explain(error.args[0])}"
        ]
    return []


def _creation(topic: Wanted, cluster: Cluster) -> str:
    configs = "".join(f" --config {key}={value}" for key, value in topic.config.items())
    return (
        f"kafka-topics.sh --bootstrap-server {cluster.bootstrap} --create --topic {topic.name} "
        f"--partitions {topic.partitions} --replication-factor {topic.replication}{configs}"
    )


def _permission(settings: Settings, topic: Wanted, cluster: Cluster) -> str:
    return _allow(settings, cluster, f"--topic {topic.name}", topic.rights | topic.useful)


def _transactions_permission(settings: Settings, sink: Cluster) -> str:
    """Those of the workers, or of `replay --to-kafka`, whatever the delivery."""
    prefixed = _prefixed("transactional-id", f"{settings.input.group}-")
    return _allow(settings, sink, prefixed, WRITING)


def _letters_permissions(settings: Settings, sink: Cluster) -> Iterator[str]:
    """Those of `dlq replay`."""
    name = letter_group(settings)
    yield _allow(settings, sink, f"--group {name}", JOINING)
    yield _allow(settings, sink, f"--transactional-id {name}", WRITING)


def _prefixed(kind: str, begin: str) -> str:
    """All resources whose names begin so."""
    return f"--resource-pattern-type prefixed --{kind} {begin}" if begin else f"--{kind} '*'"


def _allow(settings: Settings, cluster: Cluster, what: str, rights: frozenset[AclOperation]) -> str:
    section = settings.input if cluster.section == "input" else settings.output
    names = sorted(right.name.title().replace("_", "") for right in rights)
    operations = " ".join(f"--operation {name}" for name in names)
    return (
        f"kafka-acls.sh --bootstrap-server {cluster.bootstrap} --add "
        f"--allow-principal User:{section.username or 'ANONYMOUS'} {operations} {what}"
    )


def report(settings: Settings) -> int:
    """Print what `check` finds; return 1 when there is an error."""
    errors, warnings = check(settings)
    for text in warnings:
        print(f"warning: {text}")
    for text in errors:
        print(f"error: {text}")
    print(f"{len(errors)} errors, {len(warnings)} warnings")
    return int(bool(errors))
