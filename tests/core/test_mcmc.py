"""The sampler on densities whose moments are known, and against draws from the prior."""

import numpy as np
import pytest
from scipy import stats

from sedflow_core import Observation
from sedflow_core.emulator_tables import build_emulator
from sedflow_core.errors import ObservationError
from sedflow_core.mcmc import autocorrelation_time, run_ensembles, sample_exact, split_r_hat
from sedflow_core.simulation import ForwardModel

from .conftest import PriorDraws


def correlated(points: np.ndarray) -> np.ndarray:
    """ln density of a normal in 3-d with correlation .9 between the first two."""
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 4.0]])
    return stats.multivariate_normal([1.0, 2.0, 3.0], covariance).logpdf(points)


@pytest.mark.parametrize("with_proposals", [False, True])
def test_moments_of_a_normal_are_found(with_proposals: bool) -> None:
    rng = np.random.default_rng(0)
    wide = stats.norm(2.0, 3.0)

    def independent(new: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = wide.rvs((new, 3), random_state=rng) if isinstance(new, int) else new
        return points, wide.logpdf(points).sum(axis=1)

    chains = run_ensembles(
        correlated,
        rng.normal(size=(2, 32, 3)),
        min_ess=2_000,
        max_seconds=120,
        seed=1,
        independent=independent if with_proposals else None,
    )
    assert chains.converged(2_000)
    flat = chains.samples.reshape(-1, 3)
    error = flat.std(axis=0) / np.sqrt(chains.ess)
    assert (np.abs(flat.mean(axis=0) - [1, 2, 3]) < 4 * error).all()
    assert flat.std(axis=0) == pytest.approx([1, 1, 2], rel=0.1)
    assert np.corrcoef(flat[:, 0], flat[:, 1])[0, 1] == pytest.approx(0.9, abs=0.02)


def test_the_exact_posterior_is_that_of_weighted_prior_draws(
    vague: ForwardModel, vague_observation: Observation, prior_draws: PriorDraws
) -> None:
    emulator = build_emulator(vague.galaxy)
    exact = sample_exact(
        vague, emulator, vague_observation, n_samples=1_000, min_ess=400, n_walkers=64, seed=3
    )
    assert exact.chains.r_hat.max() < 1.05
    assert exact.correction > 0.98
    u = prior_draws.u.numpy()
    weight = np.exp(prior_draws.exact - prior_draws.exact.max())
    weight /= weight.sum()
    truth = weight @ u
    spread = np.sqrt(weight @ (u - truth) ** 2)
    error_of_truth = spread * np.sqrt((weight**2).sum())
    ours = exact.u.mean(axis=0)
    error_of_ours = exact.u.std(axis=0) / np.sqrt(np.minimum(exact.chains.ess, 1_000))
    assert (np.abs(ours - truth) < 4.5 * np.hypot(error_of_ours, error_of_truth)).all()


def test_diagnostics_of_independent_and_of_stuck_walkers() -> None:
    rng = np.random.default_rng(2)
    free = rng.normal(size=(2, 400, 20, 3))
    assert autocorrelation_time(free) == pytest.approx(1.0, abs=0.1)
    assert split_r_hat(free).max() < 1.005
    stuck = np.repeat(rng.normal(size=(2, 1, 20, 3)), 400, axis=1)
    assert (autocorrelation_time(stuck) > 100).all()
    apart = free + np.array([0.0, 1.0])[:, None, None, None]
    assert (split_r_hat(apart) > 1.05).all()


def test_the_time_scale_of_an_autoregression() -> None:
    """x' = rho x + noise has the integrated time (1 + rho) / (1 - rho)."""
    rng = np.random.default_rng(3)
    rho, steps = 0.8, [rng.normal(size=(2, 50, 1)) / 0.6]
    for _ in range(1_500):
        steps.append(rho * steps[-1] + rng.normal(size=(2, 50, 1)))
    assert autocorrelation_time(np.stack(steps, axis=1)) == pytest.approx(9.0, rel=0.1)


def test_one_galaxy_at_a_time(vague: ForwardModel) -> None:
    two = Observation(np.ones((2, 5)), np.ones((2, 5)), [0.1, 0.1])
    with pytest.raises(ObservationError, match="expected one galaxy, got 2"):
        sample_exact(vague, build_emulator(vague.galaxy), two)
