"""The record `trust` of a summary: what the artifact says of its own posterior."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from consumer.avro import decode_summary
from consumer.message import Message
from consumer.settings import Settings
from consumer.step import Step
from sedflow_core import Artifact, Observation, estimate
from sedflow_core.trust import MIN_DRAWS
from sedflow_core.units import nanomaggy_from_njy

Record = dict[str, Any]


@pytest.fixture
def summarise(
    step: Step, make_message: Callable[..., Message], now: Callable[[], datetime]
) -> Callable[..., Record]:
    def ask(**host: Any) -> Record:
        (result,) = step([make_message(1, **host)], replay=False, now=now).results
        return decode_summary(result.value)

    return ask


def test_every_posterior_is_judged(summarise: Callable[..., Record], tiny: Artifact) -> None:
    record = summarise()
    trust, inputs = record["trust"], record["inputs"]
    observation = Observation(
        nanomaggy_from_njy([inputs["flux"]]),
        nanomaggy_from_njy([inputs["fluxErr"]]),
        [inputs["redshift"]],
    )
    summary = estimate(tiny, observation, n_samples=64)
    assert trust["chiSquare"] == pytest.approx(summary.trust["chi_square"][0], rel=1e-3)
    assert trust["pValue"] == pytest.approx(summary.trust["p_value"][0], rel=1e-2, abs=1e-6)
    assert trust["efficiency"] is None  # so few samples cannot tell
    assert set(trust["constraint"]) == set(summary.names)


def test_the_efficiency_of_enough_samples_is_told(
    tiny: Artifact, make_message: Callable[..., Message], now: Callable[[], datetime]
) -> None:
    step = Step(tiny, Settings.model_validate({"artifact": {"n_samples": MIN_DRAWS}}))
    (result,) = step([make_message(1)], replay=False, now=now).results
    assert 0 <= decode_summary(result.value)["trust"]["efficiency"] <= 1


def test_the_untrained_posterior_is_the_prior_and_is_not_trusted(
    summarise: Callable[..., Record],
) -> None:
    trust = summarise()["trust"]
    assert trust["trusted"] is False
    assert 0.5 < np.median(list(trust["constraint"].values())) < 2.0


def test_without_a_posterior_there_is_no_judgement(summarise: Callable[..., Record]) -> None:
    record = summarise(redshift=5.0)
    assert record["status"] == "OUT_OF_SUPPORT"
    assert (record["posterior"], record["trust"]) == (None, None)


def test_an_artifact_without_trust_tables_publishes_null(
    tiny: Artifact,
    settings: Settings,
    make_message: Callable[..., Message],
    now: Callable[[], datetime],
) -> None:
    step = Step(replace(tiny, trust=None), settings)
    (result,) = step([make_message(1)], replay=False, now=now).results
    record = decode_summary(result.value)
    assert record["posterior"] is not None
    assert record["trust"] is None
