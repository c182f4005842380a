"""Diagnostics of calibration against scipy, and on posteriors that are right or wrong by design."""

import numpy as np
import pytest
from scipy import stats

from sedflow_core.diagnostics import (
    bias_and_width,
    central_levels,
    density_ranks,
    expected_ks_distance,
    ks_distance,
    ks_p_value,
    noise_bound,
    pooled,
    slices,
    tarp_levels,
)

N, N_SAMPLE = 2_000, 400
LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)


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


def test_uniform_ranks_have_the_expected_ks_distance(rng: np.random.Generator) -> None:
    distances = [ks_distance(rng.random(2_000)) for _ in range(1_000)]
    assert expected_ks_distance(2_000) == pytest.approx(np.mean(distances), rel=0.03)


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
    quantiles = np.quantile(samples + np.array([0.0, 0.3]), LEVELS, axis=1).transpose(1, 2, 0)
    found = bias_and_width(truth, quantiles, ("right", "shifted"))
    assert found["right"]["median_bias"] == pytest.approx(0.0, abs=0.08)
    assert found["shifted"]["median_bias"] == pytest.approx(0.3, abs=0.08)
    assert found["right"]["median_half_width"] == pytest.approx(np.sqrt(0.5), rel=0.05)
    assert found["right"]["inside_68"] == pytest.approx(0.68, abs=0.04)
    assert found["right"]["inside_95"] == pytest.approx(0.95, abs=0.02)
    assert found["shifted"]["inside_68"] < found["right"]["inside_68"]


def test_a_slice_that_is_wrong_is_found(rng: np.random.Generator) -> None:
    ranks, redshift = rng.random((900, 2)), rng.random(900)
    ranks[redshift > np.quantile(redshift, 2 / 3), 1] **= 2
    low, middle, high = slices(ranks, ("a", "b"), {"redshift": redshift})["redshift"]
    assert (low["n"], middle["n"], high["n"]) == (300, 300, 300)
    assert max(low["max_ks_distance"], middle["max_ks_distance"]) < 0.12
    assert high["max_ks_distance"] > 0.2
    assert high["of"] == "b"
    assert high["noise"] == pytest.approx(1.63 / np.sqrt(300))
    assert high["ks_distance"]["a"] < 0.12 < high["ks_distance"]["b"]


def test_pooled_ranks_of_perfect_and_of_skewed_posteriors(rng: np.random.Generator) -> None:
    ranks, control = rng.random((2_000, 3)), rng.random((2_000, 4, 3))
    right, skewed = pooled(ranks, control), pooled(ranks**1.2, control)
    assert right["ks_distance"] < 1.63 / np.sqrt(6_000)
    assert right["median_p_value_of_sets"] > 0.05
    assert (right["n_per_set"], len(right["p_values_of_sets"])) == (200, 10)
    assert skewed["ks_distance"] > 0.05
    assert skewed["median_p_value_of_sets"] < 0.05
    assert skewed["perfect"] == right["perfect"]
    assert 0.2 < right["perfect"]["median_p_value_of_sets"] < 0.8


def test_a_perfect_posterior_whose_ranks_go_together_has_low_p_values(
    rng: np.random.Generator,
) -> None:
    together = np.repeat(rng.random((2_000, 5, 1)), 6, axis=-1)
    found = pooled(together[:, 0], together[:, 1:])
    low, high = found["perfect"]["p_values_16_84"]
    assert low < 1e-3 < high
    assert low <= found["median_p_value_of_sets"] <= high


def test_central_levels_are_uniform_where_ranks_are(rng: np.random.Generator) -> None:
    ranks = rng.random(N)
    assert ks_distance(central_levels(ranks)) < noise_bound(N)
    assert ks_distance(central_levels(0.25 + 0.5 * ranks)) > 0.4
