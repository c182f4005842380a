"""Loss against the number of simulations: nested subsets, one network, equal numbers of steps.

The largest subset is passed `n_pass` times; a subset of a tenth of it ten times as often. So every
run sees as many rows, each with fresh noise, and only their variety differs (Hahn & Melchior 2022,
Sec. 6.1, see a threshold at 500,000). All are measured on the same rows, which none has seen.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from sedflow_core.argument_types import positive_int
from sedflow_core.batches import noisy_batches
from sedflow_core.errors import TrainingError
from sedflow_core.flow import FlowConfig
from sedflow_core.noise import NoiseModel, load_noise
from sedflow_core.observation import to_context
from sedflow_core.simulation import TrainingSet, load_training_set, stream_generator
from sedflow_core.train import TrainedFlow, fit
from sedflow_core.train_config import TrainConfig

SIZES = (50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000)
SMALL = TrainConfig(FlowConfig(4, 64, "hardswish", n_embedding=32), warm_up_steps=100)
"""A network small enough to train many times; what it lacks is the same for every size."""
N_TEST = 100_000
_NAME = "learning-curve.json"
_TEST_STREAM = 3
"""Training takes 1 and even ones."""


def add_learning_curve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sedflow learning-curve`."""
    parser.add_argument("training_set", type=Path)
    parser.add_argument("out", type=Path, help=f"folder of the runs and {_NAME}; resumed")
    parser.add_argument(
        "--sizes", type=positive_int, nargs="+", default=list(SIZES), metavar="ROWS"
    )
    parser.add_argument("--passes", type=positive_int, default=2, help="over the largest subset")
    parser.add_argument("--n-test", type=positive_int, default=N_TEST, help="rows that measure")
    parser.set_defaults(threads=1)  # in so small a network others would only wait for it


def run_learning_curve(args: argparse.Namespace) -> int:
    """`sedflow learning-curve`."""
    rows = load_training_set(args.training_set)
    noise = load_noise(rows.bands.names, rows.config["forward_model"]["noise"])
    learning_curve(rows, noise, args.out, args.sizes, n_pass=args.passes, n_test=args.n_test)
    return 0


def learning_curve(
    rows: TrainingSet,
    noise: NoiseModel,
    folder: Path,
    sizes: Sequence[int] = SIZES,
    *,
    n_pass: int = 2,
    n_test: int = N_TEST,
    config: TrainConfig = SMALL,
) -> dict[str, Any]:
    """Train on the first rows of each size, smallest first; what is there already is kept.

    Args:
        rows: more than the largest size by n_test, which are the last.
        noise: the noise drawn for every epoch.
        folder: receives a run per size, and learning-curve.json as it grows.
        sizes: of the subsets, each a divisor of the largest.
        n_pass: passes over the largest subset.
        n_test: rows that measure.
        config: of every run, but for its number of epochs.

    Raises:
        TrainingError: too few rows, or a size that does not divide the largest.
    """
    _check(sizes, len(rows.u) - n_test)
    test = rows.map(lambda t: t[len(rows.u) - n_test :])
    points = []
    for size in sorted(sizes):
        epochs = n_pass * (max(sizes) // size)
        run = replace(config, max_epochs=epochs, patience=epochs)
        subset = rows.map(itemgetter(slice(size)))
        trained = fit(subset, noise, config=run, folder=folder / f"run-{size}")
        points.append(
            {
                "n_rows": size,
                "epochs": epochs,
                **_measure(trained, test, noise, "test"),
                **_measure(trained, subset.map(lambda t: t[:n_test]), noise, "train"),
            }
        )
        document = {"config": asdict(config), "n_pass": n_pass, "n_test": n_test, "points": points}
        (folder / _NAME).write_text(json.dumps(document, indent=2) + "\n")
        print(json.dumps(points[-1]), flush=True)
    return document


def _check(sizes: Sequence[int], n_rows: int) -> None:
    if max(sizes) > n_rows:
        raise TrainingError(f"sizes: expected at most {n_rows} rows, got {max(sizes)}")
    for size in sizes:
        if max(sizes) % size:
            raise TrainingError(f"sizes: expected divisors of {max(sizes)}, got {size}")


@torch.no_grad()
def _measure(
    trained: TrainedFlow, rows: TrainingSet, noise: NoiseModel, name: str
) -> dict[str, float]:
    """Mean -ln q of rows with noise that no epoch drew, and its error."""
    batches = noisy_batches(
        rows,
        noise,
        stream_generator(0, _TEST_STREAM),
        lambda flux, err, redshift: to_context(flux, err, redshift, trained.scale),
        4096,
    )
    parts = [-trained.flow(batch.u, batch.context) for batch in batches]
    if (n := sum(map(len, parts))) < 2:
        raise TrainingError(f"n_test: expected at least 2 rows inside the magnitude range, got {n}")
    losses = torch.cat(parts).double()
    return {
        f"{name}_loss": float(losses.mean()),
        f"{name}_loss_error": float(losses.std() / len(losses) ** 0.5),
    }
