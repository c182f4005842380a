"""The daemon serves the artifact that its settings pin, and no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sedflow_core import load_artifact


@pytest.mark.parametrize("pinned", [False, True])
def test_what_is_not_pinned_is_not_served(tiny_path: Path, tmp_path: Path, pinned: bool) -> None:
    """With the digest that the refusal tells, the start goes on to look for a broker."""
    digest = load_artifact(tiny_path).sha256
    config = tmp_path / "sedflow.toml"
    pin = f'sha256 = "{digest}"\n' if pinned else ""
    cluster = 'bootstrap = "127.0.0.1:1"\n'
    config.write_text(
        f'[artifact]\nname = "{tiny_path}"\nallow_unvalidated = true\n{pin}'
        f'[input]\n{cluster}topics = ["alerts"]\n[output]\n{cluster}[http]\nport = 0\n'
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SEDFLOW_")}
    command = [sys.executable, "-m", "consumer.cli", "run", "--config", str(config)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    if pinned:
        assert done.returncode == 1
        assert "expected the cluster at 127.0.0.1:1 to answer" in done.stderr
    else:
        assert done.returncode == 2
        assert "artifact.sha256: expected the digest of the artifact to serve" in done.stderr
        assert f"that of tiny 0 is {digest}" in done.stderr
