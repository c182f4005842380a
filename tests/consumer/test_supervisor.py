"""Where the workers of one supervisor leave what their successors need to know, and its count."""

import tempfile
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumer.errors import SettingsError
from consumer.sections import InputSettings, OutputSettings
from consumer.settings import Settings
from consumer.supervisor import LONGEST_PAUSE_S, STARTS_WITHIN_S, Crew, temporary_folder

WATCHED_S = 900.0
ALERTS_AT = 3
"""So many restarts of one worker within so long raise SedflowRestarting."""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files in these tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make_settings(group: str = "night", slot: str = "0") -> Settings:
    return Settings(input=InputSettings(group=group), output=OutputSettings(slot=slot))


def test_the_successor_of_a_killed_supervisor_finds_its_folder(temporary: Path) -> None:
    folder = temporary_folder(make_settings())
    (folder / "a-0.json").write_text("{}")
    assert temporary_folder(make_settings()) == folder
    assert list(temporary.iterdir()) == [folder]
    assert (folder / "a-0.json").exists()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_another_group_or_slot_has_another_folder() -> None:
    settings = [make_settings(), make_settings("day"), make_settings(slot="1")]
    assert len(set(map(temporary_folder, settings))) == 3


def test_a_link_in_its_place_is_refused(temporary: Path) -> None:
    folder = temporary_folder(make_settings())
    folder.rmdir()
    folder.symlink_to(temporary, target_is_directory=True)
    with pytest.raises(SettingsError, match=r"state\.folder: expected .* for this user"):
        temporary_folder(make_settings())


@pytest.mark.parametrize(("n_workers", "names"), [(1, ["0"]), (2, ["0-0", "0-1"])])
def test_the_restarts_of_every_worker_begin_at_0(n_workers: int, names: list[str]) -> None:
    registry = CollectorRegistry()
    Crew(make_settings(), n_workers, registry)
    counts = {
        name: registry.get_sample_value("sedflow_worker_restarts_total", {"slot": name})
        for name in names
    }
    assert counts == dict.fromkeys(names, 0)


def test_the_slowest_loop_of_restarts_is_fast_enough_for_the_alert() -> None:
    """Of workers that never answer, each is killed and the next one waits as long as any does."""
    assert WATCHED_S / (STARTS_WITHIN_S + LONGEST_PAUSE_S) > ALERTS_AT + 1
