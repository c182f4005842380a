from pathlib import Path

import pytest

from consumer import demo

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
