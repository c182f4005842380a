"""Samples per second of a flow: nflows' inverse, and ours, with the arithmetic it takes."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sedflow_core import Artifact
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.train_config import PRESETS
from tests.bench.timing import gemm_peak, median_seconds
from tests.nflows_reference import to_nflows

NFLOWS_BATCHES = (100, 500, 2_000)
N_SAMPLES = 1_024
PAPER = "paper, 15 x 500"


def nflows_rate(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> float:
    """Samples per second of nflows' inverse at the best of several batch sizes."""
    reference = to_nflows(flow, config, torch.zeros(1, config.n_context))
    rates = []
    for n in NFLOWS_BATCHES:
        base = torch.randn(n, config.n_u)
        rates.append(n / median_seconds(lambda b=base: reference.inverse(b), 3))
    return max(rates)


def our_rate(flow: torch.nn.Module, config: FlowConfig) -> float:
    """Samples per second of the compiled cached inverse, `N_SAMPLES` at a time."""
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
    stock_of = {}
    for name, config in networks.items():
        flow = MaskedAutoregressiveFlow(config).eval().requires_grad_(False)
        flow.apply_masks()
        stock_of[name], flops = nflows_rate(flow, config), flops_per_sample(flow, config)
        ours = our_rate(compile_flow(flow), config)
        figures |= {
            f"samples/s, nflows, {name}": stock_of[name],
            f"samples/s, cached inverse, {name}": ours,
            f"ratio, {name}": ours / stock_of[name],
            f"kFLOP per sample, {name}": flops / 1e3,
            f"% of the largest matrix product, {name}": 100 * ours * flops / peak,
        }
    fast = figures[f"samples/s, cached inverse, {artifact.name}"]
    return figures | {f"ratio, {artifact.name} to nflows, {PAPER}": fast / stock_of[PAPER]}
