"""A command whose extra is not installed says which one it is."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.services import clean_environment

SETTINGS = '[input]\ntopics = ["alerts"]\n[http]\nport = 0\n[refit]\nhttp_port = 0\n'


@pytest.mark.parametrize(
    ("main", "arguments", "missing", "extra"),
    [
        ("consumer.cli", ["refit"], ["emcee"], "mcmc"),
        ("consumer.cli", ["top"], ["rich"], "top"),
        ("consumer.demo_alerts", [], ["kcorrect", "matplotlib"], "demo"),
    ],
    ids=["refit", "top", "demo_alerts"],
)
def test_the_extra_is_named(
    main: str, arguments: Sequence[str], missing: Sequence[str], extra: str, tmp_path: Path
) -> None:
    config = tmp_path / "sedflow.toml"
    config.write_text(SETTINGS)
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in missing)
    run = f"import sys; {hide}from {main} import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, *arguments, "--config", str(config)]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"expected the package '{missing[0]}' to be installed, got none" in last
    assert f"[{extra}]" in last
