"""A short part of `make chaos`: workers and their supervisor killed at moments chosen by chance."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.broker import BrokerUnavailableError

from .__main__ import PLANS, run


def test_killed_workers_lose_and_repeat_nothing(tiny_path: Path, tmp_path: Path) -> None:
    plan = replace(PLANS["kill -9"], n_alerts=1_500, rate=100, n_faults=2)
    try:
        row = run("kill -9", plan, tiny_path, tmp_path)
    except BrokerUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    assert (row.faults, row.lost, row.repeated) == (2, 0, 0)
    assert row.sound
