"""Piecewise-linear interpolation of tables, clamped at their ends."""

from typing import NamedTuple

import torch
from torch import Tensor


class Position(NamedTuple):
    """Where points fall between nodes: nodes[low] + fraction * (nodes[low + 1] - nodes[low])."""

    low: Tensor
    fraction: Tensor


def locate(x: Tensor, nodes: Tensor) -> Position:
    """Position of x (...) among ascending nodes (n_node,), clamped to their range."""
    return _place(x, nodes, torch.searchsorted(nodes, x.contiguous(), right=True).sub_(1))


def locate_even(x: Tensor, nodes: Tensor) -> Position:
    """`locate` among evenly spaced nodes, without a search."""
    step = (nodes[-1] - nodes[0]) / (len(nodes) - 1)
    return _place(x, nodes, ((x - nodes[0]) / step).long())


def _place(x: Tensor, nodes: Tensor, low: Tensor) -> Position:
    low = low.clamp_(0, len(nodes) - 2)
    start = nodes.take(low)
    fraction = (x - start).div_(nodes.take(low + 1).sub_(start))
    return Position(low, fraction.clamp_(0.0, 1.0))


def interpolate_rows(x: Tensor, nodes: Tensor, *tables: Tensor) -> list[Tensor]:
    """Values (n_row, n) of each table at x (n_row, n), every row among nodes of its own.

    Args:
        nodes: (n_row, n_node) ascending; tables: (n_row, n_node) each. Clamped at the ends.
    """
    low = torch.searchsorted(nodes, x, right=True).sub_(1).clamp_(0, nodes.shape[1] - 2)
    high = low + 1
    start = nodes.gather(1, low)
    fraction = (x - start).div_(nodes.gather(1, high).sub_(start)).clamp_(0.0, 1.0)
    return [torch.lerp(t.gather(1, low), t.gather(1, high), fraction) for t in tables]


def interpolate(x: Tensor, nodes: Tensor, table: Tensor) -> Tensor:
    """Values (..., *x.shape) at x of the columns of table (..., n_node), clamped at the ends."""
    return look_up(table, locate(x, nodes))


def look_up(table: Tensor, position: Position) -> Tensor:
    """Values (..., *position.low.shape) at a position of the columns of table (..., n_node)."""
    low = position.low.flatten()
    start, end = (table.index_select(-1, index) for index in (low, low + 1))
    values = torch.lerp(start, end, position.fraction.flatten())
    return values.view(*table.shape[:-1], *position.low.shape)


def ramp_factors(table: Tensor, nodes: Tensor) -> Tensor:
    """What a piecewise-linear function is the sum of: (n, n_node, ...) factors from its values.

    table (n, n_node, ...) at nodes (n_node,) interpolates to the first factor plus the others times
    the ramps clamp(x, nodes[k], nodes[k + 1]): no search, no lookup, and linear in the factors.
    """
    shape = (-1,) + (1,) * (table.dim() - 2)
    slope = table.diff(dim=1) / nodes.diff().view(shape)
    # A product for each row of the table: a sum over them all is rounded as their number demands.
    before = nodes[:-1].expand(len(table), 1, -1) @ slope.flatten(2)
    return torch.cat([table[:, :1] - before.view_as(table[:, :1]), slope], dim=1)
