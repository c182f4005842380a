"""promtool and prometheus, the programs: tests that need them skip without, and fail in CI."""

import os
import shutil
import subprocess

import pytest


def find_program(name: str) -> str:
    """Path of a program; skips the test where there is none, or fails it in CI."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not on the PATH: `apt-get install prometheus` brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def promtool(*arguments: str, text: str = "") -> str:
    """What promtool prints, after it found nothing to complain about."""
    command = [find_program("promtool"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output
