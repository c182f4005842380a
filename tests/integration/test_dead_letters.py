"""`sedflow-consumer dlq` on a real broker: what lies there, and a second chance for it."""

import base64
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Message as KafkaMessage
from prometheus_client import CollectorRegistry

from consumer.avro import decode_summary, encode_body, schema_text
from consumer.cli import main
from consumer.kafka_sink import KafkaSink
from consumer.letter_box import ATTEMPTS
from consumer.message import ERROR_HEADER_PREFIX, DeadLetter, Message, Window
from consumer.metrics import Metrics
from consumer.registry import Registry
from consumer.settings import load_settings
from consumer.step import Step
from sedflow_core import Artifact

from .conftest import SETTINGS, Topics
from .traffic import make_alert, read_committed, read_exactly

UNKNOWN = b"\x00\x00\x00\x10\x92"
"""The header of Confluent id 4242."""
N_UNKNOWN, N_RUBBISH = 30, 12
HEADERS = (("id", b"\x00\xff"), ("null", None), ("id", b"2"))


@pytest.fixture
def config(bootstrap: str, topics: Topics, tiny_path: Path, tmp_path: Path) -> Path:
    """Settings that know no id 4242 until there is a file `4242.avsc` in the folder `ids`."""
    folder = tmp_path / "ids"
    folder.mkdir()
    (folder / "1.avsc").write_bytes(schema_text("hostAlert"))
    text = SETTINGS.format(
        artifact=tiny_path, bootstrap=bootstrap, topics=topics, slot="0", port=0
    ).replace("[input]", f'[input]\nschema_folder = "{folder}"')
    path = tmp_path / "sedflow.toml"
    path.write_text(text)
    return path


@pytest.fixture
def originals(bootstrap: str, config: Path, topics: Topics, tiny: Artifact) -> list[Message]:
    """Messages that the daemon's own step and sink have put among the dead letters."""
    bodies = [UNKNOWN + encode_body(make_alert(i), "hostAlert") for i in range(N_UNKNOWN)]
    rubbish = [b"\xff%d" % i for i in range(N_RUBBISH)]
    messages = [
        Message(value, b"k%d" % i, HEADERS, topics.alerts, i % 4, 100 + i, 1_000_000 + i)
        for i, value in enumerate(bodies + rubbish)
    ]
    settings = load_settings(config)
    step = Step(tiny, settings)
    window = step(messages, replay=False, now=lambda: datetime.now(UTC))
    deadly = DeadLetter(messages[0], "crash", "Crash", "killed twice", datetime.now(UTC))
    window = Window((*messages, deadly.message), (), (*window.rejected, deadly))
    KafkaSink(settings, Metrics(CollectorRegistry())).publish(window)
    # A commit is answered before every partition shows it.
    read_committed(bootstrap, topics.dead_letters, at_least=len(window.rejected))
    return messages


def test_a_letter_from_the_future_is_stamped_now(
    bootstrap: str, topics: Topics, config: Path
) -> None:
    """A broker refuses what is stamped more than an hour ahead."""
    now = datetime.now(UTC)
    times_ms = [int((now + timedelta(days=days)).timestamp() * 1e3) for days in (-9, 9)]
    messages = [Message(b"%d" % ms, topic=topics.alerts, timestamp_ms=ms) for ms in times_ms]
    letters = [DeadLetter(m, "decode", "DecodeError", "no", now) for m in messages]
    sink = KafkaSink(load_settings(config), Metrics(CollectorRegistry()))
    sink.publish(Window(tuple(messages), (), tuple(letters)))
    published = read_exactly(bootstrap, topics.dead_letters, 2)
    found = {m.value(): m.timestamp()[1] for m in published}
    past, future = (found[message.value] for message in messages)
    assert past == times_ms[0]
    assert 0 <= future - now.timestamp() * 1e3 < 600_000


def by_stage(letters: list[KafkaMessage]) -> Counter[tuple[str, str]]:
    headers = [dict(letter.headers() or []) for letter in letters]
    names = (f"{ERROR_HEADER_PREFIX}stage", ATTEMPTS)
    return Counter(tuple((h.get(n) or b"0").decode() for n in names) for h in headers)


def test_list_show_and_replay(
    bootstrap: str,
    topics: Topics,
    config: Path,
    originals: list[Message],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dlq(*arguments: str) -> str:
        assert main(["dlq", *arguments, "--config", str(config)]) == 0
        return capsys.readouterr().out

    n = N_UNKNOWN + N_RUBBISH
    assert len(dlq("list").splitlines()) == n + 1
    assert len(dlq("list", "--limit", "5").splitlines()) == 5
    lines = [line.split("\t") for line in dlq("list", "--stage", "decode").splitlines()]
    assert len(lines) == n
    assert {tuple(line[2:5]) for line in lines} == {("decode", "DecodeError", "0")}
    shown = json.loads(dlq("show", lines[0][0]))
    sent = next(m for m in originals if str(m.offset) == shown["errors"]["offset"])
    assert base64.b64decode(shown["value"]) == sent.value
    assert base64.b64decode(shown["key"]) == sent.key
    assert lines[0][6] == f"{sent.topic}/{sent.partition}/{sent.offset}"

    report = dlq("replay")  # nothing has changed: all come back
    assert f"{n} dead letters replayed" in report
    assert f"dead again, decode: {n}" in report
    assert "not tried, it kills the process: 1" in report
    letters = read_committed(bootstrap, topics.dead_letters, at_least=2 * n + 1)
    assert by_stage(letters) == {("decode", "0"): n, ("decode", "1"): n, ("crash", "0"): 1}

    (config.parent / "ids" / "4242.avsc").write_bytes(schema_text("hostAlert"))
    report = dlq("replay")
    assert f"dead again, decode: {N_RUBBISH}\n" in report + "\n"
    read_committed(bootstrap, topics.dead_letters, at_least=2 * n + 1 + N_RUBBISH)
    summaries = [
        decode_summary(m.value() or b"")
        for m in read_committed(bootstrap, topics.summaries, at_least=N_UNKNOWN)
    ]
    assert Counter(s["alertId"] for s in summaries) == Counter(range(N_UNKNOWN))
    assert all(s["replay"] for s in summaries)
    assert {s["provenance"]["inputOffset"] for s in summaries} == {
        100 + i for i in range(N_UNKNOWN)
    }

    report = dlq("replay", "--max-attempts", "2")
    assert "0 dead letters replayed" in report
    assert f"not tried, after 2 attempts: {N_RUBBISH}" in report
    assert dlq("replay") == "0 dead letters replayed\n"

    (crash,) = (line.split("\t")[0] for line in dlq("list", "--stage", "crash").splitlines())
    assert dlq("replay", crash).startswith("1 dead letters replayed\n")
    assert main(["dlq", "replay", f"{crash}9", "--config", str(config)]) == 2
    assert "place: expected <topic>/<partition>/<offset>" in capsys.readouterr().err
    assert dlq("replay", "--max-attempts", "9") == "0 dead letters replayed\n"
    check_bytes(read_committed(bootstrap, topics.dead_letters), originals)


def check_bytes(letters: list[KafkaMessage], originals: list[Message]) -> None:
    """However often a letter came back, its bytes and headers are those of the message."""
    by_key = {message.key: message for message in originals}
    assert by_stage(letters)["decode", "2"] == N_RUBBISH
    for letter in letters:
        original = by_key[letter.key()]
        headers = list(letter.headers() or [])
        assert letter.value() == original.value
        assert letter.timestamp()[1] == original.timestamp_ms
        assert tuple(headers[:3]) == HEADERS
        names = [name for name, _ in headers[3:]]
        assert len(names) == len(set(names))
        assert all(name.startswith(ERROR_HEADER_PREFIX) for name in names)


def test_replayed_summaries_bear_the_registered_id(
    bootstrap: str,
    topics: Topics,
    config: Path,
    originals: list[Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered = []
    monkeypatch.setattr(Registry, "schema", lambda *_, **__: schema_text("hostAlert"))
    monkeypatch.setattr(Registry, "register", lambda _, topic, __: registered.append(topic) or 4711)
    with config.open("a") as file:
        file.write('[registry]\nurl = "http://127.0.0.1:1"\nregister_output = true\n')
    assert main(["dlq", "replay", "--config", str(config)]) == 0
    assert registered == [topics.summaries]
    values = [m.value() or b"" for m in read_committed(bootstrap, topics.summaries)]
    assert {int.from_bytes(value[1:5], "big") for value in values} == {4711}
    assert len(values) == N_UNKNOWN


def test_a_replay_serves_the_pinned_artifact_alone(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace("allow_unpinned = true\n", ""))
    assert main(["dlq", "replay", "--config", str(config)]) == 2
    assert "artifact.sha256: expected the digest" in capsys.readouterr().err


def test_a_place_without_a_letter(
    topics: Topics, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dlq", "show", "elsewhere/0/7", "--config", str(config)]) == 2
    assert f"of a dead letter in ['{topics.dead_letters}'], got" in capsys.readouterr().err
