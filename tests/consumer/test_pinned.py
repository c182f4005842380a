"""Both lanes serve the artifact that their settings pin and its validation passed, and no other."""

import subprocess
import sys
from pathlib import Path

import pytest

from sedflow_core import load_artifact
from tests.services import clean_environment

CLUSTER = 'bootstrap = "127.0.0.1:1"\n'
UNVALIDATED = "allow_unvalidated = true\n"


def launch(lane: str, artifact: str, folder: Path) -> subprocess.Popen[str]:
    """Start a lane with these lines of [artifact]."""
    config = folder / "sedflow.toml"
    config.write_text(
        f'[artifact]\n{artifact}[input]\n{CLUSTER}topics = ["alerts"]\n[output]\n{CLUSTER}'
        "[http]\nport = 0\n[refit]\nhttp_port = 0\n"
    )
    command = [sys.executable, "-m", "consumer.cli", lane, "--config", str(config)]
    return subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True)


def refusal(lane: str, artifact: str, folder: Path) -> str:
    """What a lane says that ends because of its settings."""
    with launch(lane, artifact, folder) as process:
        _, told = process.communicate()
    assert process.returncode == 2
    return told


@pytest.fixture(params=["run", "refit"])
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_not_pinned_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    told = refusal(lane, f'name = "{tiny_path}"\n{UNVALIDATED}', tmp_path)
    assert "artifact.sha256: expected the digest of the artifact to serve" in told
    assert f"that of tiny 0 is {load_artifact(tiny_path).sha256}" in told


def test_another_digest_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    other = 64 * "0"
    told = refusal(lane, f'name = "{tiny_path}"\n{UNVALIDATED}sha256 = "{other}"\n', tmp_path)
    assert f"artifact.sha256: expected {other}, got" in told


def test_what_was_not_validated_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    digest = load_artifact(tiny_path).sha256
    told = refusal(lane, f'name = "{tiny_path}"\nsha256 = "{digest}"\n', tmp_path)
    assert "expected a recorded validation, got none" in told


def test_what_is_pinned_goes_on_to_look_for_a_broker(
    lane: str, tiny_path: Path, tmp_path: Path
) -> None:
    digest = load_artifact(tiny_path).sha256
    pinned = f'name = "{tiny_path}"\n{UNVALIDATED}sha256 = "{digest}"\n'
    with launch(lane, pinned, tmp_path) as process:
        assert process.stderr is not None
        asked = "expected the cluster at 127.0.0.1:1 to answer"
        assert any(asked in line for line in process.stderr)
        process.terminate()
        process.communicate()
    assert process.returncode == 0
