"""Where a replay publishes: apart from the daemon."""

from pathlib import Path

import pytest

from consumer.errors import SettingsError
from consumer.replay import derive_replay_settings, replay
from consumer.settings import Settings

LIVE = {"input": {"group": "me"}, "output": {"topic": "live", "dead_letter_topic": "dead"}}


def test_topics_and_group_are_its_own() -> None:
    settings = derive_replay_settings(Settings.model_validate(LIVE))
    assert settings.output.topic == "live.replay"
    assert settings.output.dead_letter_topic_of("night.tar") == "live.replay.sedflow.dlq"
    assert settings.input.group == "me.replay"


def test_an_archive_is_not_replaced_by_its_summaries(tmp_path: Path, tiny_path: Path) -> None:
    archive = tmp_path / "night.avro"
    archive.write_bytes(b"alerts")
    settings = Settings.model_validate({"artifact": {"name": str(tiny_path)}})
    with pytest.raises(SettingsError, match=r"--out: expected a file that is no archive"):
        replay(settings, [str(tmp_path)], out=tmp_path / "x" / ".." / "night.avro")
    assert archive.read_bytes() == b"alerts"


def test_topics_may_be_named() -> None:
    named = {"topic": "again", "dead_letter_topic": "dead-again"}
    settings = derive_replay_settings(Settings.model_validate(LIVE | {"replay": named}))
    assert settings.output.topic == "again"
    assert settings.output.dead_letter_topic_of("night.tar") == "dead-again"
