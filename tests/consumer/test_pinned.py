"""Both lanes serve the artifact that their settings pin and its validation passed, and no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sedflow_core import load_artifact

CLUSTER = 'bootstrap = "127.0.0.1:1"\n'
UNVALIDATED = "allow_unvalidated = true\n"


def start(lane: str, artifact: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a lane with these lines of [artifact], and wait for its end."""
    config = folder / "sedflow.toml"
    config.write_text(
        f'[artifact]\n{artifact}[input]\n{CLUSTER}topics = ["alerts"]\n[output]\n{CLUSTER}'
        "[http]\nport = 0\n[refit]\nhttp_port = 0\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SEDFLOW_")}
    command = [sys.executable, "-m", "consumer.cli", lane, "--config", str(config)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(params=["run", "refit"])
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_not_pinned_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    done = start(lane, f'name = "{tiny_path}"\n{UNVALIDATED}', tmp_path)
    assert done.returncode == 2
    assert "artifact.sha256: expected the digest of the artifact to serve" in done.stderr
    assert f"that of tiny 0 is {load_artifact(tiny_path).sha256}" in done.stderr


def test_another_digest_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    other = 64 * "0"
    done = start(lane, f'name = "{tiny_path}"\n{UNVALIDATED}sha256 = "{other}"\n', tmp_path)
    assert done.returncode == 2
    assert f"artifact.sha256: expected {other}, got" in done.stderr


def test_what_was_not_validated_is_not_served(lane: str, tiny_path: Path, tmp_path: Path) -> None:
    digest = load_artifact(tiny_path).sha256
    done = start(lane, f'name = "{tiny_path}"\nsha256 = "{digest}"\n', tmp_path)
    assert done.returncode == 2
    assert "expected a recorded validation, got none" in done.stderr


def test_what_is_pinned_goes_on_to_look_for_a_broker(
    lane: str, tiny_path: Path, tmp_path: Path
) -> None:
    digest = load_artifact(tiny_path).sha256
    done = start(lane, f'name = "{tiny_path}"\n{UNVALIDATED}sha256 = "{digest}"\n', tmp_path)
    assert done.returncode == 1
    assert "expected the cluster at 127.0.0.1:1 to answer" in done.stderr
