"""Summaries of samples against numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, expon, norm, t, uniform

from sedflow_core.prior import PARAM_NAMES
from sedflow_core.sfh import DERIVED_NAMES
from sedflow_core.summary import EVENTS, LEVELS, Summary, empty_summary, fill_rows, quantiles

NAMES = PARAM_NAMES + DERIVED_NAMES
FLAG_NAMES = ("near", "far", "odd")


def summary_of(n: int = 2) -> Summary:
    flags = np.array([0, 0b101][:n], dtype=np.int64)
    return empty_summary(NAMES, flags, FLAG_NAMES, n_samples=500, seed=9)


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(len(NAMES), len(NAMES), generator=generator, dtype=torch.float64)
    return mixing @ torch.randn(len(NAMES), 500, generator=generator, dtype=torch.float64) + 3.0


@pytest.fixture(scope="module")
def filled(samples: torch.Tensor) -> Summary:
    summary = summary_of()
    fill_rows(summary, np.array([0]), samples[None])
    return summary


@pytest.mark.parametrize("n_samples", [2, 64, 1024])
def test_quantiles_of_points_on_a_normal_are_the_normals(n_samples: int) -> None:
    scores = norm.ppf((np.arange(n_samples) + 0.5) / n_samples)
    expected = np.clip(norm.ppf(LEVELS), scores.min(), scores.max())
    values = quantiles(torch.tensor(3.0 + 2.0 * scores), LEVELS)
    np.testing.assert_allclose(values, 3.0 + 2.0 * expected)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 7, 30])
def test_quantiles_of_few_samples_ascend_within_them(n_samples: int) -> None:
    ordered = np.sort(np.random.default_rng(0).standard_normal((200, n_samples)), axis=1)
    values = quantiles(torch.tensor(ordered), LEVELS).numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    assert (values >= ordered[:, :1]).all()
    assert (values <= ordered[:, -1:]).all()


@pytest.mark.parametrize("density", [norm(), expon(), uniform(), beta(0.7, 2.0), t(4)], ids=str)
def test_quantiles_are_nearer_the_truth_than_numpys(density: Any) -> None:
    draws = density.rvs((4_000, 900), random_state=1)
    truth = density.ppf(LEVELS)
    ours = quantiles(torch.tensor(np.sort(draws, axis=1)), LEVELS).numpy() - truth
    numpys = np.quantile(draws, LEVELS, axis=1).T - truth
    assert (np.square(ours).mean(axis=0) < np.square(numpys).mean(axis=0)).all()


def test_moments_are_numpys(filled: Summary, samples: torch.Tensor) -> None:
    values = samples.numpy()
    np.testing.assert_allclose(filled.mean[0], values.mean(axis=1))
    np.testing.assert_allclose(filled.std[0], values.std(axis=1))
    np.testing.assert_allclose(filled.covariance[0], np.cov(values[:12], bias=True))
    expected = quantiles(samples.sort(dim=1).values, LEVELS)
    np.testing.assert_allclose(filled.quantiles[0], expected)


def test_one_quantile_by_name(filled: Summary, samples: torch.Tensor) -> None:
    expected = quantiles(samples[NAMES.index("t50")].sort().values, (0.84,))
    assert filled.quantile("t50", 0.84)[0] == pytest.approx(float(expected))
    assert np.isnan(filled.quantile("t50", 0.84)[1])


def test_probabilities_count_samples_beyond_the_threshold(filled, samples) -> None:
    assert filled.probabilities.keys() == EVENTS.keys()
    massive = samples[NAMES.index("log_mstar_surviving")].numpy() > 10.0
    quiescent = samples[NAMES.index("log_ssfr_1gyr")].numpy() < -11.0
    probabilities = filled.probabilities
    assert probabilities["log_mstar_surviving_above_10"][0] == pytest.approx(massive.mean())
    assert probabilities["quiescent"][0] == pytest.approx(quiescent.mean())
    assert np.isnan(probabilities["quiescent"][1])


def test_rows_that_were_not_filled_stay_nan_and_keep_their_reasons(filled: Summary) -> None:
    for values in (filled.quantiles, filled.mean, filled.std, filled.covariance):
        assert np.isfinite(values[0]).all()
        assert np.isnan(values[1]).all()
    assert filled.reasons(0) == []
    assert filled.reasons(1) == ["near", "odd"]
    assert (len(filled), filled.n_samples, filled.seed) == (2, 500, 9)


def test_events_need_their_quantity() -> None:
    names = (*PARAM_NAMES, "log_ssfr_1gyr")
    summary = empty_summary(names, np.zeros(1, np.int64), (), n_samples=1, seed=0)
    assert summary.probabilities.keys() == {"quiescent"}
