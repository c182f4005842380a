"""A short part of `make chaos`: workers killed at moments chosen by chance, nothing else."""

import os
from pathlib import Path

import pytest

from tests.integration.broker import BrokerUnavailableError

from .__main__ import PLANS, run


def test_killed_workers_lose_and_repeat_nothing(tiny_path: Path) -> None:
    try:
        row = run("kill -9", PLANS["kill -9"], tiny_path, n_good=1_500, n_faults=2)
    except BrokerUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    assert (row.lost, row.repeated, row.letters) == (0, 0, 15)
