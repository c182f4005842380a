"""A topic as it should be and as it is, and what stands between them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from confluent_kafka.admin import AclOperation

from consumer.kafka_client import BROKER_DEFAULT_BYTES

ANY_AGE = str(2**63 - 1)
"""How old a message may be where a topic says nothing of it [ms]."""
USES: Mapping[AclOperation, str] = {
    AclOperation.READ: "`sedflow-consumer dlq` cannot read it",
    AclOperation.DESCRIBE_CONFIGS: "its settings are unknown, the size of its messages too",
}
"""What cannot be done without a right that the daemon itself works without."""

Section = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic as it should be."""

    section: Section
    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]
    rights: frozenset[AclOperation]
    needed: bool = True
    """Whether the daemon does not start without it."""
    useful: frozenset[AclOperation] = frozenset()
    """Rights that it works without; see `USES`."""


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as it is; `rights` is None where the broker does not tell."""

    partitions: int
    replication: int
    config: Mapping[str, str]
    rights: frozenset[AclOperation] | None


def faults(topic: Wanted, found: Found) -> Iterator[str]:
    """What would stop the daemon or lose something."""
    if found.rights is not None:
        for missing in sorted(right.name for right in topic.rights - found.rights):
            yield f"expected the right {missing}, got none: ask for it"
    if not found.config:
        return
    if topic.config.get("cleanup.policy", "") == "compact" != found.config.get("cleanup.policy"):
        yield f"expected cleanup.policy=compact, got {found.config.get('cleanup.policy')}"
    in_sync = int(found.config.get("min.insync.replicas", 1))
    if topic.section == "output" and in_sync > found.replication:
        yield f"expected min.insync.replicas <= {found.replication} replicas, got {in_sync}"


def _doubts_of_letters(config: Mapping[str, str]) -> Iterator[str]:
    """What becomes of dead letters, which may have no key and keep their original timestamps."""
    if (retention := config.get("retention.ms")) != "-1":
        yield (
            f"expected retention.ms=-1, got {retention}: dead letters keep "
            "their original timestamps, by which they are deleted"
        )
    if "compact" in config.get("cleanup.policy", ""):
        policy = config["cleanup.policy"]
        yield f"expected cleanup.policy=delete, got {policy}: of one key a single letter stays"
    oldest = config.get("message.timestamp.before.max.ms", ANY_AGE)
    if int(oldest) < int(ANY_AGE):
        yield (
            f"expected message.timestamp.before.max.ms={ANY_AGE}, got {oldest}: older dead letters "
            "get the present time"
        )


def doubts(topic: Wanted, found: Found) -> Iterator[str]:
    """What a person should weigh."""
    if found.rights is not None:
        for missing in sorted(topic.useful - topic.rights - found.rights, key=lambda r: r.name):
            yield f"expected the right {missing.name}, got none: {USES[missing]}"
    if topic.section == "input":
        return
    if not found.config:
        yield "expected the broker to tell its settings, got none"
        return
    if found.replication < topic.replication:
        yield f"expected {topic.replication} replicas, got {found.replication}"
    if found.partitions < topic.partitions:
        yield f"expected {topic.partitions} partitions like the input, got {found.partitions}"
    in_sync = int(found.config.get("min.insync.replicas", 1))
    if in_sync < int(topic.config["min.insync.replicas"]):
        yield f"expected min.insync.replicas {topic.config['min.insync.replicas']}, got {in_sync}"
    if 1 < found.replication == in_sync:
        yield f"writing stops with one broker: expected fewer in-sync replicas, got {in_sync}"
    if bytes_of(found.config) < int(topic.config.get("max.message.bytes", 0)):
        yield (
            f"expected max.message.bytes >= {topic.config['max.message.bytes']}, got "
            f"{bytes_of(found.config)}: larger dead letters lose their bytes to a stub"
        )
    if topic.config.get("retention.ms", "") == "-1":
        yield from _doubts_of_letters(found.config)


def bytes_of(config: Mapping[str, str]) -> int:
    """The largest batch that a topic with these settings takes."""
    return int(config.get("max.message.bytes", BROKER_DEFAULT_BYTES))
