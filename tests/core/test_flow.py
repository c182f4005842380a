"""The flow against nflows, sbi and the calculus of densities."""

import pytest
import torch
from torch import nn

from sedflow_core import Artifact
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow, count_parameters
from sedflow_core.nflows_bridge import SbiFlow, to_nflows

N_INPUT = 10_000
RANDOM_NETS = [
    FlowConfig(2, 20, "relu"),
    FlowConfig(3, 37, "silu", n_embedding=8, seed=1),
    FlowConfig(4, 64, "tanh", seed=2),
    FlowConfig(2, 10, "relu", n_u=4, n_context=3, seed=3),
]


def random_flow(config: FlowConfig) -> MaskedAutoregressiveFlow:
    """A flow whose weights are far from the identity."""
    flow = MaskedAutoregressiveFlow(config)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for block in flow.blocks:
            weight = block.output_layer.weight
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    flow.apply_masks()
    return flow.eval()


def assert_matches_nflows(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, dtype: torch.dtype, bound: float
) -> None:
    flow = flow.to(dtype)
    reference = to_nflows(flow, config).to(dtype)
    generator = torch.Generator().manual_seed(11)
    n_context = 10
    base = torch.randn(n_context, config.n_u, N_INPUT // n_context, generator=generator).to(dtype)
    context = torch.randn(n_context, config.n_context, generator=generator).to(dtype)
    with torch.no_grad():
        u = compile_flow(flow).sample_u(base, context).transpose(1, 2).reshape(-1, config.n_u)
        features = flow.embedding(context).repeat_interleave(N_INPUT // n_context, dim=0)
        z = base.transpose(1, 2).reshape(-1, config.n_u)
        expected, log_det = reference.inverse(z, features)
        context = context.repeat_interleave(N_INPUT // n_context, dim=0)
        log_prob = flow(expected, context)
    relative = (u - expected).norm(dim=1) / expected.norm(dim=1)
    assert relative.max() <= bound
    standard = torch.distributions.Normal(0.0, 1.0)
    expected_log_prob = standard.log_prob(z.double()).sum(dim=1) - log_det
    change = (log_prob - expected_log_prob).abs() / expected_log_prob.abs().clamp_min(1.0)
    assert change.max() <= bound * 10 if dtype == torch.float32 else bound


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
def test_cached_inverse_equals_nflows_in_single_precision(config: FlowConfig) -> None:
    assert_matches_nflows(random_flow(config), config, torch.float32, 1e-5)


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
def test_cached_inverse_equals_nflows_in_double_precision(config: FlowConfig) -> None:
    assert_matches_nflows(random_flow(config), config, torch.float64, 1e-10)
