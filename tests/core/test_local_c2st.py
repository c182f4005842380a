"""The local classifier test: a flow's own draws pass it; shifted truths do not."""

import numpy as np
import pytest
import torch

from sedflow_core import Artifact
from sedflow_core.calibration import draw
from sedflow_core.local_c2st import LocalTest, classify_locally, rejection_rates
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, from_u
from sedflow_core.simulated import Simulations, simulate

N, N_TESTED = 3_000, 50


@pytest.fixture(scope="module")
def simulations(tiny: Artifact) -> Simulations:
    return simulate(tiny, N, seed=12)


@torch.inference_mode()
def own_draws(artifact: Artifact, observation: Observation) -> np.ndarray:
    """One draw of the flow for each galaxy, (n, n_theta): with these as truths it is perfect."""
    base = torch.randn((len(observation), N_U, 1), generator=torch.Generator().manual_seed(3))
    galaxies = (observation.rows(slice(i, i + 1)) for i in range(len(observation)))
    u = [draw(artifact, galaxy, base[i])[0] for i, galaxy in enumerate(galaxies)]
    return from_u(torch.cat(u).double()).numpy()


def largest_share(perfect: np.ndarray) -> float:
    """The largest share of galaxies that a classifier of the null hypothesis rejects."""
    return float((perfect <= 0.05).mean(axis=1).max())


def test_a_perfect_posterior_passes_and_a_shifted_one_does_not(
    tiny: Artifact, simulations: Simulations
) -> None:
    perfect = simulations._replace(theta=own_draws(tiny, simulations.observation))
    test = classify_locally(tiny, perfect, N_TESTED, n_null=30)
    assert test.flow.shape == (N_TESTED,)
    rates = rejection_rates(test)
    assert rates["flow"] <= largest_share(test.perfect)
    assert rates["power"] > 0.9
    again = classify_locally(tiny, perfect, N_TESTED, n_null=30)
    assert (again.flow == test.flow).all()


def test_perfect_posteriors_are_rejected_as_often_as_the_level_says(
    tiny: Artifact, simulations: Simulations
) -> None:
    test = classify_locally(tiny, simulations, N_TESTED, n_null=30)
    assert rejection_rates(test)["flow"] > 0.9  # the flow is untrained
    assert np.mean(test.perfect <= 0.05) == pytest.approx(1 / 30, abs=0.01)


def test_the_rates_are_shares_up_to_the_level() -> None:
    perfect = np.array([[0.04, 0.5, 0.6, 0.7], [0.9, 0.9, 0.9, 0.9]])
    document = rejection_rates(LocalTest(np.array([0.01, 0.05, 0.06, 0.9]), np.zeros(4), perfect))
    assert (document["flow"], document["power"], document["n_simulations"]) == (0.5, 1.0, 4)
    assert document["perfect_16_84"] == pytest.approx([0.16 * 0.25, 0.84 * 0.25])
