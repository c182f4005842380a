"""What tests need beside Python: where it is missing they are skipped, or fail in CI."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NoReturn, TypeVar

import pytest

from tests.integration.broker import BrokerUnavailableError

T = TypeVar("T")


def clean_environment() -> dict[str, str]:
    """The environment of a daemon, without settings of somebody else."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SEDFLOW_")}


def unavailable(reason: str) -> NoReturn:
    """End the test, which cannot be run here: skipped, but failed in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def service(running: AbstractContextManager[T]) -> Iterator[T]:
    """A service while it runs."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(running)
        except BrokerUnavailableError as error:
            unavailable(str(error))
        yield found


def program(name: str, package: str) -> str:
    """Path of a program that a Debian package brings."""
    path = shutil.which(name)
    return path or unavailable(f"{name} is not on the PATH: `apt-get install {package}` brings it")
