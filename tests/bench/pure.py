"""Rate of the pure function `estimate`, by batch size and by part, and of the simulator."""

import statistics
from dataclasses import replace

import torch

from sedflow_core import Artifact, Observation, estimate, simulate
from sedflow_core.estimation import MOST_TOGETHER, choose_base
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.observation import to_context
from sedflow_core.simulation import BLOCK, draw_noise, draw_proposals, stream_generator
from sedflow_core.threads import torch_threads
from tests.bench.timing import cpu_seconds_in_turn, median_seconds

BATCHES = (16, 64, 256)


def supported(artifact: Artifact, n: int, seed: int = 0) -> Observation:
    """n simulated galaxies inside the training support: each costs a whole inference."""
    observation = simulate(artifact, 2 * n, seed=seed).observation
    inside = estimate(artifact, observation, n_samples=2).flags == 0
    return observation.rows(inside.nonzero()[0][:n])


def measure_estimate(artifact: Artifact) -> dict[str, float]:
    """Alerts per second and CPU time per alert on one thread."""
    galaxies = supported(artifact, max(BATCHES))
    figures = {}
    for n in BATCHES:
        rows = galaxies.rows(slice(0, n))
        seconds = median_seconds(lambda rows=rows: estimate(artifact, rows), 3)
        figures[f"alerts/s, estimate, batches of {n}"] = n / seconds
    one, some = (galaxies.rows(slice(0, n)) for n in (1, MOST_TOGETHER))
    wall = median_seconds(lambda: estimate(artifact, one), 21)
    return figures | {"ms, estimate of one alert": 1e3 * wall} | _parts(artifact, some)


def _parts(artifact: Artifact, galaxies: Observation) -> dict[str, float]:
    """Where the CPU time of alerts that are answered together goes."""
    unjudged = replace(artifact, trust=None)
    context = to_context(*galaxies.tensors(), artifact.scale)
    base = torch.stack(
        [choose_base(galaxies, i, artifact.n_samples, 0) for i in range(len(galaxies))]
    )
    rounds = cpu_seconds_in_turn(
        [
            lambda: estimate(artifact, galaxies),
            lambda: estimate(unjudged, galaxies),
            lambda: artifact.flow.sample_u(base, context),
        ],
        9,
    )
    whole, without_verdict, samples = map(statistics.median, zip(*rounds, strict=True))
    return {
        "CPU ms per alert, estimate": 1e3 * whole / len(galaxies),
        "CPU ms per alert, of these the samples": 1e3 * samples / len(galaxies),
        "% of the samples' time, summaries": 100 * (without_verdict - samples) / samples,
        "% of the alert's time, verdict": 100 * (whole - without_verdict) / whole,
    }


def measure_simulator(artifact: Artifact, threads: int) -> dict[str, float]:
    """Noisy simulations per second from the prior of the table, cuts not applied.

    Under another prior most draws are dropped before they are simulated.
    """
    model = forward_model(artifact)._replace(prior=())

    def simulate_block() -> None:
        generator = stream_generator(0, 0)
        draw_noise(draw_proposals(model, BLOCK, generator).flux, model.noise, generator)

    with torch_threads(threads):
        seconds = median_seconds(simulate_block, 5)
    return {f"noisy simulations/s, {threads} threads": BLOCK / seconds}
