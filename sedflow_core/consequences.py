"""What follows from posterior samples: every published quantity, and how far to trust them.

That is hundreds of small operations on arrays of one shape. On a CPU Python would take a fifth of
their time, so TorchScript traces them, once for each artifact and shape.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning

from sedflow_core.artifact import Artifact
from sedflow_core.emulator import FixedRedshift, emulate_history, fix_redshift
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.observation import Photometry
from sedflow_core.prior import from_u
from sedflow_core.sfh import History, calc_history, calc_time_bins, derive
from sedflow_core.trust import CLEAR_EFFICIENCY, N_DRAWS, Trust, TrustTables, judge

Consequences = tuple[Tensor, ...]
"""Values (n, n_name, n_sample) of parameters and derived quantities; then the fields of `Trust`,
(n,) each, if the artifact can judge."""
_tracing = Lock()


class Draws(NamedTuple):
    """Samples of n galaxies: u and theta (n, n_sample, ...), ln q (n, n_sample), histories."""

    u: Tensor
    theta: Tensor
    log_q: Tensor
    history: History


def find_consequences(
    artifact: Artifact, u: Tensor, log_q: Tensor, photometry: Photometry
) -> Consequences:
    """What follows from samples u (n, n_sample, n_u) and their ln q (n, n_sample)."""
    if artifact.device == "cuda":
        values, *judgement = _find(artifact, u, log_q, photometry)
    else:
        with _tracing:
            find = _trace(artifact, *u.shape[:2])
        values, *judgement = find(u, log_q, photometry)
    if judgement:
        _look_again(artifact, u, log_q, photometry, Trust(*judgement))
    return values, *judgement


def _find(artifact: Artifact, u: Tensor, log_q: Tensor, photometry: Photometry) -> Consequences:
    trust, tables, redshift = artifact.trust, artifact.tables, photometry[2]
    theta = from_u(u)
    if trust is None:
        history = calc_history(theta, calc_time_bins(redshift, tables), tables)
        return (_values(artifact, theta, history),)
    fixed = fix_redshift(trust.emulator, tables, redshift)
    history = calc_history(theta, fixed.bins, tables)
    values = _values(artifact, theta, history)
    # Of a Sobol set the first points are spread evenly as well.
    u, theta, log_q = (t[:, :N_DRAWS] for t in (u, theta, log_q))
    first = Draws(u, theta, log_q, history.first(N_DRAWS))
    return values, *_judge(artifact, trust, fixed, first, photometry)


def _judge(
    artifact: Artifact,
    trust: TrustTables,
    fixed: FixedRedshift,
    samples: Draws,
    photometry: Photometry,
) -> Trust:
    u, theta, log_q, history = samples
    tables, (flux, _, redshift) = artifact.tables, photometry
    if artifact.prior:
        of_sample = redshift.repeat_interleave(theta.shape[1])
        weight = log_prior_weight(artifact.prior, theta.flatten(0, 1), of_sample, tables)
        # The judge knows the prior of the table: what ours is over that is taken off ln q.
        log_q = log_q - weight.view_as(log_q)
    model_flux = emulate_history(fixed, tables, theta, history, flux.shape[1])
    return judge(photometry, u, log_q, model_flux, trust.noise)


def _look_again(
    artifact: Artifact, u: Tensor, log_q: Tensor, photometry: Photometry, judgement: Trust
) -> None:
    """Judge by all samples, in place, the galaxies that the first ones leave open."""
    trust, (flux, flux_err, redshift) = artifact.trust, photometry
    rows = (judgement.efficiency < CLEAR_EFFICIENCY).nonzero().flatten()
    if trust is None or u.shape[1] <= N_DRAWS or len(rows) == 0:
        return
    # One by one a galaxy does not depend on its batch; a GPU takes as long for one as for all.
    for some in rows.split(len(rows) if artifact.device == "cuda" else 1):
        seen = (flux[some], flux_err[some], redshift[some])
        fixed = fix_redshift(trust.emulator, artifact.tables, seen[2])
        theta = from_u(u[some])
        history = calc_history(theta, fixed.bins, artifact.tables)
        by_all = _judge(artifact, trust, fixed, Draws(u[some], theta, log_q[some], history), seen)
        for values, value in zip(judgement, by_all, strict=True):
            values[some] = value


def _values(artifact: Artifact, theta: Tensor, history: History) -> Tensor:
    derived = derive(theta, history, artifact.tables, artifact.derived_names)
    return torch.cat([theta.mT, derived.mT], dim=1)


@lru_cache(maxsize=32)
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
