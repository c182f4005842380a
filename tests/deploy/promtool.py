"""promtool, the program."""

import subprocess

from tests.services import program


def promtool(*arguments: str, text: str = "") -> str:
    """What promtool prints, after it found nothing to complain about."""
    command = [program("promtool", "prometheus"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output
