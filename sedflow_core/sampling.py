"""Samples of one galaxy from given base points, and every quantity of samples in u."""

import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.observation import Observation, to_context
from sedflow_core.prior import from_u
from sedflow_core.sfh import calc_derived


def sample_one(
    artifact: Artifact, observation: Observation, base: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples u (n_sample, n_u), their ln q (n_sample,), and the context (1, n_context).

    Args:
        artifact: see `load_artifact`.
        observation: of one galaxy, finite and above zero.
        base: (n_u, n_sample) standard-normal points.
    """
    context = to_context(*observation.tensors(), artifact.scale)
    u, log_q = artifact.flow.sample_u(base, context)
    return u[0].T, log_q[0], context


def u_and_derived(artifact: Artifact, u: Tensor, redshift: Tensor) -> Tensor:
    """u and derived quantities (n, n_sample, n_name), float64, of samples u (n, n_sample, n_u).

    Args:
        artifact: see `load_artifact`.
        u: samples of n galaxies; redshift: (n,).
    """
    theta = from_u(u.float())
    derived = calc_derived(theta, redshift, artifact.tables, artifact.derived_names)
    return torch.cat([u.double(), derived.double()], dim=-1)
