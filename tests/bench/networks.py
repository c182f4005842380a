"""Samples per second of a flow: nflows' inverse, and ours, with the arithmetic it takes.

All rates are taken in turn, so that a machine whose speed drifts weighs on all alike.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sedflow_core import Artifact
from sedflow_core.artifact import compile_flow
from sedflow_core.estimation import MOST_TOGETHER
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.train_config import PRESETS
from tests.bench.timing import cpu_seconds_in_turn, median_seconds
from tests.nflows_reference import to_nflows

NFLOWS_BATCHES = (20, 100, 500, 2_000, 5_000)
N_SAMPLES = 1_024
GEMM_SIZE = 1_024
N_ROUNDS = 9
PAPER = "paper, 15 x 500"
PRODUCT = "largest matrix product"


class Work(NamedTuple):
    """A call, and how much it does: samples, or operations."""

    amount: float
    call: Callable[[], Any]


def nflows_sampler(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> Work:
    """nflows' inverse of the network, as many samples at once as suit it best."""
    reference = to_nflows(flow, config, torch.zeros(1, config.n_context))
    works = [
        Work(n, partial(reference.inverse, torch.randn(n, config.n_u))) for n in NFLOWS_BATCHES
    ]
    return max(works, key=lambda work: work.amount / median_seconds(work.call, 1))


def cached_sampler(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> Work:
    """Our inverse, compiled: `N_SAMPLES` for each of so many galaxies as the daemon groups."""
    base = torch.randn(config.n_u, N_SAMPLES)
    context = torch.zeros(MOST_TOGETHER, config.n_context)
    return Work(MOST_TOGETHER * N_SAMPLES, partial(compile_flow(flow).sample_u, base, context))


def matrix_product() -> Work:
    """A large product of single precision, of which the processor may do all that it can."""
    a, b, out = torch.randn(3, GEMM_SIZE, GEMM_SIZE)
    return Work(2 * GEMM_SIZE**3, lambda: torch.mm(a, b, out=out))


def measure_rates(works: dict[str, Work]) -> dict[str, float]:
    """What each does per second of CPU time; they take turns."""
    rounds = cpu_seconds_in_turn([work.call for work in works.values()], N_ROUNDS)
    seconds = map(statistics.median, zip(*rounds, strict=True))
    return {name: work.amount / s for (name, work), s in zip(works.items(), seconds, strict=True)}


def our_rate(flow: torch.nn.Module, config: FlowConfig) -> float:
    """Samples per second of the compiled cached inverse alone, `N_SAMPLES` at a time."""
    base, context = torch.randn(config.n_u, N_SAMPLES), torch.zeros(1, config.n_context)
    return N_SAMPLES / median_seconds(lambda: flow.sample_u(base, context), 9)


def _product_flops(_: torch.Size, a: torch.Size, b: torch.Size, **options: Any) -> int:
    return 2 * a.numel() * b[1]


def flops_per_sample(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> float:
    """Multiplications and additions of the inverse's matrix products, per sample."""
    base, context = torch.randn(config.n_u, N_SAMPLES), torch.zeros(1, config.n_context)
    in_place = {torch.ops.aten.addmm_: _product_flops}  # the counter does not know it
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        flow.sample_u(base, context)
    return counter.get_total_flops() / N_SAMPLES


def measure_networks(artifact: Artifact) -> dict[str, float]:
    """Every figure of the paper's network and of the artifact's, on one thread."""
    networks = {
        PAPER: PRESETS["paper"].flow,
        artifact.name: FlowConfig(**artifact.manifest["flow"]),
    }
    works, flops = {PRODUCT: matrix_product()}, {}
    for name, config in networks.items():
        flow = MaskedAutoregressiveFlow(config).eval().requires_grad_(False)
        flow.apply_masks()
        works |= {f"nflows, {name}": nflows_sampler(flow, config)}
        works |= {f"cached inverse, {name}": cached_sampler(flow, config)}
        flops[name] = flops_per_sample(flow, config)
    rates = measure_rates(works)
    figures = {f"GFLOP/s, {PRODUCT}": rates[PRODUCT] / 1e9}
    for name in networks:
        stock, ours = rates[f"nflows, {name}"], rates[f"cached inverse, {name}"]
        figures |= {
            f"samples/s, nflows, {name}": stock,
            f"samples at once, of these, {name}": works[f"nflows, {name}"].amount,
            f"samples/s, cached inverse, {name}": ours,
            f"ratio, {name}": ours / stock,
            f"kFLOP per sample, {name}": flops[name] / 1e3,
            f"% of the {PRODUCT}, {name}": 100 * ours * flops[name] / rates[PRODUCT],
        }
    ratio = rates[f"cached inverse, {artifact.name}"] / rates[f"nflows, {PAPER}"]
    return figures | {f"ratio, {artifact.name} to nflows, {PAPER}": ratio}
