"""Which network to stream with: `make bench-frontier ROWS=training-set`.

Networks of several depths, widths and activations, each trained on the same noisy rows in the same
number of steps, one to a core: their loss, how much a better network could gain, the importance
efficiency of their posteriors, and how many samples a second one thread draws from them.
"""

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from sedflow_core.artifact import compile_flow
from sedflow_core.build import build_artifact
from sedflow_core.exactness import distances
from sedflow_core.flow import FlowConfig
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.gap import measure_gaps, summarise_gaps
from sedflow_core.importance import weigh
from sedflow_core.noise import load_noise
from sedflow_core.reweighting import reweigh
from sedflow_core.simulation import ForwardConfig, TrainingSet, load_training_set
from sedflow_core.train import fit, load_run
from sedflow_core.train_config import PRESETS
from tests.bench.networks import our_rate
from tests.bench.timing import describe_machine

PRESET = replace(PRESETS["streaming"], batch_size=1024, bfloat16_epochs=1, max_epochs=1)
SIZES = ((4, 160), (5, 96), (5, 128), (5, 160), (5, 224), (8, 160), (8, 256))
ACTIVATIONS = ("hardswish", "relu", "silu", "tanh")
N_WEIGHED, N_SAMPLES = 200, 2_000
N_GAP = 500
SEED = 41_000


class Point(NamedTuple):
    """One network: its size, what it learned, and its speed on one thread.

    Attributes:
        loss: mean -ln q of the rows held out.
        gap, gap_error: mean ln p - ln q of the truth, p the exact posterior.
        efficiency: median importance efficiency.
        samples_per_second: of one thread, with another busy on each other core.
    """

    network: str
    n_parameter: int
    loss: float
    gap: float
    gap_error: float
    efficiency: float
    samples_per_second: float


def networks() -> Iterator[FlowConfig]:
    """The grid: every size with the shipped activation, every activation in the shipped size."""
    flow = PRESET.flow
    for n_block, n_hidden in SIZES:
        yield flow._replace(n_block=n_block, n_hidden=n_hidden)
    for activation in ACTIVATIONS:
        if activation != flow.activation:
            yield flow._replace(activation=activation)


def name_of(config: FlowConfig) -> str:
    """Depth, width and activation."""
    return f"{config.n_block} x {config.n_hidden} {config.activation}"


def folder_of(config: FlowConfig, args: argparse.Namespace) -> Path:
    """Where a network's run lies."""
    return Path(args.out, "frontier", name_of(config).replace(" ", "-"))


def read_rows(args: argparse.Namespace) -> TrainingSet:
    """The training set, under the prior asked for."""
    rows = load_training_set(args.rows, args.n_rows)
    return rows if args.prior is None else reweigh(rows, args.prior)


def train(config: FlowConfig, args: argparse.Namespace) -> None:
    """Train one network on one core; what is there already is kept."""
    torch.set_num_threads(1)
    rows = read_rows(args)
    noise = load_noise(rows.bands.names, rows.config["forward_model"]["noise"])
    fit(rows, noise, config=replace(PRESET, flow=config), folder=folder_of(config, args))


def measure(config: FlowConfig, args: argparse.Namespace) -> Point:
    """What a trained network reaches."""
    torch.set_num_threads(1)
    folder = folder_of(config, args)
    run = load_run(folder)
    artifact = build_artifact(
        folder / "artifact",
        name="frontier",
        version="0",
        flow=run.flow,
        flow_config=run.flow_config,
        scale=run.scale,
        forward=ForwardConfig(**run.provenance["training_set"]["forward_model"]),
        training=run.provenance,
        n_support=20_000,
    )
    model = forward_model(artifact)
    simulations = simulate(artifact, N_GAP, seed=SEED)
    weighed = simulations.observation.rows(slice(0, N_WEIGHED))
    gap = summarise_gaps(measure_gaps(artifact, model, simulations), {})
    return Point(
        network=name_of(config),
        n_parameter=sum(p.numel() for p in run.flow.parameters()),
        loss=min(epoch["validation_loss"] for epoch in run.provenance["losses"]),
        gap=gap["mean"],
        gap_error=gap["error"],
        efficiency=distances(weigh(artifact, model, weighed, n_samples=N_SAMPLES))["median"],
        samples_per_second=our_rate(compile_flow(run.flow), run.flow_config),
    )


def markdown(points: list[Point]) -> str:
    """The table, fastest network first."""
    lines = [
        "| network | parameters | loss | could gain | efficiency | samples/s |",
        "|---|---|---|---|---|---|",
    ]
    for p in sorted(points, key=lambda point: -point.samples_per_second):
        gap = f"{p.gap:.3f} ± {p.gap_error:.3f}"
        lines.append(
            f"| {p.network} | {p.n_parameter:,} | {p.loss:.3f} | {gap} | {p.efficiency:.0%} "
            f"| {p.samples_per_second:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure and write `frontier.md` and `frontier.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, help="folder of `sedflow simulate`")
    parser.add_argument("--prior", type=Path, metavar="FILE.toml")
    parser.add_argument("--n-rows", type=int, default=4_000_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    grid = list(networks())
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(train, args=args), grid))
        points = list(pool.map(partial(measure, args=args), grid))
    document = {
        "machine": describe_machine(),
        "training_set": str(args.rows),
        "n_rows": args.n_rows,
        "points": [point._asdict() for point in points],
    }
    (args.out / "frontier.json").write_text(json.dumps(document, indent=2) + "\n")
    (args.out / "frontier.md").write_text(table := markdown(points))
    print(table)


if __name__ == "__main__":
    main()
