"""Rate of the pure function `estimate`, by batch size and by part, and of the simulator."""

import statistics
from dataclasses import replace

from sedflow_core import Artifact, Observation, estimate, sample, simulate
from sedflow_core.simulated import forward_model
from sedflow_core.simulation import BLOCK, draw_noise, draw_proposals, stream_generator
from sedflow_core.threads import torch_threads
from tests.bench.timing import cpu_seconds_in_turn, median_seconds

BATCHES = (1, 16, 64, 256)


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
        seconds = median_seconds(lambda rows=rows: estimate(artifact, rows), 3 if n > 1 else 21)
        figures[f"alerts/s, estimate, batches of {n}"] = n / seconds
    one = galaxies.rows(slice(0, 1))
    wall = median_seconds(lambda: estimate(artifact, one), 21)
    return figures | {"ms, estimate of one alert": 1e3 * wall} | _parts(artifact, one)


def _parts(artifact: Artifact, galaxy: Observation) -> dict[str, float]:
    """Where the CPU time of one alert goes."""
    unjudged = replace(artifact, trust=None)
    rounds = cpu_seconds_in_turn(
        [
            lambda: estimate(artifact, galaxy),
            lambda: estimate(unjudged, galaxy),
            lambda: sample(artifact, galaxy, artifact.n_samples),
        ],
        41,
    )
    whole, without_verdict, samples = map(statistics.median, zip(*rounds, strict=True))
    return {
        "CPU ms, estimate of one alert": 1e3 * whole,
        "CPU ms, of these the samples": 1e3 * samples,
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
