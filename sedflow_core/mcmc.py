"""The exact posterior of one galaxy: walkers in the emulator's density, corrected by the simulator.

The emulator is ten times as fast as the simulator, and a millimagnitude from it. That difference is
removed at the end by weights from the simulator's own density, once for every sample kept. Delayed
acceptance would remove it too, at the price of a simulator call for every accepted step, a hundred
times as many; the efficiency of the weights, near 1, tells that nothing more is to be had.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.chains import MIN_ESS, Chains
from sedflow_core.errors import ObservationError, check_installed
from sedflow_core.importance import log_posteriors
from sedflow_core.observation import Observation
from sedflow_core.prior import from_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.support import can_encode
from sedflow_core.target import FlowProposal, GalaxyTarget, Likelihood
from sedflow_core.trust import calc_efficiency
from sedflow_core.units import Array

N_WALKERS = 1_024
"""Of each ensemble, see `sedflow_core.ensemble`."""
MIN_CORRECTION = 0.5
"""Efficiency of the emulator's correction below which few samples stand for many."""


class ExactPosterior(NamedTuple):
    """Samples of the exact posterior of one galaxy.

    Attributes:
        u: (n, 11) samples of equal weight.
        chi_square: (n,) of the photometry against each.
        correction: importance efficiency of the emulator against the simulator, near 1; NaN where
            no simulator was asked.
        chains: of the walkers, with their diagnostics.
    """

    u: Array
    chi_square: Array
    correction: float
    chains: Chains

    def converged(self, min_ess: float) -> bool:
        """Whether the walkers have, and the emulator left enough for the simulator to correct."""
        return self.chains.converged(min_ess) and not self.correction < MIN_CORRECTION

    def theta(self) -> NDArray[np.float32]:
        """The samples as physical parameters (n, 12)."""
        return from_u(torch.tensor(self.u)).float().numpy()


def sample_exact(
    artifact: Artifact,
    observation: Observation,
    *,
    model: ForwardModel | None = None,
    likelihood: Likelihood = "generative",
    n_samples: int = 2_000,
    min_ess: float = MIN_ESS,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> ExactPosterior:
    """Samples of the exact posterior of one galaxy, inside the support or not.

    Args:
        artifact: holds the emulator; its flow only proposes, see `sedflow_core.ensemble`.
        observation: one galaxy.
        model: the simulator that corrects the emulator, see
            `sedflow_core.fresh_simulations.forward_model`; None for the emulator alone.
        likelihood: see `sedflow_core.target.Likelihood`.
        n_samples: returned.
        min_ess, max_seconds: stop once converged (R-hat <= 1.01 and so many effective samples in
            every dimension), or when the time is spent.
        seed: of start and moves. Where time decides how far to walk, samples depend on it too.

    Raises:
        ArtifactError: the artifact was built without an emulator.
        ObservationError: not one galaxy, or one without finite flux, positive error and redshift,
            or beyond the artifact's `redshift_max`.
        MissingExtraError: emcee is not installed.
    """
    if len(observation) != 1:
        raise ObservationError(f"observation: expected one galaxy, got {len(observation)}")
    if not can_encode(*observation.tensors()).all():
        raise ObservationError(f"observation: expected finite photometry, got {observation}")
    if observation.redshift[0] > artifact.redshift_max:
        raise ObservationError(
            f"redshift: expected at most {artifact.redshift_max:.4g}, got {observation.redshift[0]}"
        )
    check_installed("emcee", "mcmc")
    from sedflow_core.ensemble import run_ensembles

    target = GalaxyTarget(artifact, observation, likelihood)
    chains = run_ensembles(
        target,
        n_walkers=N_WALKERS,
        min_ess=min_ess,
        max_seconds=max_seconds,
        seed=seed,
        proposal=FlowProposal(artifact, observation, target),
    )
    u = target.to_u(chains.thin(2 * n_samples))
    index, correction = np.arange(0, len(u), 2), float("nan")
    if model is not None:
        index, correction = _correct(u, target, model, observation, likelihood)
    u = u[index]
    return ExactPosterior(u.numpy(), target.chi_square(u).numpy(), correction, chains)


def _correct(
    u: Tensor,
    target: GalaxyTarget,
    model: ForwardModel,
    observation: Observation,
    likelihood: Likelihood,
) -> tuple[NDArray[np.int64], float]:
    """Resample half of u by the simulator's density over the emulator's, systematically."""
    generative, gaussian = log_posteriors(model, u, observation)
    exact = gaussian if likelihood == "gaussian" else generative
    log_weight = calc_log_weight(exact, target.log_density(u))
    weights, n = torch.softmax(log_weight, dim=0), len(u) // 2
    cumulative = np.cumsum(weights.numpy())
    index = np.searchsorted(cumulative, (np.arange(n) + 0.5) / n).clip(max=len(u) - 1)
    return index, float(calc_efficiency(weights))


def calc_log_weight(exact: Tensor, emulated: Tensor) -> Tensor:
    """ln weight (n,) of samples of the emulated density, given both densities (n,).

    The noise model ends sharply at its error floor: by rounding, a sample there may have none.
    """
    return torch.where(emulated > -torch.inf, exact - emulated, -torch.inf)
