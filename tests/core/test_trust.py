"""The judgement of a posterior, on weights and photometry whose answer is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, estimate, log_prob, sample
from sedflow_core.emulator import emulate, fix_redshift
from sedflow_core.importance import weigh
from sedflow_core.noise import NoiseModel
from sedflow_core.observation import Observation
from sedflow_core.prior import to_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.trust import (
    MIN_DRAWS,
    MIN_EFFICIENCY,
    MIN_P_VALUE,
    Pareto,
    Trust,
    calc_efficiency,
    is_trusted,
    judge,
    smooth_weights,
)

from .conftest import golden


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tail_of_pareto_weights_has_their_shape(k: float) -> None:
    rng = np.random.default_rng(1)
    shapes = []
    for _ in range(30):
        weights = stats.genpareto(k).rvs(size=10_000, random_state=rng)
        shapes.append(float(smooth_weights(torch.tensor(np.log(weights))).pareto_k))
    error = np.std(shapes) / np.sqrt(30)
    assert abs(np.mean(shapes) - k) < 4 * error + 0.02


def test_efficiency_counts_equal_weights() -> None:
    log_weight = torch.full((100,), -torch.inf, dtype=torch.float64)
    assert smooth_weights(log_weight).efficiency() == 0.0
    log_weight[:25] = 700.0
    smoothed = smooth_weights(log_weight)
    assert smoothed.efficiency() == pytest.approx(0.25)
    assert smoothed.pareto_k.isnan()


def test_smoothed_weights_find_the_efficiency_that_plain_ones_miss() -> None:
    """Log-normal weights: exp(-s^2). A few draws seldom meet the largest of them."""
    draws = torch.randn((400, 256), generator=torch.Generator().manual_seed(0)).double()
    for width in (0.5, 1.0, 1.5):
        efficiency = smooth_weights(width * draws).efficiency()
        truth = np.exp(-(width**2))
        assert efficiency.median() == pytest.approx(truth, rel=0.3 if width <= 1.0 else 1.0)
        error, plain_error = (
            (values.log() - np.log(truth)).square().mean()
            for values in (efficiency, calc_efficiency((width * draws).exp()))
        )
        assert error < plain_error


@pytest.mark.parametrize("k", [-0.3, 0.4, 1.2])
def test_quantiles_of_a_pareto_distribution_are_scipys(k: float) -> None:
    level = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    pareto = Pareto(torch.tensor([k], dtype=torch.float64), torch.tensor([2.0]).double())
    expected = stats.genpareto(k, scale=2.0).ppf(level.numpy())
    np.testing.assert_allclose(pareto.quantile(level)[0], expected, rtol=1e-12)


def test_smoothing_changes_the_tail_alone_and_keeps_its_order() -> None:
    log_weight = torch.randn((3, 400), generator=torch.Generator().manual_seed(1)).double()
    weights = smooth_weights(log_weight).weights
    plain = (log_weight - log_weight.max(dim=-1, keepdim=True).values).exp().sort().values
    torch.testing.assert_close(weights[:, :-60], plain[:, :-60])
    assert (weights.diff(dim=-1) >= 0).all()
    assert weights.max() <= 1.0


def judge_row(
    tiny: Artifact,
    row: Observation,
    theta: torch.Tensor,
    log_q: torch.Tensor,
    noise: NoiseModel | None = None,
) -> Trust:
    assert tiny.trust is not None
    fixed = fix_redshift(tiny.trust.emulator, tiny.tables, torch.tensor(row.redshift))
    model_flux = emulate(fixed, tiny.tables, theta[None], 5)
    photometry = (torch.tensor(row.flux), torch.tensor(row.flux_err))
    u = to_u(theta.double())[None]
    return judge(photometry, u, log_q[None], model_flux, noise or tiny.trust.noise)


def test_photometry_of_a_sample_itself_is_explained(tiny: Artifact) -> None:
    """The observed flux is the model's own: chi-square 0, and its p-value is 1."""
    theta = torch.tensor(sample(tiny, golden(tiny).rows(slice(0, 1)), 1, independent=True))[:, 0]
    z = torch.tensor([0.05], dtype=torch.float64)
    assert tiny.trust is not None
    fixed = fix_redshift(tiny.trust.emulator, tiny.tables, z)
    flux = emulate(fixed, tiny.tables, theta[None], 5)[0].double().numpy()
    log_q = -0.5 * to_u(theta.double()).square().sum(dim=-1)
    trust = judge_row(tiny, Observation(flux, 0.1 * flux, [0.05]), theta, log_q)
    assert trust.chi_square == pytest.approx(0.0, abs=1e-6)
    assert trust.p_value == pytest.approx(1.0, abs=1e-6)
    off = Observation(flux * [1, 1.4, 1, 1, 1], 0.1 * flux, [0.05])
    trust = judge_row(tiny, off, theta, log_q)
    assert trust.chi_square == pytest.approx(16.0, rel=1e-4)
    assert trust.p_value == pytest.approx(stats.chi2(5).sf(16.0), rel=1e-3)


@pytest.mark.parametrize(
    ("p_value", "efficiency", "trusted"),
    [
        (MIN_P_VALUE, MIN_EFFICIENCY, True),
        (0.9 * MIN_P_VALUE, 0.9, False),
        (0.9, 0.9 * MIN_EFFICIENCY, False),
        (np.nan, 0.9, False),
        (0.9, np.nan, False),
    ],
)
def test_a_verdict_needs_both_and_knows_both(
    p_value: float, efficiency: float, trusted: bool
) -> None:
    assert is_trusted(p_value, efficiency) is trusted


def test_few_samples_are_no_reason_to_trust(tiny: Artifact) -> None:
    """A single weight among n has an efficiency of 1 / n, whatever the posterior."""
    for n_samples, known in ((MIN_DRAWS - 1, False), (MIN_DRAWS, True)):
        trust = estimate(tiny, golden(tiny).rows(slice(0, 1)), n_samples=n_samples).trust
        assert np.isfinite(trust["efficiency"]).all() == known
        assert known or not is_trusted(trust["p_value"][0], trust["efficiency"][0])


def test_the_efficiency_is_that_of_the_exact_weights(tiny: Artifact, forward: ForwardModel) -> None:
    """Emulator and weights of many samples against the simulator's, galaxy by galaxy."""
    wide = forward.noise._replace(
        mean=torch.full_like(forward.noise.mean, 0.5),
        width=torch.full_like(forward.noise.width, 0.2),
    )
    assert tiny.trust is not None
    observation = golden(tiny).rows(slice(0, 3))
    observation = Observation(observation.flux, 0.5 * observation.flux, observation.redshift)
    weighted = weigh(tiny, forward._replace(noise=wide), observation, n_samples=2_000, seed=2)
    log_q = log_prob(tiny, weighted.theta, observation)
    for i, expected in enumerate(weighted.smoothed().efficiency().tolist()):
        row, theta = observation.rows(slice(i, i + 1)), torch.tensor(weighted.theta[:, i])
        trust = judge_row(tiny, row, theta, torch.tensor(log_q[:, i]), wide)
        assert float(trust.efficiency) == pytest.approx(expected, rel=0.02)
