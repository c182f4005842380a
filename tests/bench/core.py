"""How fast the core is, on one thread: `make bench` prints a table and keeps it as JSON.

Every figure is a median over repeated calls in this one run, so ratios hold on a noisy machine.
"""

import argparse
from pathlib import Path

import torch

from sedflow_core import load_artifact
from tests.bench.networks import measure_networks
from tests.bench.peer import measure_peer
from tests.bench.pure import measure_estimate, measure_simulator, supported
from tests.bench.report import write_report
from tests.bench.timing import describe_machine


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", default="sdss-ugriz")
    parser.add_argument("--out", type=Path, default=Path("bench-output"))
    parser.add_argument("--peer-seconds", type=float, default=120.0, help="at most; 0: no peer")
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(1)
    artifact = load_artifact(options.artifact)
    figures = measure_networks(artifact) | measure_estimate(artifact)
    figures |= measure_simulator(artifact, threads=2)
    if options.peer_seconds:
        figures |= measure_peer(artifact, supported(artifact, 1), options.peer_seconds)
    identity = {"name": artifact.name, "version": artifact.version, "sha256": artifact.sha256}
    write_report(
        options.out,
        "core",
        figures,
        machine=machine,
        artifact=identity,
        n_samples=artifact.n_samples,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
