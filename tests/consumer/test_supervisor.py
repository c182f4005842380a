"""Where the workers of one supervisor leave what their successors need to know, and its count."""

import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from consumer.errors import SettingsError
from consumer.health import Health, serve
from consumer.sections import InputSettings, OutputSettings
from consumer.settings import Settings
from consumer.supervisor import (
    LONGEST_PAUSE_S,
    STARTS_WITHIN_S,
    UNUSABLE,
    Crew,
    Slot,
    run_workers,
    temporary_folder,
)

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


def test_one_that_cannot_start_leaves_the_folder_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As two that are started alike, of which the second finds no port."""
    settings = make_settings()
    folder = temporary_folder(settings)

    def take(*_: object) -> None:
        raise SettingsError("http.port: taken")

    monkeypatch.setattr("consumer.supervisor.serve", take)
    monkeypatch.setattr("consumer.supervisor._kill_on_second_signal", lambda _: None)
    with pytest.raises(SettingsError, match="taken"):
        run_workers(settings, 1)
    assert folder.exists()


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


class Process:
    """A worker's process that ends with that code once it is asked to, or did so before."""

    def __init__(self, code: int, *, alive: bool = True) -> None:
        self.exitcode = code
        self._alive = alive

    def is_alive(self) -> bool:
        return self._alive

    def terminate(self) -> None:
        self._alive = False

    def kill(self) -> None:
        self._alive = False

    def join(self, timeout: float | None = None) -> None:
        """It needs no time to end."""


def make_crew(*processes: Process) -> tuple[Crew, list[Slot]]:
    """A crew of these workers."""
    crew = Crew(make_settings(), len(processes), CollectorRegistry())
    says = SimpleNamespace(close=lambda: None, poll=lambda: False)
    names = [str(i) for i in range(len(processes))]
    slots = [
        Slot(name, process, says, time.monotonic())  # type: ignore[arg-type]
        for name, process in zip(names, processes, strict=True)
    ]
    crew._slots = dict(zip(names, slots, strict=True))
    return crew, slots


def test_what_cannot_be_used_at_the_start_ends_all() -> None:
    """And is told as such although another one had halted: a restart helps neither."""
    crew, (ended, _) = make_crew(Process(UNUSABLE, alive=False), Process(3))
    crew._tend(ended)
    assert crew.stop.is_set()
    assert crew._drain() == UNUSABLE


def test_what_could_be_used_before_is_waited_for() -> None:
    crew, (ended, served) = make_crew(Process(UNUSABLE, alive=False), Process(0))
    health = Health()
    health.warmed = health.assigned = True
    with serve(health, CollectorRegistry(), "127.0.0.1", 0) as served.port:
        crew._tend(served)
    crew._tend(ended)
    assert not crew.stop.is_set()
    assert ended.due_s is not None
    assert crew._drain() == 0


def test_a_system_without_a_process_to_spare_costs_no_other_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crew, (ended, other) = make_crew(Process(-signal.SIGKILL, alive=False), Process(0))
    crew._tend(ended)
    ended.due_s = time.monotonic()

    def refuse(*_: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(crew, "_start", refuse)
    crew._tend(ended)
    assert crew._slots["0"] is ended
    assert ended.deaths == 2
    assert ended.due_s > time.monotonic()
    assert other.process.is_alive()


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ((0, 0), 0),
        ((0, -signal.SIGTERM), 0),
        ((0, -signal.SIGKILL), 1),
        ((0, 1), 1),
        ((0, 3), 3),
    ],
)
def test_a_stop_is_a_failure_where_a_worker_failed_or_had_halted(
    codes: tuple[int, ...], told: int
) -> None:
    crew, _ = make_crew(*map(Process, codes))
    assert crew._drain() == told
