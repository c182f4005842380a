"""The judgement of a posterior, on weights and photometry whose answer is known."""

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, log_prob, sample
from sedflow_core.emulator import emulate, fix_redshift
from sedflow_core.importance import weigh
from sedflow_core.observation import Observation
from sedflow_core.prior import to_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.trust import Trust, calc_efficiency, fit_pareto_k, judge


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tail_of_pareto_weights_has_their_shape(k: float) -> None:
    rng = np.random.default_rng(1)
    shapes = []
    for _ in range(30):
        weights = stats.genpareto(k).rvs(size=10_000, random_state=rng)
        shapes.append(fit_pareto_k(torch.tensor(np.log(weights))))
    error = np.std(shapes) / np.sqrt(30)
    assert abs(np.mean(shapes) - k) < 4 * error + 0.02


def test_efficiency_counts_equal_weights() -> None:
    log_weight = torch.full((100,), -torch.inf, dtype=torch.float64)
    assert calc_efficiency(log_weight) == 0.0
    log_weight[:25] = 700.0
    assert calc_efficiency(log_weight) == pytest.approx(0.25)
    assert fit_pareto_k(log_weight).isnan()


def photometry(tiny: Artifact, n: int) -> Observation:
    return Observation(*(tiny.golden[k].numpy()[:n] for k in ("flux", "flux_err", "redshift")))


def judge_row(tiny: Artifact, observation: Observation, theta: torch.Tensor) -> Trust:
    row = tuple(
        torch.tensor(v) for v in (observation.flux, observation.flux_err, observation.redshift)
    )
    u = to_u(theta.double())
    log_q = -0.5 * u.square().sum(dim=-1)
    assert tiny.trust is not None
    return judge(tiny.trust, tiny.tables, row, (u[None], theta[None], log_q[None]))


def test_photometry_of_a_sample_itself_is_explained(tiny: Artifact) -> None:
    """The observed flux is the model's own: chi-square 0, and its p-value is 1."""
    theta = torch.tensor(sample(tiny, photometry(tiny, 1), 1, independent=True))[:, 0]
    z = torch.tensor([0.05], dtype=torch.float64)
    assert tiny.trust is not None
    fixed = fix_redshift(tiny.trust.emulator, tiny.tables, z)
    flux = emulate(fixed, tiny.tables, theta[None], 5)[0].double().numpy()
    trust = judge_row(tiny, Observation(flux, 0.1 * flux, [0.05]), theta)
    assert trust.chi_square == pytest.approx(0.0, abs=1e-6)
    assert trust.p_value == pytest.approx(1.0, abs=1e-6)
    off = judge_row(tiny, Observation(flux * [1, 1.4, 1, 1, 1], 0.1 * flux, [0.05]), theta)
    assert off.chi_square == pytest.approx(16.0, rel=1e-4)
    assert off.p_value == pytest.approx(stats.chi2(5).sf(16.0), rel=1e-3)


def test_the_efficiency_is_that_of_the_exact_weights(tiny: Artifact, forward: ForwardModel) -> None:
    """Emulator and weights of many samples against the simulator's, galaxy by galaxy."""
    wide = forward.noise._replace(
        mean=torch.full_like(forward.noise.mean, 0.5),
        width=torch.full_like(forward.noise.width, 0.2),
    )
    assert tiny.trust is not None
    observation = photometry(tiny, 3)
    observation = Observation(observation.flux, 0.5 * observation.flux, observation.redshift)
    weighted = weigh(tiny, forward._replace(noise=wide), observation, n_samples=2_000, seed=2)
    log_q = log_prob(tiny, weighted.theta, observation)
    for i, expected in enumerate(weighted.efficiency()):
        row = observation.rows(slice(i, i + 1))
        tensors = (torch.tensor(row.flux), torch.tensor(row.flux_err), torch.tensor(row.redshift))
        theta = torch.tensor(weighted.theta[:, i])
        samples = (to_u(theta.double())[None], theta[None], torch.tensor(log_q[None, :, i]))
        tables = tiny.trust._replace(noise=wide)
        trust = judge(tables, tiny.tables, tensors, samples)
        assert float(trust.efficiency) == pytest.approx(expected, rel=0.02)
