"""Importance weights against a posterior sampled by brute force from the prior."""

import numpy as np
import pytest
from scipy import stats

from sedflow_core import Artifact, Observation
from sedflow_core.importance import Weighted, weigh, weighted_quantile
from sedflow_core.prior import PARAM_NAMES, from_u
from sedflow_core.simulation import ForwardModel

from .conftest import PriorDraws

NO_TEST = np.empty(0)
"""p-values that nobody looks at."""


@pytest.fixture(scope="module")
def weighted(tiny: Artifact, vague: ForwardModel, vague_observation: Observation) -> Weighted:
    return weigh(tiny, vague, vague_observation, n_samples=20_000, seed=1)


def test_weights_are_finite_and_sum_to_one(weighted: Weighted) -> None:
    for weights in (weighted.weights, weighted.gaussian_weights):
        assert weights.shape == (20_000, 1)
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert 0 < weighted.efficiency()[0] <= 1


def test_weighted_samples_are_the_posterior(weighted: Weighted, prior_draws: PriorDraws) -> None:
    """The untrained flow is close to the prior; the truth here is the prior itself, weighted."""
    theta = from_u(prior_draws.u)
    for log_likelihood, weights in (
        (prior_draws.exact, weighted.weights),
        (prior_draws.gaussian, weighted.gaussian_weights),
    ):
        brute = np.exp(log_likelihood - log_likelihood.max())
        for name in map(PARAM_NAMES.index, ("log_mstar", "tau_ism")):
            ours, error = weighted_mean(weighted.theta[:, 0, name], weights[:, 0])
            truth, truth_error = weighted_mean(theta[:, name].numpy(), brute)
            assert abs(ours - truth) < 4 * np.hypot(error, truth_error)
            assert error < 0.1


def test_the_p_value_is_that_of_the_exact_posterior(
    weighted: Weighted, prior_draws: PriorDraws, vague_observation: Observation
) -> None:
    best = stats.norm(scale=vague_observation.flux_err).logpdf(0.0).sum()
    tail = stats.chi2(5).sf(-2.0 * (prior_draws.gaussian - best))
    brute = np.exp(prior_draws.exact - prior_draws.exact.max())
    truth, truth_error = weighted_mean(tail, brute)
    spread = np.sqrt(np.average((tail - truth) ** 2, weights=brute))
    error = spread / np.sqrt(weighted.efficiency()[0] * len(weighted.weights))
    assert abs(weighted.p_value[0] - truth) < 4 * np.hypot(error, truth_error)
    assert np.hypot(error, truth_error) < 0.02


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Weighted mean and its standard error."""
    weights = weights / weights.sum()
    mean = weights @ values
    return mean, np.sqrt(weights**2 @ (values - mean) ** 2)


def test_efficiency_of_equal_and_of_single_weights() -> None:
    theta = np.zeros((100, 1, 12), dtype=np.float32)
    equal = np.full((100, 1), 0.01)
    single = np.zeros((100, 1))
    single[3] = 1.0
    assert Weighted(theta, equal, equal, NO_TEST).efficiency() == pytest.approx([1.0])
    assert Weighted(theta, single, single, NO_TEST).efficiency() == pytest.approx([0.01])


def test_weighted_quantiles_are_those_of_repeated_values() -> None:
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=(50, 3)), rng.integers(0, 9, size=(50, 3))
    for level in (0.1, 0.5, 0.84):
        expected = [
            np.quantile(np.repeat(v, c), level, method="inverted_cdf")
            for v, c in zip(values.T, counts.T, strict=True)
        ]
        ours = weighted_quantile(values, counts / counts.sum(axis=0), level)
        np.testing.assert_array_equal(ours, expected)
