"""Diagnostics of calibration against scipy, and on posteriors that are right or wrong by design."""

import numpy as np
import pytest
from scipy import stats

from sedflow_core.diagnostics import (
    bias_and_width,
    density_ranks,
    ks_distance,
    ks_p_value,
    pooled,
    slices,
    tarp_levels,
)

N, N_SAMPLE = 2_000, 400


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def conjugate(rng: np.random.Generator, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Truths (N, 2) of a normal prior seen with unit noise, and samples of their posterior.

    The exact posterior is normal with mean x / 2 and variance 1 / 2; `width` scales it.
    """
    truth = rng.normal(size=(N, 2))
    x = truth + rng.normal(size=(N, 2))
    noise = rng.normal(size=(N, N_SAMPLE, 2))
    return truth, x[:, None] / 2 + width * np.sqrt(0.5) * noise


@pytest.mark.parametrize("n", [50, 5_000])
def test_ks_distance_and_p_value_are_those_of_scipy(rng: np.random.Generator, n: int) -> None:
    for _ in range(5):
        ranks = rng.random(n)
        expected = stats.kstest(ranks, "uniform")
        assert ks_distance(ranks) == pytest.approx(expected.statistic)
        assert ks_p_value(expected.statistic, n) == pytest.approx(expected.pvalue, abs=0.02)


def test_tarp_is_uniform_for_the_exact_posterior_alone(rng: np.random.Generator) -> None:
    for width, low, high in ((1.0, 0.0, 1.63 / np.sqrt(N)), (0.5, 0.1, 1.0), (2.0, 0.1, 1.0)):
        truth, samples = conjugate(rng, width)
        levels = tarp_levels(samples, truth, rng.normal(size=truth.shape))
        assert low <= ks_distance(levels) <= high


def test_density_ranks_are_uniform_for_the_exact_posterior_alone(rng: np.random.Generator) -> None:
    for width, low, high in ((1.0, 0.0, 0.045), (0.5, 0.1, 1.0)):
        truth, samples = conjugate(rng, width)
        mean = samples.mean(axis=1)
        log_q = -((samples - mean[:, None]) ** 2).sum(axis=-1).T
        log_q_truth = -((truth - mean) ** 2).sum(axis=-1)
        assert low <= ks_distance(density_ranks(log_q, log_q_truth)) <= high


def test_bias_and_width_of_a_shifted_posterior(rng: np.random.Generator) -> None:
    truth, samples = conjugate(rng, 1.0)
    quantiles = np.quantile(samples + np.array([0.0, 0.3]), [0.16, 0.5, 0.84], axis=1).transpose(
        1, 2, 0
    )
    found = bias_and_width(truth, quantiles, ("right", "shifted"))
    assert found["right"]["median_bias"] == pytest.approx(0.0, abs=0.08)
    assert found["shifted"]["median_bias"] == pytest.approx(0.3, abs=0.08)
    assert found["right"]["median_half_width"] == pytest.approx(np.sqrt(0.5), rel=0.05)
    assert found["right"]["inside_68"] == pytest.approx(0.68, abs=0.04)
    assert found["shifted"]["inside_68"] < found["right"]["inside_68"]


def test_a_slice_that_is_wrong_is_found(rng: np.random.Generator) -> None:
    ranks, redshift = rng.random((900, 2)), rng.random(900)
    ranks[redshift > np.quantile(redshift, 2 / 3), 1] **= 2
    low, middle, high = slices(ranks, ("a", "b"), {"redshift": redshift})["redshift"]
    assert (low["n"], middle["n"], high["n"]) == (300, 300, 300)
    assert max(low["max_ks_distance"], middle["max_ks_distance"]) < 0.12
    assert high["max_ks_distance"] > 0.2
    assert high["of"] == "b"


def test_pooled_ranks_of_uniform_and_of_skewed_posteriors(rng: np.random.Generator) -> None:
    ranks = rng.random((2_000, 3))
    assert pooled(ranks)["ks_distance"] < 1.63 / np.sqrt(6_000)
    assert pooled(ranks)["median_p_value_of_sets"] > 0.05
    skewed = pooled(ranks**1.2)
    assert skewed["ks_distance"] > 0.05
    assert skewed["median_p_value_of_sets"] < 0.05
