"""A worker whose broker is away: at its start and later on."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Event
from types import SimpleNamespace

import pytest

from consumer import connection
from consumer import shadow as shadow_module
from consumer import step as step_module
from consumer import worker as worker_module
from consumer.daemon import Tally
from consumer.errors import BrokerError, HaltedError, NoAnswerError, SettingsError
from consumer.gather import fetch
from consumer.health import MAX_SILENCE_S
from consumer.message import Difference, Result, Window
from consumer.process import JsonFormatter
from consumer.refit import RefitMetrics
from consumer.refit_worker import RefitWorker
from consumer.registry import RegistryError, SilentRegistryError
from consumer.sections import InputSettings
from consumer.settings import Settings
from consumer.shadow import Shadowed
from consumer.start_checks import Clusters
from consumer.worker import LONGEST_PAUSE_S, LOST, Worker, WorkerHealth, attend
from sedflow_core import Artifact, estimate

AWAY = BrokerError("output: expected an answer, got none")


class Pauses(Event):
    """Is set after so many pauses, which take no time."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.lengths_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.lengths_s.append(timeout or 0.0)
        if len(self.lengths_s) == self.n:
            self.set()
        return self.is_set()


def pauses(monkeypatch: pytest.MonkeyPatch, n: int, *, served: bool) -> list[float]:
    """Seconds between attempts that fail after a long while, with or without partitions."""
    monkeypatch.setattr(worker_module, "LONG_LIFE_S", -1.0)
    monkeypatch.setattr(worker_module.gc, "collect", lambda: 0)  # slow where much was imported
    stop = Pauses(n)
    worker = Worker(Settings(), stop)

    def serve() -> Tally:
        worker._source = SimpleNamespace(served=served)  # type: ignore[assignment]
        raise AWAY

    monkeypatch.setattr(worker, "_serve", serve)
    worker.work()
    return stop.lengths_s


def test_pauses_grow_and_stay_bounded_however_long_the_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths_s = pauses(monkeypatch, 1100, served=False)
    assert lengths_s[0] <= 1.0
    assert min(lengths_s[10:]) >= LONGEST_PAUSE_S / 2
    assert max(lengths_s) <= LONGEST_PAUSE_S


def test_a_secret_that_is_gone_at_a_reconnect_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And at the first connection it is named, and ends the process."""
    gone = SettingsError("secret file: expected a readable file")
    stop = Pauses(2)
    worker = Worker(Settings(), stop)

    def serve() -> Tally:
        raise gone

    monkeypatch.setattr(worker, "_serve", serve)
    with pytest.raises(SettingsError, match="secret file"):
        worker.work()
    worker._source = SimpleNamespace(served=True)  # type: ignore[assignment]
    worker.work()
    assert len(stop.lengths_s) == 2


def test_pauses_begin_anew_after_partitions_were_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(pauses(monkeypatch, 20, served=True)) <= 1.0


@pytest.mark.parametrize("shadow", [None, "another"])
def test_a_worker_lives_while_slow_artifacts_are_loaded_and_warmed(
    monkeypatch: pytest.MonkeyPatch, tiny: Artifact, shadow: str | None
) -> None:
    now_s = 0.0
    artifact = {"shadow": shadow, "n_samples": 32}
    worker = Worker(Settings.model_validate({"artifact": artifact}), Pauses(1))
    worker.health = WorkerHealth(lambda: now_s)

    def slowly(call: Callable[..., object]) -> Callable[..., object]:
        def answer(*arguments: object, **more: object) -> object:
            nonlocal now_s
            now_s += 0.9 * MAX_SILENCE_S
            assert worker.health.live()[0]
            return call(*arguments, **more)

        return answer

    monkeypatch.setattr(worker_module, "load_served", slowly(lambda _: tiny))
    monkeypatch.setattr(shadow_module, "load_artifact", slowly(lambda *_: tiny))
    monkeypatch.setattr(step_module, "estimate", slowly(estimate))
    monkeypatch.setattr(worker_module, "check_clients", lambda _: None)
    monkeypatch.setattr(worker, "_find_services", lambda: 1)
    worker.start()
    assert worker.health.live()[0]
    assert worker.health.warmed


def test_a_broker_that_is_away_at_the_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [NoAnswerError("input: no"), NoAnswerError("output: no"), None]
    found = Clusters("a", "a", remembers=False)

    def check(settings: Settings) -> Clusters:
        if (error := answers.pop(0)) is not None:
            raise error
        return found

    monkeypatch.setattr(worker_module, "check_topics", check)
    stop = Pauses(3)
    worker = Worker(Settings(), stop)
    worker._find_services()
    assert worker._clusters is found
    assert len(stop.lengths_s) == 2


def test_a_registry_that_is_away_at_the_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [SilentRegistryError("registry: no"), None]

    def register(settings: Settings) -> int:
        if (error := answers.pop(0)) is not None:
            raise error
        return 4711

    found = Clusters("a", "a", remembers=False)
    monkeypatch.setattr(worker_module, "check_topics", lambda _: found)
    monkeypatch.setattr(worker_module, "register_summaries", register)
    stop = Pauses(2)
    assert Worker(Settings(), stop)._find_services() == 4711
    assert len(stop.lengths_s) == 1


def test_a_worker_that_waits_for_its_broker_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(settings: Settings) -> Clusters:
        raise NoAnswerError("input: no")

    def start(worker: Worker) -> None:
        worker._find_services()

    monkeypatch.setattr(worker_module, "check_topics", check)
    monkeypatch.setattr(Worker, "start", start)
    settings = Settings.model_validate({"http": {"port": 0}})
    assert attend(Worker(settings, Pauses(2)), settings) == 0


def test_a_fault_of_our_own_is_told_in_the_log_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(worker: Worker) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Worker, "start", start)
    settings = Settings.model_validate({"http": {"port": 0}})
    assert attend(Worker(settings, Pauses(1)), settings) == LOST
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["event"] == "crashed"
    assert "ZeroDivisionError: ours" in line["traceback"]


def test_a_refusal_at_the_start_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(settings: Settings) -> Clusters:
        raise BrokerError("input: expected the topics ['x'], got none of these names")

    monkeypatch.setattr(worker_module, "check_topics", check)
    with pytest.raises(BrokerError, match="expected the topics"):
        Worker(Settings(), Pauses(2))._find_services()


def test_nobody_listens_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_WITHIN_S", 0.0)
    with pytest.raises(NoAnswerError, match=r"127\.0\.0\.1:1 to answer"):
        connection.describe_cluster("input", InputSettings(bootstrap="127.0.0.1:1"))


def test_trouble_with_a_registry_is_counted_as_such() -> None:
    worker = Worker(Settings(), Pauses(2))
    worker._wait(RegistryError("registry: expected an answer, got timed out"), 1)
    retries = [
        worker.registry.get_sample_value("sedflow_retries_total", {"target": target})
        for target in ("registry", "broker")
    ]
    assert retries == [1, 0]


@pytest.mark.parametrize(
    "leave", [lambda worker: worker.halt(HaltedError("bad")), lambda worker: worker._wait(AWAY, 1)]
)
def test_what_is_unread_is_told_by_who_holds_it(leave: Callable[[Worker], None]) -> None:
    worker = Worker(Settings(), Pauses(1))
    worker._metrics.set_lag({("hosts", 0): 5, ("hosts", 1): 0}, datetime.now(UTC))
    worker._metrics.partitions_paused.set(2)
    leave(worker)
    lags = [
        worker.registry.get_sample_value(
            "sedflow_consumer_lag_messages", {"topic": "hosts", "partition": partition}
        )
        for partition in ("0", "1")
    ]
    assert lags == [None, None]
    for name in ("sedflow_consumer_lag_seconds", "sedflow_partitions_paused"):
        assert worker.registry.get_sample_value(name) == 0.0


@pytest.mark.parametrize(("tell_port", "status"), [(None, 404), (lambda _: None, 200)])
def test_the_summaries_are_served_to_a_parent_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tell_port: Callable[[int], None] | None,
    status: int,
) -> None:
    answers = []

    def start(worker: Worker) -> None:
        port = caplog.records[-1].fields["http_port"]  # type: ignore[attr-defined]
        answers.append(fetch(port, "/summaries?after=0")[0])
        raise NoAnswerError("told to stop")

    monkeypatch.setattr(Worker, "start", start)
    settings = Settings.model_validate({"http": {"port": 0}})
    with caplog.at_level(logging.INFO, "sedflow.worker"):
        attend(Worker(settings, Pauses(1)), settings, tell_port)
    assert answers == [status]


def test_a_worker_counts_the_topics_of_all_days_as_one() -> None:
    streams = {"input": {"topics": ["ztf_{date}_p1"]}, "output": {"dead_letter_topic": "letters"}}
    worker = Worker(Settings.model_validate(streams), Pauses(1))
    worker._metrics.set_lag({("ztf_20260301_p1", 0): 0}, datetime.now(UTC))
    labels = {"topic": "ztf_{date}_p1"}
    assert worker.registry.get_sample_value("sedflow_alerts_consumed_total", labels) == 0


def test_what_a_shadow_says_is_counted_once_published() -> None:
    worker = Worker(Settings(), Pauses(1))
    worker._answer = Shadowed(lambda *_, **__: Window((), (), ()), lambda _: [], worker.registry)
    said = Difference(("OK", "NO_HOST"), {})
    worker._note(Window((), (Result(None, b"", (), "OK", "ZTF", shadow=said),), ()))
    labels = {"status": "OK", "shadow": "NO_HOST"}
    assert worker.registry.get_sample_value("sedflow_shadow_status_total", labels) == 1
    assert len(worker.gallery.since(0)) == worker.published.messages == 1


def test_the_slow_lane_counts_what_was_published_and_keeps_its_membership() -> None:
    worker = RefitWorker(Settings(), Pauses(1))
    worker._answer = lambda *_, **__: Window((), (), ())
    worker._refit_metrics = RefitMetrics(worker.registry)
    kept: list[str] = []
    worker._source = SimpleNamespace(keep_alive=lambda: kept.append("kept"))  # type: ignore[assignment]
    worker._note(Window((), (Result(None, b"", (), "OK", "ZTF", refit="EXPIRED"),), ()))
    labels = {"outcome": "EXPIRED"}
    assert worker.registry.get_sample_value("sedflow_refits_total", labels) == 1
    assert worker.published.messages == 1
    worker._keep_alive()
    assert kept == ["kept"]
