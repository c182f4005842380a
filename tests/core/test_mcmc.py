"""The sampler on densities whose moments are known, and against draws from the prior."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import signal, stats

from sedflow_core import Artifact, Observation
from sedflow_core.chains import Chains, autocorrelation_time, effective_sample_size, split_r_hat
from sedflow_core.emulator_tables import build_emulator
from sedflow_core.ensemble import find_rise, run_ensembles
from sedflow_core.errors import ArtifactError, ObservationError
from sedflow_core.importance import log_posteriors
from sedflow_core.mcmc import ExactPosterior, calc_log_weight, sample_exact
from sedflow_core.new_prior import Factor
from sedflow_core.prior import column, from_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.target import FlowProposal, GalaxyTarget, Likelihood
from sedflow_core.trust import TrustTables

from .conftest import PriorDraws


class TwoPeaks:
    """A wide normal prior times two narrow, correlated peaks of different weight, in 3-d."""

    n_dim = 3
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 4.0]]) / 4.0
    centres = ([-6.0, 0.0, 0.0], [6.0, 2.0, 3.0])
    weights = (0.25, 0.75)
    prior = stats.multivariate_normal(np.zeros(3), 36.0 * np.eye(3))

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        peaks = [stats.multivariate_normal(c, self.covariance).pdf(points) for c in self.centres]
        log_prior = self.prior.logpdf(points)
        with np.errstate(divide="ignore"):
            log_peaks = np.log(np.average(peaks, axis=0, weights=self.weights))
        return log_peaks - log_prior, log_prior

    def draw_prior(self, n: int, random: np.random.RandomState) -> np.ndarray:
        return 6.0 * random.normal(size=(n, 3))


def test_two_peaks_are_found_with_their_weights() -> None:
    chains = run_ensembles(TwoPeaks(), n_walkers=256, min_ess=1_000, max_seconds=120, seed=1)
    assert chains.converged(1_000)
    flat = chains.samples.reshape(-1, 3)
    right = flat[:, 0] > 0
    assert right.mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.19 / chains.ess[0]))
    peak = flat[right]
    error = peak.std(axis=0) / np.sqrt(0.7 * chains.ess)
    assert (np.abs(peak.mean(axis=0) - [6, 2, 3]) < 4.5 * error).all()
    assert peak.std(axis=0) == pytest.approx([0.5, 0.5, 1.0], rel=0.1)
    assert np.corrcoef(peak[:, 0], peak[:, 1])[0, 1] == pytest.approx(0.9, abs=0.03)


@pytest.fixture(scope="module")
def vague_artifact(tiny: Artifact, vague: ForwardModel) -> Artifact:
    """An artifact with the emulator and the noise of the vague model."""
    trust = TrustTables(build_emulator(vague.galaxy), vague.noise, torch.ones(20))
    return dataclasses.replace(tiny, trust=trust, tables=vague.galaxy.tables)


@pytest.mark.parametrize("likelihood", ["generative", "gaussian"])
def test_the_exact_posterior_is_that_of_weighted_prior_draws(
    vague: ForwardModel,
    vague_artifact: Artifact,
    vague_observation: Observation,
    prior_draws: PriorDraws,
    likelihood: Likelihood,
) -> None:
    exact = sample_exact(
        vague_artifact,
        vague_observation,
        model=vague,
        likelihood=likelihood,
        n_samples=1_000,
        min_ess=400,
        seed=3,
    )
    log_weight = prior_draws.exact if likelihood == "generative" else prior_draws.gaussian
    assert_samples_are_of(exact, prior_draws.u.numpy(), log_weight)


def test_the_exact_posterior_under_another_prior(
    vague: ForwardModel,
    vague_artifact: Artifact,
    vague_observation: Observation,
    prior_draws: PriorDraws,
) -> None:
    thin = 5.0  # optical depths below 1 are so much likelier than others, per unit
    weight = torch.tensor([thin, 1.0], dtype=torch.float64) / ((thin + 2.0) / 3.0)
    prior = (Factor("tau_ism", torch.tensor([1.0], dtype=torch.float64), weight),)
    exact = sample_exact(
        dataclasses.replace(vague_artifact, prior=prior),
        vague_observation,
        model=vague._replace(prior=prior),
        n_samples=1_000,
        min_ess=400,
        seed=4,
    )
    is_thin = column(from_u(prior_draws.u), "tau_ism").numpy() < 1.0
    log_weight = prior_draws.exact + np.log(thin) * is_thin
    assert_samples_are_of(exact, prior_draws.u.numpy(), log_weight)


def assert_samples_are_of(exact: ExactPosterior, u: np.ndarray, log_weight: np.ndarray) -> None:
    """They have the means of points u (n, n_u) with these ln weights (n,)."""
    assert exact.chains.r_hat.max() < 1.05
    assert exact.correction > 0.98
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    truth = weight @ u
    spread = np.sqrt(weight @ (u - truth) ** 2)
    error_of_truth = spread * np.sqrt((weight**2).sum())
    ours = exact.u.mean(axis=0)
    error_of_ours = exact.u.std(axis=0) / np.sqrt(np.minimum(exact.chains.ess, 1_000))
    assert (np.abs(ours - truth) < 4.5 * np.hypot(error_of_ours, error_of_truth)).all()


def test_the_coordinates_of_the_walk_keep_the_density(
    vague: ForwardModel, vague_artifact: Artifact, vague_observation: Observation
) -> None:
    """The mass offset has a unit Jacobian and a flat prior: only u's own normal comes on top."""
    target = GalaxyTarget(vague_artifact, vague_observation)
    points = target.draw_prior(500, np.random.RandomState(5))
    log_like, log_prior = target(points)
    u = target.to_u(points)
    exact = log_posteriors(vague, u, vague_observation)[0].numpy()
    change = log_like + log_prior - (exact + 0.5 * u[:, 0].numpy() ** 2)
    probable = exact > exact.max() - 10
    assert np.ptp(change[probable]) < 0.05
    assert stats.kstest(u.numpy(), "norm").pvalue.min() > 1e-4
    beyond = points + np.array([10.0, *[0.0] * 10])
    assert (target(beyond)[1] == -np.inf).all()


def test_the_flow_proposes_in_the_coordinates_of_the_walk(
    vague_artifact: Artifact, vague_observation: Observation
) -> None:
    """Weighted by their density, its points have the moments of the prior: a unit integral."""
    target = GalaxyTarget(vague_artifact, vague_observation)
    proposal = FlowProposal(vague_artifact, vague_observation, target)
    points, log_q = proposal.draw(20_000, np.random.RandomState(2))
    assert proposal.log_prob(points) == pytest.approx(log_q, abs=2e-3)
    log_weight = target(points)[1] - log_q
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    u = target.to_u(points).numpy()
    error = np.sqrt((weight**2).sum())
    assert error < 0.05
    assert np.abs(weight @ u).max() < 5 * error
    assert weight @ u**2 == pytest.approx(1.0, abs=8 * error)


def test_samples_over_the_edge_of_the_noise_have_no_weight() -> None:
    exact, emulated = torch.tensor(
        [[-1.0, -torch.inf, -2.0, -torch.inf], [-1.5, -3.0, *[-torch.inf] * 2]]
    )
    expected = [0.5, -torch.inf, -torch.inf, -torch.inf]
    assert calc_log_weight(exact, emulated).tolist() == expected


def test_a_rise_keeps_as_many_walkers_effective_as_asked_for() -> None:
    log_like = np.random.default_rng(0).normal(size=2_000) * 30.0
    rise = find_rise(log_like, 1.0, 1_000)
    weight = np.exp(rise * (log_like - log_like.max()))
    assert weight.sum() ** 2 / (weight**2).sum() == pytest.approx(1_000, rel=0.01)
    assert find_rise(np.zeros(10), 0.3, 5) == 0.3


def test_diagnostics_of_independent_and_of_stuck_walkers() -> None:
    rng = np.random.default_rng(2)
    free = rng.normal(size=(2, 400, 20, 3))
    assert autocorrelation_time(free) == pytest.approx(1.0, abs=0.1)
    assert split_r_hat(free).max() < 1.005
    stuck = np.repeat(rng.normal(size=(2, 1, 20, 3)), 400, axis=1)
    assert (autocorrelation_time(stuck) > 100).all()
    apart = free + np.array([0.0, 1.0])[:, None, None, None]
    assert (split_r_hat(apart) > 1.05).all()


@pytest.mark.parametrize(("correction", "expected"), [(np.nan, True), (0.95, True), (0.01, False)])
def test_samples_that_the_simulator_hardly_knows_have_not_converged(
    correction: float, expected: bool
) -> None:
    one = np.ones(3)
    chains = Chains(np.zeros((2, 1, 1, 3)), one, 1e4 * one, 1e3 * one, 0.5, 1, 1.0)
    exact = ExactPosterior(np.zeros((1, 3)), np.zeros(1), correction, chains)
    assert exact.converged(400.0) is expected


@pytest.mark.parametrize("n_step", [25, 50, 100, 200])
def test_thinned_samples_come_from_all_walkers_and_steps(n_step: int) -> None:
    shape = (2, n_step, 64)
    walker = np.arange(2)[:, None, None] * 64 + np.arange(64)
    step = np.arange(n_step)[:, None]
    samples = np.stack([np.broadcast_to(x, shape) for x in (walker, step)], axis=-1)
    one = np.ones(2)
    taken = Chains(samples, one, one, one, 0.5, 1, 1.0).thin(250)
    assert np.bincount(taken[:, 0], minlength=128).min() >= 1
    assert np.histogram(taken[:, 1], 5, (0, n_step))[0].min() > 30


def test_the_time_scale_of_an_autoregression() -> None:
    """x' = rho x + noise has the integrated time (1 + rho) / (1 - rho)."""
    rng = np.random.default_rng(3)
    rho, steps = 0.8, [rng.normal(size=(2, 50, 1)) / 0.6]
    for _ in range(1_500):
        steps.append(rho * steps[-1] + rng.normal(size=(2, 50, 1)))
    assert autocorrelation_time(np.stack(steps, axis=1)) == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize("n_walker", [1, 40])
def test_walkers_with_a_common_part_count_less(n_walker: int) -> None:
    """A tenth of the variance is an autoregression that all walkers of an ensemble share."""
    rng = np.random.default_rng(4)
    rho, n_step, n_chain = 0.5, 4_000, 2
    innovations = rng.normal(size=(n_chain, n_step)) * np.sqrt(0.1 * (1 - rho**2))
    common = signal.lfilter([1.0], [1.0, -rho], innovations, axis=1)
    own = rng.normal(size=(n_chain, n_step, n_walker, 1)) * np.sqrt(0.9)
    variance = (0.1 * (1 + rho) / (1 - rho) + 0.9 / n_walker) / (n_chain * n_step)
    samples = common[:, :, None, None] + own
    ess = effective_sample_size(samples, autocorrelation_time(samples))
    assert ess == pytest.approx(1.0 / variance, rel=0.1)


def test_one_galaxy_with_finite_photometry_and_an_emulator(
    tiny: Artifact, vague_artifact: Artifact
) -> None:
    two = Observation(np.ones((2, 5)), np.ones((2, 5)), [0.1, 0.1])
    with pytest.raises(ObservationError, match="expected one galaxy, got 2"):
        sample_exact(vague_artifact, two)
    with pytest.raises(ObservationError, match="expected finite photometry"):
        sample_exact(vague_artifact, Observation([[np.nan] * 5], np.ones((1, 5)), [0.1]))
    far = Observation(np.ones((1, 5)), np.ones((1, 5)), [0.3])
    with pytest.raises(ObservationError, match=r"redshift: expected at most 0\.2002, got 0\.3"):
        sample_exact(vague_artifact, far)
    one = Observation(np.ones((1, 5)), np.ones((1, 5)), [0.1])
    with pytest.raises(ArtifactError, match="expected an emulator, got none"):
        sample_exact(dataclasses.replace(tiny, trust=None), one)
