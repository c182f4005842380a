"""Ranks of the truth in the exact posterior: by the weights of flow samples, and by MCMC."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.chains import MIN_ESS
from sedflow_core.fresh_simulations import Simulations
from sedflow_core.importance import Weighted
from sedflow_core.mcmc import sample_exact
from sedflow_core.prior import to_u
from sedflow_core.sampling import u_and_derived
from sedflow_core.simulation import ForwardModel
from sedflow_core.units import Array
from sedflow_core.whole_file import written_whole

N_MCMC_SAMPLES = 2_000
MAX_SECONDS = 60.0


class McmcSamples(NamedTuple):
    """Samples u (n, n_u) of one exact posterior, and whether the walkers had found it in time."""

    u: Array
    converged: bool


class McmcRanks(NamedTuple):
    """Ranks (n, n_name) of the truth, and in how many of the n posteriors walkers converged."""

    ranks: Array
    n_converged: int


def weighted_ranks(artifact: Artifact, simulations: Simulations, weighted: Weighted) -> Array:
    """Ranks (m, n_name) of the truth in weighted samples of the first n simulations.

    The m <= n are those of which a sample has a weight.

    Args:
        artifact: see `load_artifact`.
        simulations: at least n.
        weighted: samples of n simulations.
    """
    ranks = []
    for i, weights in enumerate(weighted.weights.T):
        if not weights.any():
            continue
        u = to_u(torch.tensor(weighted.theta[:, i]).double())
        samples = _quantities(artifact, u, simulations, i)
        ranks.append(_rank(samples, weights, _truth(simulations, i)))
    return np.array(ranks).reshape(len(ranks), len(_truth(simulations, 0)))


def mcmc_ranks(
    artifact: Artifact, model: ForwardModel, simulations: Simulations, folder: Path | None
) -> McmcRanks:
    """Ranks of the truth of simulations in samples by MCMC.

    Args:
        artifact, model: see `sedflow_core.mcmc.sample_exact`.
        simulations: n of them.
        folder: keeps the samples, so that a killed run goes on from there.
    """
    ranks, n_converged = [], 0
    for i in range(len(simulations.observation)):
        u, converged = mcmc_samples(artifact, model, simulations, i, folder)
        n_converged += converged
        samples = _quantities(artifact, torch.tensor(u), simulations, i)
        weights = np.full(len(samples), 1.0 / len(samples))
        ranks.append(_rank(samples, weights, _truth(simulations, i)))
    return McmcRanks(np.array(ranks), n_converged)


def mcmc_samples(
    artifact: Artifact, model: ForwardModel, simulations: Simulations, i: int, folder: Path | None
) -> McmcSamples:
    """Samples of the exact posterior of simulation i by MCMC; kept in the folder once converged."""
    path = None if folder is None else folder / f"mcmc-{i}.npz"
    if path is not None and path.exists():
        with np.load(path) as kept:
            return McmcSamples(kept["u"], bool(kept["converged"]))
    exact = sample_exact(
        artifact,
        simulations.observation.rows(slice(i, i + 1)),
        model=model,
        n_samples=N_MCMC_SAMPLES,
        max_seconds=MAX_SECONDS,
        seed=i,
    )
    samples = McmcSamples(exact.u, exact.converged(MIN_ESS))
    if path is not None and samples.converged:  # another time it may have the time
        with written_whole(path) as partial, partial.open("wb") as stream:
            np.savez(stream, **samples._asdict())
    return samples


def _quantities(artifact: Artifact, u: Tensor, simulations: Simulations, i: int) -> Array:
    """Those (n, n_name) of samples u (n, n_u) of simulation i."""
    redshift = torch.tensor(simulations.observation.redshift[i : i + 1])
    return u_and_derived(artifact, u[None], redshift)[0].numpy()


def _truth(simulations: Simulations, i: int) -> Array:
    u = to_u(torch.tensor(simulations.theta[i : i + 1]))[0]
    return np.concatenate([u.numpy(), simulations.derived[i].astype(np.float64)])


def _rank(samples: Array, weights: Array, truth: Array) -> Array:
    """Weight (n_name,) of the samples (n, n_name) below truth; half of the ties count."""
    return np.asarray(weights @ (samples < truth) + 0.5 * (weights @ (samples == truth)))
