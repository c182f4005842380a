"""The command line, end to end on the tiny artifact."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import fastavro
import pyarrow.parquet
import pytest

from consumer import refit_worker, worker
from consumer.cli import main
from consumer.refit_settings import derive_refit_settings
from consumer.settings import Settings
from sedflow_core.version import __version__

Record = dict[str, Any]


@pytest.fixture
def archive(
    tmp_path: Path, make_alert: Callable[..., Record], write_container: Callable[..., bytes]
) -> Path:
    """Twelve alerts, every third without a redshift, and some rubbish at the end."""
    alerts = [make_alert(i, redshift=None if i % 3 == 0 else 0.05) for i in range(12)]
    path = tmp_path / "alerts.avro"
    path.write_bytes(write_container(alerts, "deflate") + b"rubbish")
    return path


def read_summaries(path: Path) -> list[Record]:
    with path.open("rb") as stream:
        records = [record for record in fastavro.reader(stream) if isinstance(record, dict)]
    for record in records:
        del record["startTimestamp"], record["endTimestamp"]
    return records


def test_replay(
    archive: Path, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.avro"
    assert main(["replay", str(archive), "--out", str(out), "--artifact", str(tiny_path)]) == 0
    records = read_summaries(out)
    assert [record["alertId"] for record in records] == list(range(12))
    assert all(record["replay"] for record in records)
    printed = capsys.readouterr().out
    assert "13 messages in" in printed
    assert "OK: 8" in printed
    assert "NO_REDSHIFT: 4" in printed
    assert "dead letters, decode: 1" in printed
    assert f"wrote {out}\nwrote {out}.dead.jsonl" in printed


def test_replay_of_another_artifact_than_the_settings_pin(
    archive: Path, tiny_path: Path, tmp_path: Path
) -> None:
    config = Path(__file__).parents[2] / "deploy" / "sedflow.example.toml"
    command = ["replay", str(archive), "--dry-run", "--config", str(config)]
    assert main([*command, "--artifact", str(tiny_path)]) == 0


def test_replay_shows_its_galaxies_until_it_is_interrupted(archive: Path, tiny_path: Path) -> None:
    pytest.importorskip("plotly", reason="the live page needs plotly")
    command = [sys.executable, "-m", "consumer.cli", "replay", str(archive), "--dry-run", "--serve"]
    shown = subprocess.Popen(
        [*command, "--artifact", str(tiny_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SEDFLOW_PAGE__PORT": "0"},
    )
    with shown, closing(shown.stdout):
        try:
            address = shown.stdout.readline().removeprefix("live page: ").strip()
            told = next(line for line in shown.stdout if "messages" in line)
            with urlopen(f"{address}events", timeout=60) as events:
                data = (json.loads(line[6:]) for line in events if line.startswith(b"data: "))
                galaxies = next(news["galaxies"] for news in data if news["galaxies"])
            shown.send_signal(signal.SIGINT)
            assert shown.wait(60) == 0
        finally:
            shown.kill()
    assert told.startswith("13 messages in")
    assert len(galaxies) == 12


def test_replay_gives_the_same_summaries_again_and_for_any_batch_size(
    archive: Path, tiny_path: Path, tmp_path: Path
) -> None:
    outputs = []
    for size in ("1", "7", "256", "256"):
        out = tmp_path / f"{size}.avro"
        command = ["replay", str(archive), "--out", str(out), "--artifact", str(tiny_path)]
        assert main([*command, "--batch-size", size]) == 0
        outputs.append(read_summaries(out))
    assert all(output == outputs[0] for output in outputs)


@pytest.mark.parametrize("options", [("--format", "parquet"), (), ("--rate", "1000")])
def test_replay_to_parquet(
    archive: Path, tiny_path: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out.parquet"
    command = ["replay", str(archive), "--out", str(out), "--artifact", str(tiny_path)]
    assert main([*command, "--limit", "5", *options]) == 0
    table = pyarrow.parquet.read_table(out)
    assert table["alertId"].to_pylist() == list(range(5))


def test_dry_run_writes_nothing(archive: Path, tiny_path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["replay", str(archive), "--dry-run", "--artifact", str(tiny_path)]) == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "x.avro"], "--out: expected a file, or --to-kafka or --dry-run, got none"),
        (["replay", "x.avro", "--dry-run", "--artifact", "no-such"], "artifact: expected"),
        (["replay", "x", "--dry-run", "--format", "avro"], "--format: expected with --out alone"),
        (["dlq", "replay", "--max-attempts", "2", "a/0/1"], "--max-attempts: expected no places"),
        (["check-config", "--config", "no.toml"], "expected a readable file, got no.toml"),
        (["top", "--url", "localhost:9108"], "url: expected http://HOST:PORT"),
    ],
)
def test_errors_end_with_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_broker_that_is_away_ends_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    """Another try may do, which is not so of settings."""
    assert main(["top", "--url", "http://127.0.0.1:1"]) == 1
    assert "expected a daemon's /metrics" in capsys.readouterr().err


def test_missing_archive(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["replay", str(tmp_path / "no.avro"), "--dry-run", "--artifact", str(tiny_path)]
    assert main(command) == 2
    assert "expected a file, folder or glob" in capsys.readouterr().err


def test_check_config_masks_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEDFLOW_INPUT__PASSWORD", "hunter2")
    assert main(["check-config"]) == 0
    printed = capsys.readouterr().out
    assert "hunter2" not in printed
    assert json.loads(printed)["artifact"]["name"] == "sdss-ugriz"


@pytest.mark.parametrize(
    ("section", "option", "value", "message"),
    [
        ("OUTPUT", "delivery.timeout.ms", 120_000, "must be set <= `transaction.timeout.ms`"),
        ("INPUT", "session.timeout.ms", 400_000, "must be >= `session.timeout.ms`"),
        ("OUTPUT", "linger.ms", "long", "Invalid value"),
        ("INPUT", "error_cb", "text", "callable"),
        ("INPUT", "enable.auto.commit", True, "expected it left to the daemon"),
        ("OUTPUT", "transactional.id", "mine", "expected it left to the daemon"),
    ],
)
def test_check_config_names_what_librdkafka_refuses(
    section: str,
    option: str,
    value: object,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"SEDFLOW_{section}__KAFKA", json.dumps({option: value}))
    assert main(["check-config"]) == 2
    told = capsys.readouterr().err
    assert f"{section.lower()}.kafka" in told
    assert message in told


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("command", ["run", "refit"])
def test_a_gap_may_be_accepted_in_both_lanes(
    monkeypatch: pytest.MonkeyPatch, command: str, accepted: bool
) -> None:
    found: list[Settings] = []

    def note(settings: Settings) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(worker, "run_kafka", note)
    monkeypatch.setattr(refit_worker, "run_refit", note)
    assert main([command, *(["--accept-gap"] if accepted else [])]) == 0
    (settings,) = found
    assert settings.input.accept_gap == derive_refit_settings(settings).input.accept_gap == accepted


@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_counts_are_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "x.avro", "--dry-run", "--limit", value])
    assert "--limit" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
