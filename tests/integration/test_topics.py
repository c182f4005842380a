"""`topics plan | check` against a real broker."""

import os
import shlex
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from consumer.cli import main

from .broker import create_topics
from .conftest import SETTINGS, Topics


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SEDFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def names() -> Topics:
    return Topics.fresh()


@pytest.fixture
def config(bootstrap: str, names: Topics, tmp_path: Path) -> str:
    path = tmp_path / "sedflow.toml"
    path.write_text(
        SETTINGS.format(artifact="none", bootstrap=bootstrap, topics=names, slot="0", port=0)
    )
    return str(path)


def create_as_planned(bootstrap: str, command: str) -> None:
    """Do what a line of the plan says, read as Kafka's own tool reads it."""
    words = shlex.split(command)
    options = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
    configs = [words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--config"]
    topic = NewTopic(
        options["--topic"],
        int(options["--partitions"]),
        int(options["--replication-factor"]),
        config=dict(configs),
    )
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.create_topics([topic])[topic.topic].result()


def test_what_is_planned_passes_the_check(
    bootstrap: str, names: Topics, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(bootstrap, [names.alerts])
    assert main(["topics", "check", "--config", config]) == 1
    printed = capsys.readouterr().out
    for missing in (names.summaries, names.dead_letters):
        assert f"error: output: expected the topic {missing}, got none" in printed
    assert main(["topics", "plan", "--config", config]) == 0
    commands = capsys.readouterr().out.splitlines()
    creations = [command for command in commands if "--create" in command]
    assert len(creations) == 3
    assert f"--topic {names.summaries} --partitions 4 --replication-factor 1" in creations[0]
    assert sum("kafka-acls.sh" in command for command in commands) == 8
    for command in creations:
        create_as_planned(bootstrap, command)
    assert main(["topics", "check", "--config", config]) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings\n"


def test_every_day_of_a_dated_topic_may_be_read(
    names: Topics, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(config)
    dated = f'["{names.alerts}_{{date}}"]'
    text = path.read_text().replace(f'["{names.alerts}"]', dated)
    path.write_text(
        text.replace("[output]", f'[output]\ndead_letter_topic = "{names.dead_letters}"')
    )
    assert main(["topics", "plan", "--config", config]) == 0
    rights = "--operation Describe --operation Read --resource-pattern-type prefixed"
    assert f"{rights} --topic {names.alerts}_\n" in capsys.readouterr().out


def test_all_topics_of_a_cluster_of_ones_own_are_planned(
    bootstrap: str, names: Topics, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topics", "plan", "--config", config]) == 0
    creations = [line for line in capsys.readouterr().out.splitlines() if "--create" in line]
    assert creations[0].endswith(f"--topic {names.alerts} --partitions 4 --replication-factor 1")
    assert f"--topic {names.summaries} --partitions 4 " in creations[1]
    for command in creations:
        create_as_planned(bootstrap, command)
    assert main(["topics", "check", "--config", config]) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings\n"


def test_doubts_are_named(
    bootstrap: str, names: Topics, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(bootstrap, [names.alerts, names.summaries, names.dead_letters], {})
    assert main(["topics", "check", "--config", config]) == 0
    printed = capsys.readouterr().out
    assert f"warning: output: {names.dead_letters}: expected max.message.bytes >= " in printed
    assert "dead letters keep their original timestamps" in printed
    assert f"warning: output: expected the topic {names.summaries}.sedflow.offsets" in printed
    assert "0 errors, 3 warnings" in printed


def test_the_slow_lane_has_no_letters_to_replay(
    names: Topics, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topics", "plan", "--refit", "--config", config]) == 0
    printed = capsys.readouterr().out
    assert f"--group {names.alerts}.refit\n" in printed
    assert f"--transactional-id {names.alerts}.refit-\n" in printed
    assert ".refit.dlq" not in printed
