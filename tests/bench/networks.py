"""Samples per second of a flow: nflows' inverse, and ours, with the arithmetic it takes."""

import statistics
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sedflow_core import Artifact
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.train_config import PRESETS
from tests.bench.timing import cpu_seconds_in_turn, gemm_peak, median_seconds
from tests.nflows_reference import to_nflows

NFLOWS_BATCHES = (20, 100, 500, 2_000, 5_000)
N_SAMPLES = 1_024
N_ROUNDS = 5
PAPER = "paper, 15 x 500"


class Rates(NamedTuple):
    """Samples per second of nflows' inverse at its best batch size, that size, and ours."""

    nflows: float
    at_once: int
    ours: float


def measure_rates(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> Rates:
    """Both inverses on one thread, in turn; ours is compiled, `N_SAMPLES` at a time."""
    reference = to_nflows(flow, config, torch.zeros(1, config.n_context))
    bases = {n: torch.randn(n, config.n_u) for n in NFLOWS_BATCHES}
    tried = {n: n / median_seconds(partial(reference.inverse, b), 1) for n, b in bases.items()}
    at_once = max(tried, key=lambda n: tried[n])
    ours, base = compile_flow(flow), torch.randn(config.n_u, N_SAMPLES)
    context = torch.zeros(1, config.n_context)
    rounds = cpu_seconds_in_turn(
        [lambda: reference.inverse(bases[at_once]), lambda: ours.sample_u(base, context)], N_ROUNDS
    )
    stock_s, ours_s = map(statistics.median, zip(*rounds, strict=True))
    return Rates(at_once / stock_s, at_once, N_SAMPLES / ours_s)


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
    figures = {"GFLOP/s, largest matrix product": (peak := gemm_peak()) / 1e9}
    networks = {PAPER: PRESETS["paper"].flow}
    networks[artifact.name] = FlowConfig(**artifact.manifest["flow"])
    rates = {}
    for name, config in networks.items():
        flow = MaskedAutoregressiveFlow(config).eval().requires_grad_(False)
        flow.apply_masks()
        rates[name], flops = measure_rates(flow, config), flops_per_sample(flow, config)
        figures |= {
            f"samples/s, nflows, {name}": rates[name].nflows,
            f"samples at once, of these, {name}": rates[name].at_once,
            f"samples/s, cached inverse, {name}": rates[name].ours,
            f"ratio, {name}": rates[name].ours / rates[name].nflows,
            f"kFLOP per sample, {name}": flops / 1e3,
            f"% of the largest matrix product, {name}": 100 * rates[name].ours * flops / peak,
        }
    ratio = rates[artifact.name].ours / rates[PAPER].nflows
    return figures | {f"ratio, {artifact.name} to nflows, {PAPER}": ratio}
