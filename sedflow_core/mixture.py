"""A density as a mixture of normal distributions, conditional on its first coordinate.

Fitted by expectation maximisation. Each part holds a lower triangular root of its inverse
covariance, so the first whitened coordinate depends on the first coordinate alone: the marginal
that the condition divides by costs nothing.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

N_PART = 32
N_STEP = 20
_RIDGE = 1e-5
"""Smallest variance of a part, in units of the whole sample's."""
_CHUNK = 2_048


class Mixture(NamedTuple):
    """Normal distributions of d coordinates, float64.

    Attributes:
        log_first: (n_part,) ln of each part's share and of its density of the first coordinate at
            the mean, but for 1/2 ln 2 pi.
        log_rest: (n_part,) ln of its density of the other coordinates there.
        mean: (n_part, d).
        root: (n_part, d, d) lower triangular; root @ (x - mean) is standard normal.
    """

    log_first: Tensor
    log_rest: Tensor
    mean: Tensor
    root: Tensor


def log_conditional(points: Tensor, mixture: Mixture) -> Tensor:
    """ln density (n,) of the other coordinates of points (n, d) given the first."""
    return torch.cat([_log_conditional(chunk, mixture) for chunk in points.split(_CHUNK)])


def _log_conditional(points: Tensor, mixture: Mixture) -> Tensor:
    offset = points[:, None, :] - mixture.mean
    # Row by row, not as one matrix product: a row's bits must not depend on its batch.
    half_square = (mixture.root * offset[..., None, :]).sum(dim=-1).square_().mul_(0.5)
    first = mixture.log_first - half_square[..., 0]
    joint = mixture.log_first + mixture.log_rest - half_square.sum(dim=-1)
    return joint.logsumexp(dim=-1) - first.logsumexp(dim=-1)


class _Parts(NamedTuple):
    """A mixture while it is fitted: share (n_part,), mean and root as in `Mixture`."""

    share: Tensor
    mean: Tensor
    root: Tensor


def fit_mixture(points: Tensor) -> Mixture:
    """Fit a mixture to points (n, d), float64, n above `N_PART`."""
    centre = points.mean(dim=0)
    whiten = _inverse_root(torch.cov(points.T))
    white = (points - centre) @ whiten.T
    parts = _start(white, torch.Generator().manual_seed(0))
    for _ in range(N_STEP):
        parts = _improve(white, parts)
    mean = centre + torch.linalg.solve_triangular(whiten, parts.mean.T, upper=False).T
    root = parts.root @ whiten
    log_scale = root.diagonal(dim1=-2, dim2=-1).log()
    log_rest = log_scale[:, 1:].sum(dim=-1) - 0.5 * (root.shape[-1] - 1) * math.log(2.0 * math.pi)
    return Mixture(parts.share.log() + log_scale[:, 0], log_rest, mean, root)


def _inverse_root(covariance: Tensor) -> Tensor:
    """Lower triangular W (..., d, d) with W^T W the inverse of a covariance."""
    root: Tensor = torch.linalg.inv(torch.linalg.cholesky(covariance)).tril()
    return root


def _start(white: Tensor, generator: torch.Generator) -> _Parts:
    """Parts about points of the sample, each as wide as its share of the volume."""
    n, d = white.shape
    mean = white[torch.randperm(n, generator=generator)[:N_PART]]
    root = N_PART ** (1.0 / d) * torch.eye(d, dtype=white.dtype)
    share = torch.full((N_PART,), 1.0 / N_PART, dtype=white.dtype)
    return _Parts(share, mean, root.expand(N_PART, d, d))


def _improve(white: Tensor, parts: _Parts) -> _Parts:
    """One step of expectation maximisation."""
    d = white.shape[1]
    count = white.new_zeros(N_PART)
    total, square = torch.zeros_like(parts.mean), white.new_zeros((N_PART, d, d))
    for chunk in white.split(_CHUNK):
        membership = _memberships(chunk, parts)
        count += membership.sum(dim=0)
        total += membership.T @ chunk
        square += (membership.T[:, None, :] * chunk.T) @ chunk
    mean = total / count[:, None]
    covariance = square / count[:, None, None] - mean[:, :, None] * mean[:, None, :]
    covariance = covariance + _RIDGE * torch.eye(d, dtype=white.dtype)
    return _Parts(count / len(white), mean, _inverse_root(covariance))


def _memberships(points: Tensor, parts: _Parts) -> Tensor:
    """(n, n_part) probability that a point belongs to a part."""
    origin = parts.root @ parts.mean[..., None]
    distance = (parts.root @ points.T - origin).square_().sum(dim=1).T
    log_scale = parts.root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return torch.softmax(parts.share.log() + log_scale - 0.5 * distance, dim=-1)
