"""A second opinion on one galaxy: the exact sampler's posterior, summarised as the flow's is.

It is asked for where the flow cannot answer or is not believed. Where the errors are none that the
noise model makes (a `sigma_*` flag), their likelihood says nothing but that; they are then taken as
given, as in the paper's MCMC.
"""

from typing import NamedTuple

import numpy as np
import torch

from sedflow_core.artifact import Artifact
from sedflow_core.chains import MIN_ESS, Chains
from sedflow_core.estimation import flagged_summary
from sedflow_core.mcmc import ExactPosterior, sample_exact
from sedflow_core.observation import Observation
from sedflow_core.prior import from_u
from sedflow_core.quantities import calc_quantities
from sedflow_core.simulation import ForwardModel
from sedflow_core.summary import Summary, fill_rows
from sedflow_core.target import Likelihood
from sedflow_core.trust import MIN_P_VALUE, chi_square_tail


class SecondOpinion(NamedTuple):
    """The exact posterior of one galaxy.

    Attributes:
        summary: one row, with the support flags; its trust holds chi-square and p-value, and the
            efficiency of the emulator's correction where a simulator made one.
        likelihood: of which it is the posterior.
        converged: whether the samples are that posterior.
        chains: the diagnostics, without the walks, which take up 100 MB.
    """

    summary: Summary
    likelihood: Likelihood
    converged: bool
    chains: Chains

    def is_trusted(self) -> bool:
        """The verdict: the samples are the posterior, and the model explains the photometry."""
        return self.converged and bool(self.summary.trust["p_value"][0] >= MIN_P_VALUE)


def give_second_opinion(
    artifact: Artifact,
    observation: Observation,
    *,
    model: ForwardModel | None = None,
    n_samples: int | None = None,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> SecondOpinion:
    """Sample and summarise the exact posterior of one galaxy.

    Args:
        artifact, observation, model, max_seconds, seed: see `sedflow_core.mcmc.sample_exact`.
        n_samples: to summarise; None for the artifact's number.

    Raises:
        ArtifactError, ObservationError, MissingExtraError: see there.
    """
    summary = flagged_summary(artifact, observation, n_samples, seed)
    likelihood = choose_likelihood(summary)
    exact = sample_exact(
        artifact,
        observation,
        model=model,
        likelihood=likelihood,
        n_samples=summary.n_samples,
        min_ess=MIN_ESS,
        max_seconds=max_seconds,
        seed=seed,
    )
    _summarise(summary, artifact, observation, exact)
    brief = exact.chains._replace(samples=exact.chains.samples[:, :0].copy())
    return SecondOpinion(summary, likelihood, exact.converged(MIN_ESS), brief)


def choose_likelihood(summary: Summary) -> Likelihood:
    """The likelihood for the one galaxy of `summary`, by its support flags."""
    strange = any(reason.startswith("sigma_") for reason in summary.reasons(0))
    return "gaussian" if strange else "generative"


def _summarise(
    summary: Summary, artifact: Artifact, observation: Observation, exact: ExactPosterior
) -> None:
    """Put the exact posterior in."""
    theta, redshift = from_u(torch.tensor(exact.u)), torch.tensor(observation.redshift)
    draws = calc_quantities(theta, redshift, artifact.tables, summary.names)
    fill_rows(summary, np.zeros(1, np.int64), draws.T[None])
    chi_square = torch.tensor(exact.chi_square)
    judged = {
        "chi_square": float(chi_square.min()),
        "p_value": float(chi_square_tail(chi_square, observation.flux.shape[1]).mean()),
        "efficiency": exact.correction,
    }
    for name, values in summary.trust.items():
        values[0] = judged.get(name, float("nan"))
