"""`run --workers N`: N worker processes of one consumer group under one supervisor.

Each worker is a fresh interpreter that runs the daemon of `worker.py` in a slot of its own, so its
transactional id outlives it. What happens to a worker is decided here and nowhere else:

- It ends although nobody asked: it is started again in its slot, at once after a long life, later
  and later when it keeps dying (`backoff_s`).
- It does not say that it lives for `HANGS_AFTER_S`, or has no address `STARTS_WITHIN_S` after its
  start: it is killed, and started again as above.
- It says that its settings or its artifact cannot be used: all stop, for a restart changes nothing.
  Once any worker has been ready they could be used: what is wrong with them since, such as a secret
  in exchange, may pass, and it is started again as above.
- The supervisor is told to stop: so are the workers, which finish the batch in hand. What has not
  left after `GRACE_S` is killed. A second signal kills all at once.
- The supervisor itself dies: each worker notices, finishes the batch in hand and leaves.

Workers answer over HTTP on free ports of their own; the supervisor gathers them into one endpoint.
"""

import hashlib
import logging
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import gettempdir
from threading import Event, Thread
from types import FrameType

from prometheus_client import CollectorRegistry, Counter

from consumer.backoff import backoff_s
from consumer.errors import SettingsError
from consumer.gallery import WorkersFollower, open_page
from consumer.gather import Gathered, fetch
from consumer.health import serve
from consumer.process import start_logging
from consumer.sections import StateSettings
from consumer.settings import Settings
from sedflow_core.errors import SedflowError

LOG = logging.getLogger("sedflow.supervisor")
SPAWN = multiprocessing.get_context("spawn")

GRACE_S = 60.0
LONGEST_PAUSE_S = 30.0
LONG_LIFE_S = 60.0
LOOK_EVERY_S = 0.5
ASK_EVERY_S = 10.0
HANGS_AFTER_S = 35.0
"""Beyond the minute after which a worker itself says that its loop does not poll."""
STARTS_WITHIN_S = 120.0
UNUSABLE = 2
"""Exit code of a worker whose settings or artifact cannot be used."""


def run_workers(settings: Settings, n_workers: int) -> int:
    """Run `n_workers` workers until SIGTERM or SIGINT; return the exit code.

    0: every worker left as asked. 1: one did not. 2: the settings or the artifact cannot be used.
    3: one had halted, as of a single process.
    """
    start_logging(settings.log)
    registry = CollectorRegistry()
    with ExitStack() as open_ends:
        folder = None if settings.state.folder else temporary_folder(settings)
        crew = Crew(_with_folder(settings, folder), n_workers, registry)
        registry.register(crew)
        _kill_on_second_signal(crew)
        http = settings.http
        port = open_ends.enter_context(serve(crew, registry, http.host, http.port))
        if folder is not None:  # not before: without the port it may be another supervisor's
            open_ends.callback(shutil.rmtree, folder, ignore_errors=True)
        recent = WorkersFollower(crew.find_ports)
        open_ends.enter_context(open_page(settings, registry, recent, crew))
        LOG.info("started", extra={"fields": {"http_port": port, "workers": n_workers}})
        code = crew.run()
    LOG.info("stopped", extra={"fields": {"exit_code": code}})
    return code


def _with_folder(settings: Settings, folder: Path | None) -> Settings:
    """Return the settings with a folder, if one is given, for what workers leave each other."""
    if folder is None:
        return settings
    return settings.model_copy(update={"state": StateSettings(folder=folder)})


def temporary_folder(settings: Settings) -> Path:
    """Make the folder of this group and slot, or find what a killed supervisor left of it.

    Raises SettingsError where its name belongs to another user.
    """
    owner = (settings.input.bootstrap, settings.input.group, settings.output.slot)
    name = hashlib.sha256("\0".join(owner).encode()).hexdigest()[:16]
    folder = Path(gettempdir(), f"sedflow-{os.getuid()}-{name}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise SettingsError(f"state.folder: expected {folder} for this user, got another's: set it")
    return folder


@dataclass(slots=True)
class Slot:
    """A place for one worker at a time."""

    name: str
    process: SpawnProcess
    says: Connection
    started_s: float
    port: int | None = None
    deaths: int = 0
    due_s: float | None = None
    """When the dead worker of this slot is replaced; None while it lives."""
    asked_s: float = 0.0
    alive_s: float = 0.0
    """When it was last asked whether it lives, and when it last said so."""


class Crew(Gathered):
    """The workers and, as one, what they say of themselves."""

    _served = False
    """Whether any worker has been ready yet."""
    _unusable = False
    """Whether it stopped because settings or artifact cannot be used."""

    def __init__(self, settings: Settings, n_workers: int, registry: CollectorRegistry) -> None:
        base = settings.output.slot
        self._names = [base if n_workers == 1 else f"{base}-{i}" for i in range(n_workers)]
        super().__init__(self.find_ports, self._names)
        self.stop = Event()
        self._settings = settings
        self._slots: dict[str, Slot] = {}
        self._restarts = Counter(
            "sedflow_worker_restarts_total", "Workers that died", ("slot",), registry=registry
        )
        for name in self._names:  # a death is no increase where there was no 0 before it
            self._restarts.labels(name)

    def live(self) -> tuple[bool, str]:
        """Whether every worker that answers polls; one that starts is no reason to kill all."""
        return super().live() if self.find_ports() else (True, "workers are starting")

    def ready(self) -> tuple[bool, str]:
        """Whether every worker answers alerts now, and which one does not."""
        if waiting := sorted(set(self._names) - self.find_ports().keys()):
            return False, f"workers {', '.join(waiting)} are starting"
        return super().ready()

    def run(self) -> int:
        """Start all, replace those that die, and return the exit code once stopped."""
        for name in self._names:
            self._slots[name] = self._start(name)
        while not self.stop.is_set():
            alive = [slot for slot in self._slots.values() if slot.due_s is None]
            silent = [slot.says for slot in alive if slot.port is None]
            wait([*(slot.process.sentinel for slot in alive), *silent], LOOK_EVERY_S)
            for slot in self._slots.values():
                self._tend(slot)
        return self._drain()

    def kill(self) -> None:
        """End every worker at once."""
        for slot in self._slots.values():
            slot.process.kill()

    def _start(self, name: str, deaths: int = 0) -> Slot:
        hears, says = SPAWN.Pipe(duplex=False)
        output = self._settings.output.model_copy(update={"slot": name})
        settings = self._settings.model_copy(update={"output": output})
        process = SPAWN.Process(
            target=work, args=(settings, says), name=f"sedflow-{name}", daemon=True
        )
        process.start()
        says.close()
        LOG.info("worker started", extra={"fields": {"slot": name, "pid": process.pid}})
        return Slot(name, process, hears, time.monotonic(), deaths=deaths)

    def _tend(self, slot: Slot) -> None:
        if slot.due_s is None and self._hangs(slot) and slot.process.is_alive():
            LOG.error("worker hangs", extra={"fields": {"slot": slot.name}})
            slot.process.kill()
            slot.process.join()
        if slot.due_s is not None and time.monotonic() >= slot.due_s:
            self._replace(slot)
        elif slot.due_s is None and not slot.process.is_alive():
            self._note_death(slot)

    def _replace(self, slot: Slot) -> None:
        """Start a worker in a slot whose last one died; later, if the system has none to give."""
        try:
            self._slots[slot.name] = self._start(slot.name, slot.deaths)
        except OSError as error:
            slot.deaths += 1
            slot.due_s = time.monotonic() + backoff_s(slot.deaths, LONGEST_PAUSE_S)
            fields = {"slot": slot.name, "error": str(error)}
            LOG.error("worker not started", extra={"fields": fields})

    def _hangs(self, slot: Slot) -> bool:
        """Whether a worker has not said for long that it lives; asks it now and then."""
        now = time.monotonic()
        if slot.port is None:
            slot.port, slot.alive_s = _hear_port(slot.says), now
            return slot.port is None and now - slot.started_s > STARTS_WITHIN_S
        if now - slot.asked_s > ASK_EVERY_S:
            slot.asked_s = now
            if fetch(slot.port, "/livez")[0] == HTTPStatus.OK:
                slot.alive_s = now
            self._served = self._served or fetch(slot.port, "/readyz")[0] == HTTPStatus.OK
        return now - slot.alive_s > HANGS_AFTER_S

    def _note_death(self, slot: Slot) -> None:
        code = slot.process.exitcode
        lived_s = time.monotonic() - slot.started_s
        slot.deaths = 1 if lived_s > LONG_LIFE_S else slot.deaths + 1
        slot.due_s = time.monotonic() + backoff_s(slot.deaths, LONGEST_PAUSE_S)
        slot.port = None
        slot.says.close()
        self._restarts.labels(slot.name).inc()
        fields = {"slot": slot.name, "exit_code": code, "deaths_in_a_row": slot.deaths}
        LOG.error("worker died", extra={"fields": fields})
        if code == UNUSABLE and not self._served:
            self._unusable = True
            self.stop.set()

    def _drain(self) -> int:
        """Ask all to leave, wait, and return the worst exit code.

        A worker that died before and waits to be replaced was told of then: its successor is not
        needed, so it makes no stop a failure, unless it was what stopped the others.
        """
        for slot in self._slots.values():
            if slot.due_s is None and not slot.process.is_alive():
                self._note_death(slot)
        for slot in self._slots.values():
            slot.process.terminate()
        deadline = time.monotonic() + GRACE_S
        for slot in self._slots.values():
            slot.process.join(max(0.0, deadline - time.monotonic()))
        self.kill()
        for slot in self._slots.values():
            slot.process.join()
        if self._unusable:
            return UNUSABLE
        left = [slot.process for slot in self._slots.values() if slot.due_s is None]
        # A worker that had not come up yet leaves by the signal itself.
        codes = {process.exitcode or 0 for process in left} - {-signal.SIGTERM}
        killed = any(code < 0 for code in codes)
        return max(codes | {int(killed)})

    def find_ports(self) -> Mapping[str, int]:
        """Return the port of each worker that runs and has told it."""
        return {slot.name: slot.port for slot in list(self._slots.values()) if slot.port}


def work(settings: Settings, says: Connection) -> None:
    """Be a worker: the entry of its process. Its port goes to the supervisor through `says`."""
    from consumer.worker import run_worker

    stop = Event()
    # The supervisor decides when it is enough: a signal to the whole group arrives here twice.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    http = settings.http.model_copy(update={"host": "127.0.0.1", "port": 0})
    page = settings.page.model_copy(update={"port": None})

    def tell_port(port: int) -> None:
        with suppress(BrokenPipeError):  # the supervisor died meanwhile: `stop` will be set
            says.send(port)

    try:
        code = run_worker(settings.model_copy(update={"http": http, "page": page}), stop, tell_port)
    except SedflowError as error:
        LOG.error("cannot start", extra={"fields": {"error": str(error)}})
        code = UNUSABLE
    sys.exit(code)


def _stop_with_parent(stop: Event) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        stop.set()


def _hear_port(says: Connection) -> int | None:
    try:
        return int(says.recv()) if says.poll() else None
    except (EOFError, OSError):  # it died
        return None


def _kill_on_second_signal(crew: Crew) -> None:
    def receive(number: int, _: FrameType | None) -> None:
        if crew.stop.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            crew.kill()
            os._exit(128 + number)
        crew.stop.set()

    signal.signal(signal.SIGTERM, receive)
    signal.signal(signal.SIGINT, receive)
