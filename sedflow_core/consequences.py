"""What follows from posterior samples: every published quantity, and how far to trust them.

That is hundreds of small operations on arrays of one shape. On a CPU Python would take a fifth of
their time, so TorchScript traces them, once for each artifact and shape.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from sedflow_core.artifact import Artifact
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.prior import from_u
from sedflow_core.sfh import calc_derived
from sedflow_core.trust import N_DRAWS, judge

Photometry = tuple[Tensor, Tensor, Tensor]
"""flux (n, n_band), flux_err (n, n_band) [nanomaggies] and redshift (n,), float64."""
Consequences = tuple[Tensor, ...]
"""Values (n, n_name, n_sample) of parameters and derived quantities; then the fields of `Trust`,
(n,) each, if the artifact can judge."""


def find_consequences(
    artifact: Artifact, u: Tensor, log_q: Tensor, photometry: Photometry
) -> Consequences:
    """What follows from samples u (n, n_sample, n_u) and their ln q (n, n_sample)."""
    if artifact.device == "cuda":
        return _find(artifact, u, log_q, photometry)
    found: Consequences = _trace(artifact, *u.shape[:2])(u, log_q, photometry)
    return found


def _find(artifact: Artifact, u: Tensor, log_q: Tensor, photometry: Photometry) -> Consequences:
    theta = from_u(u)
    derived = calc_derived(theta, photometry[2], artifact.tables, artifact.derived_names)
    values = torch.cat([theta.mT, derived.mT], dim=1)
    if artifact.trust is None:
        return (values,)
    # Of a Sobol set the first points are spread evenly as well.
    u, theta, log_q = (t[:, :N_DRAWS] for t in (u, theta, log_q))
    if artifact.prior:
        of_sample = photometry[2].repeat_interleave(theta.shape[1])
        weight = log_prior_weight(artifact.prior, theta.flatten(0, 1), of_sample, artifact.tables)
        log_q = log_q - weight.view_as(log_q)
    return values, *judge(artifact.trust, artifact.tables, photometry, (u, theta, log_q))


@lru_cache(maxsize=8)
def _trace(artifact: Artifact, n: int, n_sample: int) -> Callable[..., Consequences]:
    """`_find` for arrays of one shape, as a graph."""

    def find(u: Tensor, log_q: Tensor, photometry: Photometry) -> Consequences:
        return _find(artifact, u, log_q, photometry)

    u = torch.zeros((n, n_sample, artifact.flow.n_u))
    flux = torch.ones((n, len(artifact.bands.names)), dtype=torch.float64)
    with warnings.catch_warnings():
        # Numbers taken from the artifact's tables are meant to be constants of the graph.
        warnings.filterwarnings("ignore", category=TracerWarning)
        # torch announces torch.export as the successor of TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.jit.trace.*")
        traced: Callable[..., Consequences] = torch.jit.trace(
            find, (u, u[..., 0], (flux, flux, flux[:, 0])), check_trace=False
        )
    return traced
