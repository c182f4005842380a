"""What `topics plan` gives to whom."""

import pytest

from consumer import topics
from consumer.refit_settings import derive_refit_settings
from consumer.sections import ClusterSettings
from consumer.settings import Settings
from consumer.topic_checks import ANY_AGE, Found, Section, Wanted, doubts, faults
from consumer.topics import plan


def test_what_a_topic_lacks_is_an_error_or_a_warning() -> None:
    config = {"cleanup.policy": "compact", "min.insync.replicas": "2"}
    wanted = Wanted("output", "t", 4, 3, config, frozenset())
    found = Found(2, 1, {"cleanup.policy": "delete", "min.insync.replicas": "2"}, None)
    assert list(faults(wanted, found)) == [
        "expected cleanup.policy=compact, got delete",
        "expected min.insync.replicas <= 1 replicas, got 2",
    ]
    assert list(doubts(wanted, found)) == [
        "expected 3 replicas, got 1",
        "expected 4 partitions like the input, got 2",
    ]
    sound = Found(4, 3, config, None)
    assert list(faults(wanted, sound)) == list(doubts(wanted, sound)) == []


def test_a_topic_of_letters_should_take_any_age_and_replace_none() -> None:
    config = {"min.insync.replicas": "1", "retention.ms": "-1", "max.message.bytes": "1000"}
    wanted = Wanted("output", "letters", 1, 1, config, frozenset())
    strict = {"cleanup.policy": "compact,delete", "message.timestamp.before.max.ms": "1000"}
    replaced, stamped = doubts(wanted, Found(1, 1, config | strict, None))
    assert replaced.startswith("expected cleanup.policy=delete, got compact,delete")
    assert stamped.startswith(f"expected message.timestamp.before.max.ms={ANY_AGE}, got 1000")
    usual = {"cleanup.policy": "delete", "message.timestamp.before.max.ms": ANY_AGE}
    assert list(doubts(wanted, Found(1, 1, config | usual, None))) == []


class EmptyCluster:
    """A cluster without topics; its id is its address."""

    replication = 1
    names = frozenset[str]()

    def __init__(self, section: Section, settings: ClusterSettings) -> None:
        self.section, self.bootstrap = section, settings.bootstrap
        self.id = settings.bootstrap

    def find(self, name: str) -> None:
        return None


def rights(monkeypatch: pytest.MonkeyPatch, **output: str) -> list[str]:
    """What `writer` is to be given by the plan for these settings of [output]."""
    monkeypatch.setattr(topics, "Cluster", EmptyCluster)
    source = {"topics": ["hosts", "ztf_{date}"], "group": "g", "username": "reader"}
    sink = {"topic": "summaries", "dead_letter_topic": "letters", "username": "writer"} | output
    settings = Settings.model_validate({"input": source, "output": sink})
    writers = (line for line in plan(settings) if "--allow-principal User:writer" in line)
    return [line.partition(" --operation ")[2] for line in writers]


MOVING = [
    "Describe --operation Read --topic hosts",
    "Describe --operation Read --resource-pattern-type prefixed --topic ztf_",
    "Read --group g",
]


def test_who_moves_the_positions_of_another_may_read_what_that_one_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction moves them as the user of the output."""
    assert [line for line in rights(monkeypatch) if line in MOVING] == MOVING


@pytest.mark.parametrize("output", [{"delivery": "at-least-once"}, {"bootstrap": "elsewhere:9092"}])
def test_who_moves_no_positions_may_not(
    monkeypatch: pytest.MonkeyPatch, output: dict[str, str]
) -> None:
    assert not set(rights(monkeypatch, **output)) & set(MOVING)


def test_the_slow_lane_has_dead_letters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dlq replay` takes all in the topic of the settings for alerts."""
    monkeypatch.setattr(topics, "Cluster", EmptyCluster)
    sink = {"topic": "summaries", "dead_letter_topic": "letters"}
    settings = Settings.model_validate({"input": {"topics": ["hosts"]}, "output": sink})
    commands = "\n".join(plan(derive_refit_settings(settings), letters=False))
    assert "--create --topic summaries.sedflow.dlq " in commands
    assert "letters" not in commands


def test_one_user_is_given_each_right_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "Cluster", EmptyCluster)
    settings = Settings.model_validate({"input": {"topics": ["hosts"]}})
    commands = plan(settings)
    assert len(set(commands)) == len(commands)
