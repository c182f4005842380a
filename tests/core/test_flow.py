"""The flow against nflows, sbi and the calculus of densities."""

import pytest
import torch

from sedflow_core import Artifact, simulate
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow, count_parameters
from sedflow_core.made import MADE, EveryLayerContext, FirstLayerContext
from sedflow_core.nflows_bridge import SbiFlow, to_nflows
from sedflow_core.observation import to_context
from sedflow_core.train import PRESETS

N_CONTEXT = 100
N_BASE = 100
RANDOM_NETS = [
    FlowConfig(2, 20, "relu"),
    FlowConfig(3, 37, "silu", n_embedding=8, seed=1),
    FlowConfig(4, 64, "tanh", seed=2),
    FlowConfig(3, 40, "hardswish", n_embedding=8, seed=4),
    FlowConfig(2, 10, "relu", n_u=4, n_context=3, seed=3),
]


def random_flow(config: FlowConfig) -> MaskedAutoregressiveFlow:
    """A flow whose weights are far from the identity."""
    flow = MaskedAutoregressiveFlow(config)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, MADE):
                weight = module.output_layer.weight
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise / weight.shape[1] ** 0.5)
    flow.apply_masks()
    return flow.eval()


def random_context(config: FlowConfig) -> torch.Tensor:
    return torch.randn(N_CONTEXT, config.n_context, generator=torch.Generator().manual_seed(12))


def assert_rows_match(u: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    relative = (u - expected).norm(dim=1) / expected.norm(dim=1)
    assert relative.max() <= bound


def both_ways(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """10,000 samples of ours and of nflows, and the log density of the latter by both."""
    flow = flow.to(dtype)
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(N_CONTEXT, config.n_u, N_BASE, generator=generator).to(dtype)
    context = context.to(dtype)
    with torch.no_grad():
        samples, _ = compile_flow(flow).sample_u(base, context)
        u = samples.transpose(1, 2).reshape(-1, config.n_u)
        expected, density = zip(
            *(nflows_samples(flow, config, *galaxy) for galaxy in zip(context, base, strict=True)),
            strict=True,
        )
        log_prob = flow(torch.cat(expected), context.repeat_interleave(N_BASE, dim=0))
    return u, torch.cat(expected), log_prob, torch.cat(density)


def nflows_samples(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One galaxy's samples (n_sample, n_u) by nflows, and their log density."""
    reference = to_nflows(flow, config, context[None]).to(base.dtype)
    u, _ = reference.inverse(base.T)
    z_again, log_det = reference.forward(u)
    normal = torch.distributions.Normal(base.new_zeros(()), 1.0)
    return u, normal.log_prob(z_again).sum(dim=1) + log_det


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["single", "double"]
)


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
@PRECISIONS
def test_cached_inverse_equals_nflows(config: FlowConfig, dtype: torch.dtype, bound: float) -> None:
    flow, context = random_flow(config), random_context(config)
    u, expected_u, log_prob, expected = both_ways(flow, config, context, dtype)
    assert_rows_match(u, expected_u, bound)
    # Where the density is near 1 its log is a difference of larger terms: compare with 1 there.
    change = (log_prob - expected).abs() / expected.abs().clamp_min(1.0)
    assert change.max() <= bound


@pytest.fixture(scope="module")
def shipped_flow(shipped: Artifact) -> tuple[MaskedAutoregressiveFlow, FlowConfig, torch.Tensor]:
    """The shipped network, its size, and contexts it was made for."""
    config = FlowConfig(**shipped.manifest["flow"])
    flow = MaskedAutoregressiveFlow(config)
    weights = shipped.flow.state_dict()
    flow.load_state_dict({name: weights[name] for name in flow.state_dict()})
    seen = simulate(shipped, N_CONTEXT).observation
    photometry = (torch.tensor(t) for t in (seen.flux, seen.flux_err, seen.redshift))
    return flow, config, to_context(*photometry, shipped.scale)


@PRECISIONS
def test_shipped_inverse_equals_nflows(shipped_flow, dtype: torch.dtype, bound: float) -> None:
    u, expected, _, _ = both_ways(*shipped_flow, dtype)
    assert_rows_match(u, expected, bound)


@PRECISIONS
def test_shipped_density_equals_nflows(shipped_flow, dtype: torch.dtype, bound: float) -> None:
    _, _, log_prob, expected = both_ways(*shipped_flow, dtype)
    # Over all inputs: in the steepest of them nflows' own rounding exceeds the bound in single
    # precision, 1.4e-4 against double.
    assert (log_prob - expected).norm() / expected.norm() <= bound


@pytest.mark.parametrize(("use_batch_norm", "n_parameter"), [(False, 7_860_330), (True, 7_890_330)])
def test_the_papers_network_has_the_papers_number_of_parameters(
    use_batch_norm: bool, n_parameter: int
) -> None:
    flow = SbiFlow(PRESETS["paper"].flow, use_batch_norm=use_batch_norm)
    assert count_parameters(flow) == n_parameter


@pytest.mark.parametrize("use_batch_norm", [False, True])
def test_conversion_from_sbi_keeps_the_density(use_batch_norm: bool) -> None:
    sbi_flow = SbiFlow(FlowConfig(3, 50, "tanh"), use_batch_norm=use_batch_norm)
    generator = torch.Generator().manual_seed(4)
    u, context = torch.randn(2, 500, 11, generator=generator)
    with torch.no_grad():
        sbi_flow.train()
        for _ in range(20):  # fills the running statistics of batch norm
            sbi_flow(2.0 * u + 1.0, context)
        expected = sbi_flow.eval()(u, context)
        log_prob = sbi_flow.to_flow()(u, context)
    torch.testing.assert_close(log_prob, expected, rtol=1e-5, atol=1e-5)


def test_density_integrates_to_one() -> None:
    config = FlowConfig(2, 20, "silu", n_u=2, n_context=1, seed=5)
    flow = random_flow(config).double()
    axis = torch.linspace(-12.0, 12.0, 801, dtype=torch.float64)
    u = torch.cartesian_prod(axis, axis)
    context = torch.full((len(u), 1), 0.7, dtype=torch.float64)
    with torch.no_grad():
        mass = flow(u, context).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1.0) < 1e-3


@pytest.mark.parametrize(
    "context_layer", [FirstLayerContext(2, 16, 5, "tanh"), EveryLayerContext(2, 16, 5)]
)
def test_jacobian_is_triangular_and_gives_the_log_determinant(
    context_layer: torch.nn.Module,
) -> None:
    block = MADE(5, 16, context_layer, "tanh").double()
    u = torch.randn(5, dtype=torch.float64)
    context = torch.randn(1, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None], context)[0][0], u)
    assert torch.equal(jacobian, jacobian.tril())
    _, log_det = block(u[None], context)
    torch.testing.assert_close(jacobian.diagonal().log().sum(), log_det[0])


def test_samples_do_not_depend_on_the_batch() -> None:
    config = FlowConfig(3, 40, "silu", n_embedding=8)
    flow = compile_flow(random_flow(config))
    base, context = torch.randn(11, 128), torch.randn(9, 11)
    together, _ = flow.sample_u(base, context)
    alone = torch.cat([flow.sample_u(base, context[i : i + 1])[0] for i in range(9)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
def test_samples_come_with_their_density(config: FlowConfig) -> None:
    flow = random_flow(config).double()
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(config.n_u, 50, generator=generator, dtype=torch.float64)
    context = torch.randn(1, config.n_context, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        samples, log_prob = compile_flow(flow).sample_u(base, context)
        _, expected = nflows_samples(flow, config, context[0], base)
        torch.testing.assert_close(log_prob[0], expected)
        torch.testing.assert_close(flow(samples[0].T, context), expected)
