"""How fast `estimate` is on a GPU: `make bench-gpu`, where torch finds one.

The shipped network and the paper's 15 x 500, the latter with random weights and without a verdict,
which would judge every sample of a network whose posteriors have hardly any efficiency.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sedflow_core import Artifact, Observation, estimate, load_artifact
from sedflow_core.artifact import read_artifact, write_artifact
from sedflow_core.flow import MaskedAutoregressiveFlow
from sedflow_core.train_config import PRESETS
from tests.bench.report import identify, write_report
from tests.bench.timing import describe_machine, median_seconds

N_GALAXY = 512


def galaxies(artifact: Artifact, n: int) -> Observation:
    """The golden galaxies, all inside the support, again and again in slightly other light."""
    flux, flux_err, redshift = (
        np.resize(artifact.golden[name].numpy(), (n, *artifact.golden[name].shape[1:]))
        for name in ("flux", "flux_err", "redshift")
    )
    return Observation(flux * (1.0 + 1e-4 * np.arange(n)[:, None] / n), flux_err, redshift)


def paper_artifact(shipped: Artifact, folder: Path) -> Artifact:
    """The shipped artifact with the paper's network in the place of its own, on the GPU."""
    config = PRESETS["paper"].flow
    write_artifact(
        folder,
        name="paper",
        version="0",
        bands=shipped.bands,
        flow=MaskedAutoregressiveFlow(config),
        flow_config=config,
        scale=shipped.scale,
        support=shipped.support,
        tables=shipped.tables,
        golden=shipped.golden,
        n_samples=10_000,
        assumptions={},
        provenance={},
        trust=shipped.trust,
    )
    return replace(read_artifact(folder, "cuda"), trust=None)


def measure(name: str, artifact: Artifact, n_samples: int) -> dict[str, float]:
    """Alerts per second of many, and the milliseconds of one alone."""
    many = galaxies(artifact, N_GALAXY)
    one = many.rows(slice(0, 1))
    seconds = median_seconds(lambda: estimate(artifact, many, n_samples), 3)
    alone = median_seconds(lambda: estimate(artifact, one, n_samples), 9)
    label = f"{name}, {n_samples:,} samples"
    return {f"alerts/s, {label}": N_GALAXY / seconds, f"ms, one alert, {label}": 1e3 * alone}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    options = parser.parse_args()
    shipped = load_artifact("sdss-ugriz", device="cuda")
    figures = measure(shipped.name, shipped, shipped.n_samples)
    figures |= measure(shipped.name, shipped, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        paper = paper_artifact(shipped, Path(folder))
        figures |= measure("paper, 15 x 500", paper, 10_000)
    machine = {**describe_machine(), "gpu": torch.cuda.get_device_name()}
    write_report(options.out, "gpu", figures, machine=machine, artifact=identify(shipped))


if __name__ == "__main__":
    main()
