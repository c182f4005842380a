"""Short parts of `make chaos`: workers killed by chance, and a network that is cut."""

from dataclasses import replace
from pathlib import Path

from tests.integration.broker import BrokerUnavailableError
from tests.services import unavailable

from .__main__ import PLANS, Plan, Row, run


def run_here(name: str, plan: Plan, artifact: Path, folder: Path) -> Row:
    try:
        return run(name, plan, artifact, folder)
    except BrokerUnavailableError as error:
        unavailable(str(error))


def test_killed_workers_lose_and_repeat_nothing(tiny_path: Path, tmp_path: Path) -> None:
    plan = replace(PLANS["kill -9"], n_alerts=1_500, rate=100, n_faults=2)
    row = run_here("kill -9", plan, tiny_path, tmp_path)
    assert (row.faults, row.lost, row.repeated) == (2, 0, 0)
    assert row.sound


def test_workers_go_on_soon_after_a_network_was_cut(tiny_path: Path, tmp_path: Path) -> None:
    """Their transactions and their membership are lost by then, and every connection is dead."""
    plan = replace(PLANS["network cut 60 s"], n_alerts=4_800)
    row = run_here("network cut 60 s", plan, tiny_path, tmp_path)
    assert row.sound
    assert row.recovery_s < 20
