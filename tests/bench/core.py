"""How fast the core is, on one thread: `make bench` prints a Markdown table.

Every figure is a median over repeated calls in this one run, so ratios hold on a noisy machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sedflow_core import estimate, load_artifact, simulate
from sedflow_core.artifact import compile_flow
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.nflows_bridge import to_nflows
from sedflow_core.simulated import forward_model
from sedflow_core.simulation import BLOCK, draw_noise, draw_proposals, stream_generator
from sedflow_core.train import PRESETS

NFLOWS_BATCHES = (100, 500, 2_000)
N_SAMPLES = 1_024
ARTIFACT = "sdss-ugriz"


def median_seconds(call: Callable[[], Any], repeat: int) -> float:
    """Median wall time of a call, after one warm-up."""
    call()
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def nflows_rate(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> float:
    """Samples per second of nflows' inverse at the best of several batch sizes."""
    reference = to_nflows(flow, config)
    features = flow.embedding(torch.zeros(1, config.n_context))
    rates = []
    for n in NFLOWS_BATCHES:
        base, context = torch.randn(n, config.n_u), features.expand(n, -1)
        rates.append(n / median_seconds(lambda b=base, c=context: reference.inverse(b, c), 3))
    return max(rates)


def our_rate(flow: MaskedAutoregressiveFlow, config: FlowConfig) -> float:
    """Samples per second of the compiled cached inverse, `N_SAMPLES` at a time."""
    compiled = compile_flow(flow)
    base, context = torch.randn(config.n_u, N_SAMPLES), torch.zeros(1, config.n_context)
    return N_SAMPLES / median_seconds(lambda: compiled.sample_u(base, context), 7)


def measure() -> dict[str, float]:
    """Every figure, by name."""
    artifact = load_artifact(ARTIFACT)
    figures: dict[str, float] = {}
    networks = {"paper, 15 x 500": PRESETS["paper"].flow}
    networks[ARTIFACT] = FlowConfig(**artifact.manifest["flow"])
    for name, config in networks.items():
        flow = MaskedAutoregressiveFlow(config).eval().requires_grad_(False)
        flow.apply_masks()
        stock, ours = nflows_rate(flow, config), our_rate(flow, config)
        figures |= {
            f"samples/s, nflows, {name}": stock,
            f"samples/s, cached inverse, {name}": ours,
            f"ratio, {name}": ours / stock,
        }
    observation = simulate(artifact, 64).observation
    figures["alerts/s, estimate"] = 64 / median_seconds(lambda: estimate(artifact, observation), 3)
    one = observation.rows(slice(0, 1))
    figures["ms, estimate of one alert"] = 1e3 * median_seconds(lambda: estimate(artifact, one), 7)
    model = forward_model(artifact)

    def simulate_block() -> None:
        generator = stream_generator(0, 0)
        draw_noise(draw_proposals(model, BLOCK, generator).flux, model.noise, generator)

    torch.set_num_threads(2)
    figures["noisy simulations/s, two threads"] = BLOCK / median_seconds(simulate_block, 5)
    return figures


def main() -> None:
    """Print the table; write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        figures = measure()
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.3g} |" if value < 1000 else f"| {name} | {value:,.0f} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
