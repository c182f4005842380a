"""A shadow's differences are reported; what is published stays as it was."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from consumer.message import Message
from consumer.settings import Settings
from consumer.shadow import QUANTITIES, Shadowed, with_shadow
from consumer.step import Step
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
    assert window == step(messages, replay=False, now=now)
    assert isinstance(shadowed, Shadowed)
    report = shadowed.report()
    assert report["shadow_compared"] == 4
    assert set(report["shadow_largest_shift_sigma"]) == set(QUANTITIES)
    sample = registry.get_sample_value
    count = sample("sedflow_shadow_shift_sigma_count", {"quantity": "log_mstar_surviving"})
    assert count == sample("sedflow_shadow_status_total", {"status": "OK", "shadow": "OK"}) == 3
    statuses = {"status": "NO_REDSHIFT", "shadow": "NO_REDSHIFT"}
    assert sample("sedflow_shadow_status_total", statuses) == 1


def test_the_same_artifact_differs_in_nothing(
    tiny: Artifact,
    tiny_path: Path,
    settings: Settings,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
) -> None:
    shadowed = Shadowed(
        Step(tiny, settings), Step(load_artifact(tiny_path), settings), CollectorRegistry()
    )
    shadowed(messages_of(make_message), replay=False, now=now)
    assert shadowed.report()["shadow_largest_shift_sigma"] == dict.fromkeys(QUANTITIES, 0.0)
    assert shadowed.report()["shadow_other_status"] == 0


def test_without_a_shadow_the_step_is_alone(tiny: Artifact, settings: Settings) -> None:
    step = Step(tiny, settings)
    assert with_shadow(step, settings, CollectorRegistry()) is step
