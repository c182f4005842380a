"""The flow against nflows, sbi and the calculus of densities."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from sedflow_core import Artifact, simulate
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.made import MADE, EveryLayerContext, FirstLayerContext
from sedflow_core.nflows_bridge import SbiFlow
from sedflow_core.observation import to_context
from sedflow_core.parallel_inverse import sample_together
from sedflow_core.prior import U_NAMES
from sedflow_core.train_config import PRESETS
from tests.nflows_reference import to_nflows

N_CONTEXT = 100
N_BASE = 100
RANDOM_NETS = [
    FlowConfig(2, 20, "relu"),
    FlowConfig(3, 37, "silu", n_embedding=8, seed=1),
    FlowConfig(4, 64, "tanh", seed=2),
    FlowConfig(3, 40, "hardswish", n_embedding=8, seed=4),
    FlowConfig(2, 10, "relu", n_u=4, n_context=3, seed=3),
    FlowConfig(2, 20, "hardswish", n_embedding=8, seed=5, is_whitened=True),
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
    draw_orders(flow, generator)
    whiten(flow, generator)
    flow.apply_masks()
    return flow.eval()


def draw_orders(flow: MaskedAutoregressiveFlow, generator: torch.Generator) -> None:
    """Orders of the parameters as networks of sbi have them, which no reversal undoes."""
    for permutation in flow.permutations:
        permutation.copy_(torch.randperm(len(permutation), generator=generator))


def whiten(flow: MaskedAutoregressiveFlow, generator: torch.Generator) -> None:
    """Fit the whitening, if there is one, to parameters that depend on the context."""
    if flow.whitening is not None:
        n_u, n_context = flow.whitening.weight.shape
        context = torch.randn((1_000, n_context), generator=generator)
        mixing = torch.randn((n_u + n_context, n_u), generator=generator) / n_u**0.5
        noise = torch.randn((1_000, n_u), generator=generator)
        flow.whitening.fit(torch.cat([noise, context], dim=1) @ mixing, context)


def random_context(config: FlowConfig) -> torch.Tensor:
    return torch.randn(N_CONTEXT, config.n_context, generator=torch.Generator().manual_seed(12))


def assert_rows_match(u: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    relative = (u - expected).norm(dim=1) / expected.norm(dim=1)
    assert relative.max() <= bound


def assert_densities_match(log_prob: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    # Where the density is near 1 its log is a difference of larger terms: compare with 1 there.
    change = (log_prob - expected).abs() / expected.abs().clamp_min(1.0)
    assert change.max() <= bound


class Sampled(NamedTuple):
    """10,000 samples (n, n_u) of one base, and their log density (n,)."""

    u: torch.Tensor
    log_prob: torch.Tensor


def both_ways(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, dtype: torch.dtype
) -> tuple[Sampled, Sampled]:
    """What our compiled inverse makes of 10,000 base points, and what that of nflows makes."""
    flow, base, context = flow.to(dtype), base_points(config, dtype), context.to(dtype)
    with torch.no_grad():
        galaxies = zip(context, base, strict=True)
        expected = zip(*(nflows_samples(flow, config, *galaxy) for galaxy in galaxies), strict=True)
    return our_samples(flow, base, context), Sampled(*map(torch.cat, expected))


def base_points(config: FlowConfig, dtype: torch.dtype) -> torch.Tensor:
    """Standard-normal points (N_CONTEXT, n_u, N_BASE)."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(N_CONTEXT, config.n_u, N_BASE, generator=generator).to(dtype)


def our_samples(
    flow: MaskedAutoregressiveFlow, base: torch.Tensor, context: torch.Tensor
) -> Sampled:
    with torch.no_grad():
        u, log_prob = compile_flow(flow).sample_u(base, context)
    return Sampled(u.transpose(1, 2).flatten(0, 1), log_prob.flatten())


def nflows_samples(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One galaxy's samples (n_sample, n_u) by nflows' inverse, and their log density."""
    reference = to_nflows(flow, config, context[None]).to(base.dtype)
    u, log_det = reference.inverse(base.T)
    return u, log_normal(base.T) - log_det


def nflows_density(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """Log density of one galaxy's u (n, n_u) by nflows."""
    z, log_det = to_nflows(flow, config, context[None]).to(u.dtype).forward(u)
    return log_normal(z) + log_det


def log_normal(z: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Normal(z.new_zeros(()), 1.0).log_prob(z).sum(dim=1)


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["single", "double"]
)


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
@PRECISIONS
def test_cached_inverse_equals_nflows(config: FlowConfig, dtype: torch.dtype, bound: float) -> None:
    flow, context = random_flow(config), random_context(config)
    ours, expected = both_ways(flow, config, context, dtype)
    assert_rows_match(ours.u, expected.u, bound)
    assert_densities_match(ours.log_prob, expected.log_prob, bound)


@pytest.mark.parametrize("config", RANDOM_NETS, ids=str)
@PRECISIONS
def test_density_equals_nflows(config: FlowConfig, dtype: torch.dtype, bound: float) -> None:
    flow, context = random_flow(config), random_context(config)
    assert_densities_match(*densities(flow, config, context, dtype), bound)


def densities(
    flow: MaskedAutoregressiveFlow, config: FlowConfig, context: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log densities of 10,000 samples by our forward pass and by that of nflows."""
    flow, context = flow.to(dtype), context.to(dtype)
    u = our_samples(flow, base_points(config, dtype), context).u
    with torch.no_grad():
        log_prob = flow(u, context.repeat_interleave(N_BASE, dim=0))
        galaxies = zip(context, u.split(N_BASE), strict=True)
        return log_prob, torch.cat([nflows_density(flow, config, *each) for each in galaxies])


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
    ours, expected = both_ways(*shipped_flow, dtype)
    assert_rows_match(ours.u, expected.u, bound)
    assert_densities_match(ours.log_prob, expected.log_prob, bound)


def test_shipped_density_equals_nflows(shipped_flow) -> None:
    assert_densities_match(*densities(*shipped_flow, torch.float64), 1e-10)


def test_shipped_density_equals_nflows_in_single_precision(shipped_flow) -> None:
    log_prob, expected = densities(*shipped_flow, torch.float32)
    # The way back to the base is steep: for one row in twenty nflows' own rounding exceeds 1e-5.
    assert (log_prob - expected).norm() / expected.norm() <= 1e-5


def test_blocks_take_the_parameters_in_turn_and_the_first_the_mass_last() -> None:
    flow = MaskedAutoregressiveFlow(PRESETS["streaming"].flow)
    order, taken = torch.arange(flow.n_u), []
    for permutation in flow.permutations:
        order = order[permutation]
        taken.append([U_NAMES[i] for i in order])
    assert taken[0][-1] == "log_mstar"
    assert all(later == earlier[::-1] for earlier, later in pairwise(taken))


@pytest.mark.parametrize(
    "change", [{"activation": "relu"}, {"n_embedding": 4}, {"is_whitened": True}], ids=str
)
def test_a_network_that_sbi_has_not_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="no embedding, no whitening for sbi's maf, got"):
        SbiFlow(FlowConfig(3, 50, "tanh")._replace(**change))


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match=r"activation: expected one of relu, .* got 'gelu'"):
        MaskedAutoregressiveFlow(FlowConfig(2, 20, "gelu"))


@pytest.mark.parametrize(("use_batch_norm", "n_parameter"), [(False, 7_860_330), (True, 7_890_330)])
def test_the_papers_network_has_the_papers_number_of_parameters(
    use_batch_norm: bool, n_parameter: int
) -> None:
    flow = SbiFlow(PRESETS["paper"].flow, use_batch_norm=use_batch_norm)
    trained = (p for p in flow.parameters() if p.requires_grad)
    assert sum(p.numel() for p in trained) == n_parameter


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


@pytest.mark.parametrize("n_sample", [128, 1024])
@pytest.mark.parametrize("is_whitened", [False, True])
def test_samples_do_not_depend_on_the_batch(is_whitened: bool, n_sample: int) -> None:
    config = FlowConfig(3, 40, "silu", n_embedding=8, is_whitened=is_whitened)
    flow = compile_flow(random_flow(config))
    base, context = torch.randn(11, n_sample), torch.randn(9, 11)
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
        torch.testing.assert_close(flow.to_base(samples[0].T, context)[0], base.T)


@pytest.mark.parametrize("is_whitened", [False, True])
def test_an_inverse_that_grows_past_all_numbers_stays_finite(is_whitened: bool) -> None:
    config = FlowConfig(6, 40, "hardswish", n_embedding=8, is_whitened=is_whitened)
    flow = random_flow(config)
    with torch.no_grad():
        for block in flow.blocks:
            block.output_layer.weight *= 100.0
    base, context = torch.randn(3, 11, 500), torch.randn(3, 11)
    for sample in (compile_flow(flow).sample_u, partial(sample_together, flow)):
        u, log_prob = sample(base, context)
        assert u.isfinite().all()
        assert log_prob.isfinite().all()
        assert u.abs().max() > 1e4
