"""Piecewise-linear interpolation of tables, clamped at their ends."""

from typing import NamedTuple

import torch
from torch import Tensor


class Position(NamedTuple):
    """Where points fall between nodes: node[index] + fraction * (node[index + 1] - node[index])."""

    index: Tensor
    fraction: Tensor


def locate(x: Tensor, nodes: Tensor) -> Position:
    """Position of x (...) among ascending nodes (n_node,), clamped to their range."""
    index = torch.searchsorted(nodes, x.contiguous(), right=True).sub_(1)
    index = index.clamp_(0, nodes.numel() - 2)
    low, high = nodes[index], nodes[index + 1]
    return Position(index, ((x - low) / (high - low)).clamp(0.0, 1.0))


def interpolate(x: Tensor, nodes: Tensor, table: Tensor) -> Tensor:
    """Values (..., *x.shape) at x of the columns of table (..., n_node), clamped at the ends."""
    index, fraction = locate(x, nodes)
    return torch.lerp(table[..., index], table[..., index + 1], fraction)
