"""The local classifier test: a flow's own draws pass it; shifted truths do not."""

import numpy as np
import pytest
import torch

from sedflow_core import Artifact
from sedflow_core.fresh_simulations import Simulations, simulate
from sedflow_core.local_c2st import LocalTest, classify_locally, rejection_rates
from sedflow_core.observation import Observation, to_context
from sedflow_core.parallel_inverse import sample_together
from sedflow_core.prior import N_U, from_u

N, N_TESTED, N_NULL = 6_000, 50, 20


@pytest.fixture(scope="module")
def simulations(tiny: Artifact) -> Simulations:
    return simulate(tiny, N, seed=12)


@torch.inference_mode()
def own_draws(artifact: Artifact, observation: Observation) -> np.ndarray:
    """One draw of the flow for each galaxy, (n, n_theta): with these as truths it is perfect."""
    base = torch.randn((len(observation), N_U, 1), generator=torch.Generator().manual_seed(3))
    flux, flux_err = torch.tensor(observation.flux), torch.tensor(observation.flux_err)
    context = to_context(flux, flux_err, torch.tensor(observation.redshift), artifact.scale)
    u, _ = sample_together(artifact.flow, base, context)
    return from_u(u[..., 0].double()).numpy()


def largest_share(perfect: np.ndarray) -> float:
    """The largest share of galaxies that a classifier of the null hypothesis rejects."""
    return float((perfect <= 0.05).mean(axis=1).max())


def test_a_perfect_posterior_passes_and_a_shifted_one_does_not(
    tiny: Artifact, simulations: Simulations
) -> None:
    perfect = simulations._replace(theta=own_draws(tiny, simulations.observation))
    test = classify_locally(tiny, perfect, N_TESTED, n_null=N_NULL)
    assert test.flow.shape == (N_TESTED,)
    rates = rejection_rates(test)
    assert rates["flow"] <= largest_share(test.perfect)
    assert rates["power"] > 0.9


def test_perfect_posteriors_are_rejected_as_often_as_the_level_says(
    tiny: Artifact, simulations: Simulations
) -> None:
    test = classify_locally(tiny, simulations, N_TESTED, n_null=N_NULL)
    assert rejection_rates(test)["flow"] > 0.9  # the flow is untrained
    assert np.mean(test.perfect <= 0.05) == pytest.approx(1 / N_NULL, abs=0.01)


def test_the_same_seed_gives_the_same_p_values(tiny: Artifact, simulations: Simulations) -> None:
    few = simulations.rows(slice(500))
    one, other = (classify_locally(tiny, few, 10, n_null=3, seed=4) for _ in range(2))
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_rates_are_shares_up_to_the_level() -> None:
    perfect = np.array([[0.04, 0.5, 0.6, 0.7], [0.9, 0.9, 0.9, 0.9]])
    document = rejection_rates(LocalTest(np.array([0.01, 0.05, 0.06, 0.9]), np.zeros(4), perfect))
    assert (document["flow"], document["power"], document["n_simulations"]) == (0.5, 1.0, 4)
    assert document["perfect_16_84"] == pytest.approx([0.16 * 0.25, 0.84 * 0.25])
