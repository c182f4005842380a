"""What a better network could gain: the loss of the flow less that of the exact posterior.

The mean of ln p - ln q over true parameters is the mean Kullback-Leibler divergence of the flow q
from the exact posterior p. No network has a smaller loss than that of p, so it bounds what more
training, more simulations or more parameters could bring. The density of p needs its evidence, the
mean weight of flow samples; of few samples it comes out too small, and the gap too large.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.diagnostics import cut
from sedflow_core.fresh_simulations import Simulations
from sedflow_core.importance import log_posteriors
from sedflow_core.prior import N_U, to_u
from sedflow_core.sampling import sample_one
from sedflow_core.simulation import ForwardModel, stream_generator
from sedflow_core.units import Array

N_SAMPLES = 1_000
N_SLICE = 5


def measure_gaps(artifact: Artifact, model: ForwardModel, simulations: Simulations) -> Array:
    """ln p - ln q of the truth of n simulations, (n,), by the simulator.

    Args:
        artifact: see `load_artifact`.
        model: its forward model, see `sedflow_core.fresh_simulations.forward_model`.
        simulations: of that model.
    """
    truth, gaps = to_u(torch.tensor(simulations.theta)), np.empty(len(simulations.theta))
    generator = stream_generator(0, 0)
    for i in range(len(gaps)):
        row = simulations.observation.rows(slice(i, i + 1))
        base = torch.randn((N_U, N_SAMPLES), generator=generator)
        with torch.inference_mode():
            u, log_q, context = sample_one(artifact, row, base)
            u = torch.cat([truth[i : i + 1], u.double()])
            log_q = torch.cat([artifact.flow(u[:1].float(), context), log_q]).double()
            log_p, _ = log_posteriors(model, u, row)
        gaps[i] = gap(log_p - log_q)
    return gaps


def gap(log_weight: Tensor) -> float:
    """ln p - ln q of the first of n points from ln p - ln q + const (n,); the others follow q.

    Infinite where p is zero at all others.
    """
    log_evidence = log_weight[1:].nan_to_num(-torch.inf, neginf=-torch.inf).logsumexp(dim=0)
    return float(log_weight[0] - log_evidence + np.log(len(log_weight) - 1))


def summarise_gaps(gaps: Array, by: dict[str, Array]) -> dict[str, Any]:
    """Their mean (n,) and its error, over all and in slices of each quantity (n,)."""
    return {
        "n_samples": N_SAMPLES,
        "by": "simulator",
        **_mean(gaps),
        "slices": {quantity: list(_slices(gaps, values)) for quantity, values in by.items()},
    }


def _slices(gaps: Array, values: Array) -> Iterator[dict[str, Any]]:
    for ends, rows in cut(values, min(N_SLICE, len(values))):
        yield {"range": ends, **_mean(gaps[rows])}


def _mean(gaps: Array) -> dict[str, Any]:
    error = float(gaps.std() / len(gaps) ** 0.5)
    return {"n_simulations": len(gaps), "mean": float(gaps.mean()), "error": error}
