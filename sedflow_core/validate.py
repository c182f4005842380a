"""Calibration and sharpness of an artifact on fresh simulations of its own forward model.

Calibration: the rank of the truth among the posterior samples is uniform for a perfect posterior
(Talts et al. 2018); its distance from uniform is the Kolmogorov-Smirnov statistic, overall and in
slices. So are the credibilities of the truth about random points (TARP) and of regions of highest
density (expected coverage). Sharpness: the mean -ln q of the truth, and the distance from the
exact posterior, by weights and by classifiers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sedflow_core.artifact import Artifact
from sedflow_core.calibration import N_CONTROL, Calibration, calibrate
from sedflow_core.diagnostics import (
    bias_and_width,
    central_levels,
    ks_distance,
    noise_bound,
    pooled,
    slices,
)
from sedflow_core.errors import SimulationError
from sedflow_core.estimation import estimate
from sedflow_core.exact_ranks import mcmc_ranks, weighted_ranks
from sedflow_core.exactness import classify, distances, summarise
from sedflow_core.fresh_simulations import Simulations, forward_model, simulate
from sedflow_core.gap import measure_gaps, summarise_gaps
from sedflow_core.importance import weigh
from sedflow_core.local_c2st import classify_locally, rejection_rates
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, U_NAMES, to_u
from sedflow_core.simulation import ForwardModel
from sedflow_core.units import Array, mag_from_nanomaggy
from sedflow_core.version import __version__

_FORMAT = 2
"""Of what is kept in the folder; rises with each change of how it is measured."""
LIMITS = {
    "ks_distance": 0.018,
    "ks_distance_derived": 0.022,
    "pooled": 0.01,
    "tarp": 0.02,
    "efficiency": 0.25,
    "total_variation": 0.40,
}
"""What passes: efficiency at least, all else at most. KS distances of the ranks of network
parameters and of derived quantities, of all parameters' ranks together, and of TARP coverage;
medians of importance efficiency and total variation.
"""
N_JUDGED = 20_000
"""The fewest simulations that can pass. On fewer, as in slices, a limit is wider by its noise."""
LEAST = 12
"""The fewest simulations that can be measured: half of them teach a classifier, which judges the
others.
"""


class Sizes(NamedTuple):
    """How much `validate` measures: at least `LEAST` simulations, `N_CONTROL` samples of each.

    Attributes:
        n_simulations: fresh simulations for the ranks; n_samples: independent draws for each.
        n_published: of them, ranked among the published Sobol points as well.
        n_importance: of them, weighed against the exact posterior with 10,000 draws each.
        n_gap: of them, whose truth's density in the exact posterior is compared with the flow's.
        n_classifier: of them, told from the exact posterior by classifiers.
        n_local: of them, tested alone by classifiers that learn from all others.
        n_mcmc: of them, sampled by MCMC.
    """

    n_simulations: int = 20_000
    n_samples: int = 1_000
    n_published: int = 5_000
    n_importance: int = 200
    n_gap: int = 2_000
    n_classifier: int = 8
    n_local: int = 200
    n_mcmc: int = 0

    def check(self) -> "Sizes":
        """No more simulations for anything than there are, half of them to test the others with.

        Raises:
            SimulationError: nothing can be measured with so few.
        """
        for name, size, smallest in (
            ("n_simulations", self.n_simulations, LEAST),
            ("n_samples", self.n_samples, N_CONTROL),
        ):
            if size < smallest:
                raise SimulationError(f"{name}: expected at least {smallest}, got {size}")
        n = self.n_simulations
        bounded = Sizes(n, self.n_samples, *(min(size, n) for size in self[2:]))
        return bounded._replace(n_local=min(self.n_local, n // 2))


class Report(NamedTuple):
    """What `validate` measured: `document` for the manifest, the rest for the figures.

    `exact_ranks` are those of the truth in the exact posterior: name of the method -> (n, n_name).
    """

    document: dict[str, Any]
    simulations: Simulations
    calibration: Calibration
    exact_ranks: dict[str, Array]


def validate(
    artifact: Artifact,
    sizes: Sizes,
    *,
    seed: int = 90_000,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Measure calibration with independent draws and with the published Sobol sets, and sharpness.

    Args:
        artifact: see `load_artifact`.
        sizes: how much to measure.
        seed: of the simulations; training used others.
        folder: keeps the ranks and the MCMC that converged, so that a killed run goes on from
            there; weights and classifiers are made anew.
        progress: called with the number of simulations done in each step.
    """
    sizes = sizes.check()
    kept = (
        None
        if folder is None
        else folder / f"{artifact.sha256[:12]}-{seed}-{__version__}-{_FORMAT}"
    )
    simulations = simulate(artifact, sizes.n_simulations, seed=seed)
    independent = calibrate(
        artifact,
        simulations,
        n_samples=sizes.n_samples,
        independent=True,
        folder=kept,
        progress=progress,
    )
    few = simulations.rows(slice(sizes.n_published))
    published = calibrate(
        artifact,
        few,
        n_samples=artifact.n_samples,
        independent=False,
        folder=kept,
        progress=progress,
    )
    exact = _exact(artifact, simulations, sizes, kept)
    document = {
        "n_simulations": sizes.n_simulations,
        "seed": seed,
        "n_samples": sizes.n_samples,
        "mean_negative_log_q": float(independent.loss.mean()),
        "mean_negative_log_q_error": float(independent.loss.std() / sizes.n_simulations**0.5),
        "mean_negative_log_prior": _prior_loss(artifact, simulations),
        **exact.document,
        **_calibration_document(artifact, independent, simulations.observation),
        "ks_distance_published_sobol": _ks_of(published.ranks, published.names),
        "published_bias_and_width": _published(artifact, few),
        "n_published": sizes.n_published,
    }
    reasons = failures(document)
    document |= {"passed": not reasons, "failures": reasons}
    return Report(document, simulations, independent, exact.ranks)


class _Exact(NamedTuple):
    """The part of the document on the exact posterior, and ranks in it."""

    document: dict[str, Any]
    ranks: dict[str, Array]


def _exact(
    artifact: Artifact, simulations: Simulations, sizes: Sizes, folder: Path | None
) -> _Exact:
    observation, model = simulations.observation, forward_model(artifact)
    weighted = weigh(artifact, model, observation.rows(slice(0, sizes.n_importance)))
    tests = [
        classify(artifact, observation.rows(slice(i, i + 1)), seed=i)
        for i in range(sizes.n_classifier)
    ]
    document: dict[str, Any] = {
        "importance_efficiency": distances(weighted),
        "gap": _gap(artifact, model, simulations.rows(slice(sizes.n_gap))),
    }
    ranks = {"exact, by weights": weighted_ranks(artifact, simulations, weighted)}
    if tests:
        document["c2st"] = summarise(tests)
    if sizes.n_local:
        document["local_c2st"] = rejection_rates(
            classify_locally(artifact, simulations, sizes.n_local)
        )
    if sizes.n_mcmc:
        few = simulations.rows(slice(sizes.n_mcmc))
        ranks["MCMC"], n_converged = mcmc_ranks(artifact, model, few, folder)
        document["mcmc"] = {"n_simulations": sizes.n_mcmc, "n_converged": n_converged}
    return _Exact(document, ranks)


def _gap(artifact: Artifact, model: ForwardModel, simulations: Simulations) -> dict[str, Any]:
    """What a better network could gain, also by magnitude in the middle band."""
    gaps = measure_gaps(artifact, model, simulations)
    middle = len(artifact.bands.names) // 2
    mag = mag_from_nanomaggy(simulations.observation.flux)[:, middle]
    return summarise_gaps(gaps, {f"mag_{artifact.bands.names[middle]}": mag})


def _published(artifact: Artifact, simulations: Simulations) -> dict[str, dict[str, float]]:
    """Bias and widths of the quantiles as they are published, each of its physical quantity."""
    summary = estimate(artifact, simulations.observation, include_unsupported=True)
    truth = np.concatenate([simulations.theta, simulations.derived], axis=1)
    return bias_and_width(truth, summary.quantiles, summary.names)


def _ks_of(levels: Array, names: tuple[str, ...]) -> dict[str, float]:
    return {name: ks_distance(column) for name, column in zip(names, levels.T, strict=True)}


def _calibration_document(
    artifact: Artifact, calibration: Calibration, observation: Observation
) -> dict[str, Any]:
    names, ranks = calibration.names, calibration.ranks
    levels = np.column_stack([calibration.tarp[:, -1], calibration.density])
    tests = np.column_stack([ranks, levels])
    return {
        "noise": noise_bound(len(ranks)),
        "ks_distance_independent": _ks_of(ranks, names),
        "ks_distance_perfect": _ks_of(calibration.control[:, 0], names),
        "pooled": pooled(ranks[:, :N_U], calibration.control[..., :N_U]),
        "tarp_distance": ks_distance(calibration.tarp[:, -1]),
        "tarp_distance_of_each": _ks_of(calibration.tarp[:, :-1], names),
        "expected_coverage": {
            "n_simulations": len(ranks),
            "distance": ks_distance(calibration.density),
            "distance_of_each": _ks_of(central_levels(ranks), names),
        },
        "slices": slices(
            tests, (*names, "TARP", "expected coverage"), _slice_by(artifact, observation)
        ),
        "bias_and_width": bias_and_width(calibration.truth, calibration.quantiles, names),
    }


def _prior_loss(artifact: Artifact, simulations: Simulations) -> float:
    theta = torch.tensor(simulations.theta)
    redshift = torch.tensor(simulations.observation.redshift)
    log_weight = log_prior_weight(artifact.prior, theta, redshift, artifact.tables)
    normal = 0.5 * to_u(theta).square().sum(dim=-1) + 0.5 * N_U * np.log(2.0 * np.pi)
    return float((normal - log_weight).mean())


def failures(document: dict[str, Any]) -> list[str]:
    """Why an artifact with this validation should not serve; empty where it should."""
    reasons = [
        f"{text}: expected at least {least:,}, got {n:,}"
        for text, n, least in _sizes(document)
        if n < least
    ]
    reasons += [
        f"{text}: expected at most {largest:.5g}, got {value:.5g}"
        for text, value, largest in _at_most(document)
        if not value <= largest
    ]
    efficiency = document["importance_efficiency"]["median"]
    if not efficiency >= LIMITS["efficiency"]:
        reasons.append(
            f"median importance_efficiency: expected at least {LIMITS['efficiency']}, "
            f"got {efficiency:.5g}"
        )
    return reasons


def limit(name: str, n: int) -> float:
    """The largest distance that passes on n simulations."""
    return LIMITS[name] + (noise_bound(n) if n < N_JUDGED else 0.0)


def _sizes(document: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """How much was measured, and the least that may pass."""
    default = Sizes()
    yield "n_simulations", document["n_simulations"], N_JUDGED
    yield "n_samples", document["n_samples"], default.n_samples
    weighed = document["importance_efficiency"]["n_simulations"]
    yield "n_simulations of importance_efficiency", weighed, default.n_importance


def _at_most(document: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """What was measured, its value and the largest that passes."""
    n = document["n_simulations"]
    for name, value in document["ks_distance_independent"].items():
        yield f"ks_distance_independent of {name}", value, limit(_kind(name), n)
    yield "pooled ks_distance", document["pooled"]["ks_distance"], limit("pooled", n)
    yield "tarp_distance", document["tarp_distance"], limit("tarp", n)
    variation = document["importance_efficiency"]["total_variation"]["median"]
    yield "median total_variation", variation, LIMITS["total_variation"]
    for quantity, parts in document["slices"].items():
        for part in parts:
            low, high = part["range"]
            for name in document["ks_distance_independent"]:
                text = f"ks_distance of {name} for {quantity} {low:.4g} to {high:.4g}"
                yield text, part["ks_distance"][name], limit(_kind(name), part["n"])


def _kind(name: str) -> str:
    return "ks_distance" if name in U_NAMES else "ks_distance_derived"


def _slice_by(artifact: Artifact, observation: Observation) -> dict[str, Array]:
    """Redshift, signal-to-noise of the middle band and a colour of each simulation."""
    bands = artifact.bands.names
    middle = len(bands) // 2
    mag = mag_from_nanomaggy(observation.flux)
    return {
        "redshift": observation.redshift,
        f"signal_to_noise_{bands[middle]}": (observation.flux / observation.flux_err)[:, middle],
        f"color_{bands[middle - 1]}-{bands[middle]}": mag[:, middle - 1] - mag[:, middle],
    }
