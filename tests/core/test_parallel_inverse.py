"""The inverse for many galaxies at once against the one that takes them one by one."""

import pytest
import torch

from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.parallel_inverse import sample_together

from .test_flow import draw_orders, whiten

CONFIGS = [
    FlowConfig(3, 40, "hardswish", n_embedding=8),
    FlowConfig(2, 33, "tanh"),
    FlowConfig(2, 10, "relu", n_embedding=4, n_u=4),
    FlowConfig(1, 8, "silu", n_u=2),
    FlowConfig(2, 20, "hardswish", n_embedding=8, is_whitened=True),
]


def random_flow(config: FlowConfig) -> MaskedAutoregressiveFlow:
    """A flow far from the identity, whose context matters."""
    flow = MaskedAutoregressiveFlow(config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    draw_orders(flow, generator)
    whiten(flow, generator)
    flow.apply_masks()
    return flow.eval().requires_grad_(False)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_samples_and_densities_are_those_of_each_galaxy_alone(config: FlowConfig) -> None:
    flow = random_flow(config)
    generator = torch.Generator().manual_seed(2)
    base = torch.randn((5, config.n_u, 64), generator=generator, dtype=torch.float64)
    context = torch.randn((5, config.n_context), generator=generator, dtype=torch.float64)
    together, log_prob = sample_together(flow, base, context)
    apart, expected = flow.sample_u(base, context)
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_prob, expected, rtol=1e-10, atol=1e-10)
    for samples, value, of_galaxy in zip(together, log_prob, context, strict=True):
        forward = flow(samples.T, of_galaxy.expand(64, -1))
        torch.testing.assert_close(value, forward, rtol=1e-9, atol=1e-9)
