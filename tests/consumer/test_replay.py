"""Where a replay publishes: apart from the daemon."""

from consumer.replay import derive_replay_settings
from consumer.settings import Settings

LIVE = {"input": {"group": "me"}, "output": {"topic": "live", "dead_letter_topic": "dead"}}


def test_topics_and_group_are_its_own() -> None:
    settings = derive_replay_settings(Settings.model_validate(LIVE))
    assert settings.output.topic == "live.replay"
    assert settings.output.dead_letter_topic_of("night.tar") == "live.replay.sedflow.dlq"
    assert settings.input.group == "me.replay"


def test_topics_may_be_named() -> None:
    named = {"topic": "again", "dead_letter_topic": "dead-again"}
    settings = derive_replay_settings(Settings.model_validate(LIVE | {"replay": named}))
    assert settings.output.topic == "again"
    assert settings.output.dead_letter_topic_of("night.tar") == "dead-again"
