"""An archive replayed into Kafka: all of it, in topics of its own, marked as a replay."""

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Message

from consumer.avro import decode_summary
from consumer.cli import main
from consumer.message import ERROR_HEADER_PREFIX
from consumer.registry import Registry

from .broker import create_topics
from .conftest import SETTINGS, Topics
from .traffic import Sent, make_good, make_malformed, read_committed, read_exactly

N_GOOD = 200


def write_night(path: Path, messages: Sequence[Sent]) -> None:
    """A tar with a member per message."""
    with tarfile.open(path, "w:gz") as archive:
        for i, message in enumerate(messages):
            member = tarfile.TarInfo(f"{i}.avro")
            member.size = len(message.value or b"")
            archive.addfile(member, io.BytesIO(message.value or b""))


@pytest.fixture
def config(bootstrap: str, topics: Topics, tiny_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sedflow.toml"
    path.write_text(
        SETTINGS.format(artifact=tiny_path, bootstrap=bootstrap, topics=topics, slot="0", port=0)
    )
    return path


def test_replay_to_kafka(
    bootstrap: str,
    topics: Topics,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = [sent for sent in make_malformed(20) if sent.value is not None]
    night = tmp_path / "night.tar.gz"
    write_night(night, [*make_good(N_GOOD), *bad])
    replayed = f"{topics.summaries}.replay"
    create_topics(bootstrap, (replayed, f"{replayed}.sedflow.dlq"))
    command = ["replay", str(night), "--to-kafka", "--config", str(config), "--batch-size", "64"]
    assert main(command) == 0

    check_summaries(read_exactly(bootstrap, replayed, N_GOOD), night)
    check_dead_letters(read_exactly(bootstrap, f"{replayed}.sedflow.dlq", len(bad)), bad)
    for live in (topics.summaries, topics.dead_letters):
        assert read_committed(bootstrap, live) == []
    printed = capsys.readouterr().out
    assert f"wrote topic {replayed}\nwrote topic {replayed}.sedflow.dlq" in printed


def test_summaries_bear_the_id_registered_for_their_topic(
    bootstrap: str,
    topics: Topics,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered = []
    monkeypatch.setattr(Registry, "schema", lambda *_, **__: None)
    monkeypatch.setattr(Registry, "register", lambda _, topic, __: registered.append(topic) or 4711)
    with config.open("a") as file:
        file.write('[registry]\nurl = "http://127.0.0.1:1"\nregister_output = true\n')
    night, replayed = tmp_path / "night.tar.gz", f"{topics.summaries}.replay"
    write_night(night, list(make_good(4)))
    create_topics(bootstrap, (replayed, f"{replayed}.sedflow.dlq"))
    assert main(["replay", str(night), "--to-kafka", "--config", str(config)]) == 0
    assert registered == [replayed]
    values = [m.value() or b"" for m in read_exactly(bootstrap, replayed, 4)]
    assert [int.from_bytes(value[1:5], "big") for value in values] == [4711] * 4


def check_summaries(summaries: list[Message], night: Path) -> None:
    records = [decode_summary(summary.value() or b"") for summary in summaries]
    assert Counter(r["alertId"] for r in records) == Counter(range(N_GOOD))
    assert all(record["replay"] for record in records)
    assert {r["provenance"]["inputTopic"] for r in records} == {night.name}


def check_dead_letters(letters: list[Message], bad: list[Sent]) -> None:
    assert Counter(letter.value() for letter in letters) == Counter(sent.value for sent in bad)
    headers = [dict(letter.headers() or []) for letter in letters]
    offsets = {int(h[f"{ERROR_HEADER_PREFIX}offset"] or -1) for h in headers}
    assert offsets == set(range(N_GOOD, N_GOOD + len(bad)))


def test_missing_topics_are_named(
    topics: Topics, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night = tmp_path / "night.tar.gz"
    write_night(night, list(make_good(1)))
    assert main(["replay", str(night), "--to-kafka", "--config", str(config)]) == 1
    replayed = f"{topics.summaries}.replay"
    assert f"['{replayed}', '{replayed}.sedflow.dlq']" in capsys.readouterr().err
