"""A shadow's differences are reported; what is published stays as it was."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from consumer.alerts import HostAlert
from consumer.avro import Decoded, Decoder, decode_summary
from consumer.message import Message, Result, Window
from consumer.settings import Settings
from consumer.shadow import QUANTITIES, Judge, Shadowed, with_shadow
from consumer.step import Judgement, Step
from sedflow_core import Artifact, load_artifact
from sedflow_core.testing import tiny_artifact


@pytest.fixture(scope="module")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another artifact: the same but for the seed of its network."""
    return tiny_artifact(tmp_path_factory.mktemp("other"), seed=5)


def messages_of(make_message: Callable[..., Message]) -> list[Message]:
    return [make_message(i) for i in range(3)] + [make_message(3, redshift=None)]


def test_a_planted_difference_is_found(
    tiny: Artifact,
    tiny_path: Path,
    other_path: Path,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
) -> None:
    artifact = {"name": str(tiny_path), "n_samples": 64, "shadow": str(other_path)}
    settings = Settings.model_validate({"artifact": artifact})
    step, registry = Step(tiny, settings), CollectorRegistry()
    shadowed = with_shadow(step, settings, registry)
    messages = messages_of(make_message)
    window = shadowed(messages, replay=False, now=now)
    assert alone(window) == step(messages, replay=False, now=now)
    assert isinstance(shadowed, Shadowed)
    assert shadowed.report()["shadow_compared"] == 0  # of what was published
    shadowed.count(window)
    report = shadowed.report()
    assert report["shadow_compared"] == 4
    other = Step(load_artifact(other_path), settings)(messages, replay=False, now=now)
    pairs = list(zip(*(marginals(w.results[:3]) for w in (window, other)), strict=True))
    for name in QUANTITIES:
        shifts = [(b[name]["q50"] - a[name]["q50"]) / a[name]["std"] for a, b in pairs]
        largest = report["shadow_largest_shift_sigma"]
        assert isinstance(largest, dict)
        assert largest[name] == pytest.approx(max(shifts, key=abs), rel=1e-4)
        assert largest[name] != 0.0
    sample = registry.get_sample_value
    count = sample("sedflow_shadow_shift_sigma_count", {"quantity": "log_mstar_surviving"})
    assert count == sample("sedflow_shadow_status_total", {"status": "OK", "shadow": "OK"}) == 3
    statuses = {"status": "NO_REDSHIFT", "shadow": "NO_REDSHIFT"}
    assert sample("sedflow_shadow_status_total", statuses) == 1


def alone(window: Window) -> Window:
    """The window without what the shadow says."""
    return replace(window, results=tuple(replace(r, shadow=None) for r in window.results))


def marginals(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [decode_summary(result.value)["posterior"]["derived"] for result in results]


def planted(step: Step, shift_sigma: float) -> Judge:
    """A judge whose masses are so much larger, and that finds no host in the first alert."""

    def shift(judgement: Judgement) -> Judgement:
        record = deepcopy(judgement.record)
        assert record is not None
        mass = record["derived"]["log_mstar_surviving"]
        mass["q50"] += shift_sigma * mass["std"]
        return judgement._replace(record=record)

    def judge(alerts: Sequence[HostAlert]) -> list[Judgement]:
        _, *others = step.judge(alerts)
        return [Judgement("NO_HOST", (), None, None), *map(shift, others)]

    return judge


@pytest.mark.parametrize("shift_sigma", [0.5, -2.0])
def test_a_difference_of_known_size_is_reported(
    step: Step,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
    shift_sigma: float,
) -> None:
    registry = CollectorRegistry()
    shadowed = Shadowed(step, planted(step, shift_sigma), registry)
    shadowed.count(shadowed([make_message(i) for i in range(5)], replay=False, now=now))
    report = shadowed.report()
    shift = pytest.approx(shift_sigma, rel=1e-4)
    assert report["shadow_largest_shift_sigma"] == {
        "log_mstar_surviving": shift,
        "log_sfr_1gyr": 0.0,
        "a_v": 0.0,
    }
    assert report["shadow_other_status"] == 1
    sample = registry.get_sample_value
    changed = {"status": "OK", "shadow": "NO_HOST"}
    assert sample("sedflow_shadow_status_total", changed) == 1
    mass = {"quantity": "log_mstar_surviving"}
    assert sample("sedflow_shadow_shift_sigma_count", mass) == 4


def test_the_same_artifact_differs_in_nothing(
    tiny: Artifact,
    tiny_path: Path,
    settings: Settings,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
) -> None:
    shadowed = Shadowed(
        Step(tiny, settings), Step(load_artifact(tiny_path), settings).judge, CollectorRegistry()
    )
    shadowed.count(shadowed(messages_of(make_message), replay=False, now=now))
    assert shadowed.report()["shadow_largest_shift_sigma"] == dict.fromkeys(QUANTITIES, 0.0)
    assert shadowed.report()["shadow_other_status"] == 0


def test_dead_letters_are_left_out(
    step: Step, make_message: Callable[..., Message], now: Callable[[], datetime]
) -> None:
    shadowed = Shadowed(step, step.judge, CollectorRegistry())
    messages = [Message(b"no alert"), make_message(1), Message(b"none"), make_message(2)]
    window = shadowed(messages, replay=False, now=now)
    shadowed.count(window)
    assert [len(window.results), len(window.rejected)] == [2, 2]
    assert shadowed.report()["shadow_compared"] == 2
    assert shadowed.report()["shadow_largest_shift_sigma"] == dict.fromkeys(QUANTITIES, 0.0)


def test_a_shadow_that_fails_costs_no_answer(
    step: Step,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> Sequence[Judgement]:
        raise RuntimeError("out of memory")

    registry = CollectorRegistry()
    shadowed = Shadowed(step, fail, registry)
    window = shadowed(messages_of(make_message), replay=False, now=now)
    assert window == step(messages_of(make_message), replay=False, now=now)
    assert [r.message for r in caplog.records] == ["the shadow failed"]
    assert registry.get_sample_value("sedflow_shadow_failures_total") == 1


def test_without_a_shadow_the_step_is_alone(tiny: Artifact, settings: Settings) -> None:
    step = Step(tiny, settings)
    assert with_shadow(step, settings, CollectorRegistry()) is step


def test_a_shadow_reads_nothing(
    tiny: Artifact,
    settings: Settings,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, decoded = Step(tiny, settings), []
    decode = Decoder.decode

    def count(decoder: Decoder, value: bytes | None, key: bytes | None) -> Decoded:
        decoded.append(value)
        return decode(decoder, value, key)

    monkeypatch.setattr(Decoder, "decode", count)
    messages = messages_of(make_message)
    shadowed = Shadowed(step, Step(tiny, settings).judge, CollectorRegistry())
    shadowed(messages, replay=False, now=now)
    assert decoded == [message.value for message in messages]
