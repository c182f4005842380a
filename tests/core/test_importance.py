"""Importance weights against a posterior sampled by brute force from the prior."""

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, Observation
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.importance import Weighted, weigh, weighted_quantile
from sedflow_core.prior import PARAM_NAMES, draw_u, from_u
from sedflow_core.simulation import ForwardModel

POGSON = 2.5 / np.log(10.0)
MEAN, WIDTH, FLOOR = 0.6, 0.2, 0.05


@pytest.fixture(scope="module")
def vague(forward: ForwardModel) -> ForwardModel:
    """Errors of 0.6 mag, so that draws from the prior meet the posterior."""
    noise = forward.noise
    return forward._replace(
        noise=noise._replace(
            mean=torch.full_like(noise.mean, MEAN),
            width=torch.full_like(noise.width, WIDTH),
            floor=torch.full_like(noise.floor, FLOOR),
        )
    )


@pytest.fixture(scope="module")
def observation() -> Observation:
    flux = 10 ** (0.4 * (22.5 - np.array([[19.0, 17.6, 17.0, 16.7, 16.5]])))
    return Observation(flux, 0.55 * flux, [0.08])


@pytest.fixture(scope="module")
def weighted(tiny: Artifact, vague: ForwardModel, observation: Observation) -> Weighted:
    return weigh(tiny, vague, observation, n_samples=20_000, seed=1)


def test_weights_are_finite_and_sum_to_one(weighted: Weighted) -> None:
    for weights in (weighted.weights, weighted.gaussian_weights):
        assert weights.shape == (20_000, 1)
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert 0 < weighted.efficiency()[0] <= 1


def test_weighted_samples_are_the_posterior(
    weighted: Weighted, vague: ForwardModel, observation: Observation
) -> None:
    """The untrained flow is close to the prior; the truth here is the prior itself, weighted."""
    theta = from_u(draw_u(60_000, torch.Generator().manual_seed(7)))
    redshift = torch.full((60_000,), 0.08, dtype=torch.float64)
    model_flux = calc_band_flux(vague.galaxy, theta, redshift).numpy()
    flux, flux_err = observation.flux, observation.flux_err
    gaussian = stats.norm(model_flux, flux_err).logpdf(flux).sum(axis=1)
    error = stats.truncnorm((FLOOR - MEAN) / WIDTH, np.inf, MEAN, WIDTH)
    exact = gaussian + (error.logpdf(POGSON * flux_err / model_flux) - np.log(model_flux)).sum(
        axis=1
    )
    for log_likelihood, weights in (
        (exact, weighted.weights),
        (gaussian, weighted.gaussian_weights),
    ):
        brute = np.exp(log_likelihood - log_likelihood.max())
        for name in map(PARAM_NAMES.index, ("log_mstar", "tau_ism")):
            ours, error = weighted_mean(weighted.theta[:, 0, name], weights[:, 0])
            truth, truth_error = weighted_mean(theta[:, name].numpy(), brute)
            assert abs(ours - truth) < 4 * np.hypot(error, truth_error)
            assert error < 0.1


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
    assert Weighted(theta, equal, equal).efficiency() == pytest.approx([1.0])
    assert Weighted(theta, single, single).efficiency() == pytest.approx([0.01])


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
