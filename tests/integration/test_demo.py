from dataclasses import replace
from pathlib import Path

import pytest

from consumer import demo, demo_alerts
from consumer.avro import Decoder

from .conftest import SETTINGS, Topics
from .traffic import read_committed

N = 50


def test_demo_through_a_broker(
    bootstrap: str, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every galaxy is answered once, and what the daemon was told is left to be read."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP", bootstrap)
    arguments = ["--out", tmp_path, "--limit", N, "--artifact", tiny_path, "--kafka"]
    assert demo.main([str(argument) for argument in arguments]) == 0
    records = demo.read_summaries(tmp_path / "summaries.avro")
    assert [record["alertId"] for record in records] == list(range(N))
    assert {record["replay"] for record in records} == {False}
    assert bootstrap in (tmp_path / "daemon.toml").read_text()


def test_the_demo_as_a_stream(
    bootstrap: str, topics: Topics, tiny_path: Path, tmp_path: Path
) -> None:
    config = tmp_path / "sedflow.toml"
    names = {"artifact": tiny_path, "bootstrap": bootstrap, "slot": "0", "port": 0}
    config.write_text(SETTINGS.format(topics=topics, **names))
    assert demo_alerts.main(["--config", str(config), "--rate", "1000", "--limit", str(N)]) == 0
    messages = read_committed(bootstrap, topics.alerts, at_least=N)
    alerts = [Decoder().decode(m.value(), m.key()).record for m in messages]
    assert sorted(alert["alertId"] for alert in alerts) == list(range(N))


@pytest.mark.parametrize(
    ("topic", "code", "message"),
    [
        ("no-such-topic", 1, "no-such-topic: expected every alert delivered"),
        (
            "hosts_{date}",
            2,
            "input.topics: expected a topic without {date} first, got hosts_{date}",
        ),
    ],
)
def test_a_stream_that_cannot_be_delivered_says_so(
    bootstrap: str,
    topics: Topics,
    tiny_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    topic: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("SEDFLOW_OUTPUT__DEAD_LETTER_TOPIC", topics.dead_letters)
    config = tmp_path / "sedflow.toml"
    names = {"artifact": tiny_path, "bootstrap": bootstrap, "slot": "0", "port": 0}
    config.write_text(SETTINGS.format(topics=replace(topics, alerts=topic), **names))
    assert demo_alerts.main(["--config", str(config), "--rate", "1000", "--limit", "3"]) == code
    assert message in capsys.readouterr().err
