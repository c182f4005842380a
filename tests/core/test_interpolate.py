"""Interpolation against numpy's."""

import numpy as np
import pytest
import torch

from sedflow_core.interpolate import interpolate, locate_even, look_up, ramp_factors

EVEN = torch.linspace(0.0, 13.8, 1381, dtype=torch.float64)
UNEVEN = torch.tensor([-4.0, -3.4, -2.4, -2.1, -1.7, -1.3, -1.0], dtype=torch.float64)


def points(nodes: torch.Tensor) -> torch.Tensor:
    """The nodes themselves, points between them, and points beyond both ends."""
    spread = np.random.default_rng(0).uniform(-0.2, 1.2, 4_000)
    between = nodes[0] + (nodes[-1] - nodes[0]) * torch.tensor(spread)
    return torch.cat([nodes, between])


def table(nodes: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).normal(size=(3, len(nodes))))


def truth(x: torch.Tensor, nodes: torch.Tensor, values: torch.Tensor) -> np.ndarray:
    return np.stack([np.interp(x.numpy(), nodes.numpy(), row.numpy()) for row in values])


@pytest.mark.parametrize("nodes", [EVEN, UNEVEN])
def test_a_search_finds_the_nodes(nodes: torch.Tensor) -> None:
    x, values = points(nodes), table(nodes)
    np.testing.assert_allclose(interpolate(x, nodes, values), truth(x, nodes, values), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_nodes_need_no_search(dtype: torch.dtype) -> None:
    x, values = points(EVEN), torch.cumsum(table(EVEN), dim=-1) / 100
    ours = look_up(values.to(dtype), locate_even(x.to(dtype), EVEN.to(dtype)))
    atol = 1e-11 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(ours, truth(x, EVEN, values), atol=atol)


def test_ramps_add_up_to_the_table() -> None:
    x, values = points(UNEVEN), table(UNEVEN)
    factors = ramp_factors(values[..., None], UNEVEN)
    ours = factors[:, 0] + sum(
        factors[:, k] * x.clamp(UNEVEN[k - 1], UNEVEN[k]) for k in range(1, len(UNEVEN))
    )
    np.testing.assert_allclose(ours, truth(x, UNEVEN, values), atol=1e-12)
