"""Calibration and sharpness of an artifact on fresh simulations of its own forward model.

Calibration: the rank of the truth among the posterior samples is uniform for a perfect posterior
(Talts et al. 2018); its distance from uniform is the Kolmogorov-Smirnov statistic, overall and in
slices. So are the credibilities of the truth about random points (TARP) and of regions of highest
density (expected coverage). Sharpness: the mean -ln q of the truth, and the importance efficiency
against the exact posterior.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.diagnostics import (
    bias_and_width,
    density_ranks,
    ks_distance,
    pooled,
    slices,
    tarp_levels,
)
from sedflow_core.estimation import log_prob, sample
from sedflow_core.importance import Weighted, weigh
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, U_NAMES, draw_u, to_u
from sedflow_core.sfh import calc_derived
from sedflow_core.simulated import Simulations, forward_model, simulate
from sedflow_core.units import mag_from_nanomaggy

_CHUNK = 64
N_COVERAGE, N_COVERAGE_SAMPLES = 1_000, 250
"""Simulations and draws behind the expected coverage, which needs the density of every draw."""
MAX_KS_DISTANCE = 0.04
MIN_EFFICIENCY = 0.02
PRIOR_LOSS = 0.5 * N_U * (1.0 + np.log(2.0 * np.pi))
"""-ln of the prior's density in u, averaged over the prior: 15.61."""

Progress = Callable[[int], None]


def _ignore(_: int) -> None:
    """Progress that nobody watches."""


class Calibration(NamedTuple):
    """Ranks of the truth, scaled to (0, 1), and the mean of -ln q(truth).

    Attributes:
        names: the 11 network parameters, then the derived quantities.
        ranks: (n, n_name).
        truth: (n, n_name); quantiles: (n, n_name, 3) at 16, 50 and 84 %; parameters in u.
        tarp: (n,) credibility of the truth about a draw from the prior, in u.
        loss: mean -ln q(u | context) of the truth.
    """

    names: tuple[str, ...]
    ranks: NDArray[np.float64]
    truth: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    tarp: NDArray[np.float64]
    loss: float

    def ks_distance(self) -> dict[str, float]:
        """Kolmogorov-Smirnov distance of each quantity's ranks from uniform."""
        return {
            name: ks_distance(ranks) for name, ranks in zip(self.names, self.ranks.T, strict=True)
        }


def calibrate(
    artifact: Artifact,
    simulations: Simulations,
    *,
    n_samples: int,
    independent: bool,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Calibration:
    """Ranks of the truth of simulations among posterior samples.

    Args:
        artifact: see `load_artifact`.
        simulations: of the artifact's forward model, see `simulate`.
        n_samples: posterior samples per simulation.
        independent: independent draws, or the published Sobol points.
        seed: of the samples.
        progress: called with the number of simulations done in each step.
    """
    parts: list[_Compared] = []
    n = len(simulations.observation)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        part = Simulations(
            simulations.theta[rows],
            simulations.derived[rows],
            simulations.noiseless_flux[rows],
            simulations.observation.rows(rows),
        )
        theta = sample(
            artifact, part.observation, n_samples, seed + start * independent, independent
        )
        samples = torch.tensor(theta).transpose(0, 1)
        parts.append(_compare(artifact, part, samples, draw_u(len(samples), generator)))
        progress(rows.stop - rows.start)
    truth = simulations.theta[None].astype(np.float32)
    loss = -float(log_prob(artifact, truth, simulations.observation).mean())
    compared = _Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return Calibration(U_NAMES + artifact.derived_names, *compared, loss)


class _Compared(NamedTuple):
    """Ranks, truth, quantiles and TARP of some simulations; see `Calibration`."""

    ranks: NDArray[np.float64]
    truth: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    tarp: NDArray[np.float64]


def _compare(
    artifact: Artifact, simulations: Simulations, theta: Tensor, reference: Tensor
) -> _Compared:
    """The truth beside samples theta (n, n_sample, 12); reference (n, n_u) are points in u."""
    redshift = torch.tensor(simulations.observation.redshift)
    derived = calc_derived(theta, redshift, artifact.tables, artifact.derived_names)
    u, u_truth = to_u(theta.double()), to_u(torch.tensor(simulations.theta))
    samples = torch.cat([u, derived.double()], dim=-1)
    truth = torch.cat([u_truth, torch.tensor(simulations.derived).double()], dim=-1)
    # Half the ties count as below: quantities with a floor or a shared zero stay uniform.
    below = (samples < truth[:, None]).double().sum(dim=1)
    ties = (samples == truth[:, None]).double().sum(dim=1)
    levels = torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)
    return _Compared(
        ((below + 0.5 * ties + 0.5) / (theta.shape[1] + 1)).numpy(),
        truth.numpy(),
        torch.quantile(samples, levels, dim=1).movedim(0, -1).numpy(),
        tarp_levels(u.numpy(), u_truth.numpy(), reference.numpy()),
    )


class Report(NamedTuple):
    """What `validate` measured: `document` for the manifest, the rest for the figures."""

    document: dict[str, Any]
    simulations: Simulations
    calibration: Calibration
    density_ranks: NDArray[np.float64]
    weighted: Weighted


def validate(
    artifact: Artifact,
    *,
    n_simulations: int = 10_000,
    n_samples: int = 1_000,
    n_importance: int = 200,
    seed: int = 90_000,
    progress: Progress = _ignore,
) -> Report:
    """Measure calibration with independent draws and with the published Sobol set, and sharpness.

    Args:
        artifact: see `load_artifact`.
        n_simulations: fresh simulations for the ranks.
        n_samples: independent posterior samples for each.
        n_importance: simulations weighed against the exact posterior, 10,000 draws each.
        seed: of the simulations; training used others.
        progress: called with the number of simulations done in each step.
    """
    simulations = simulate(artifact, n_simulations, seed=seed)
    independent = calibrate(
        artifact, simulations, n_samples=n_samples, independent=True, progress=progress
    )
    published = calibrate(
        artifact, simulations, n_samples=artifact.n_samples, independent=False, progress=progress
    )
    observation = simulations.observation.rows(slice(0, n_importance))
    weighted = weigh(artifact, forward_model(artifact), observation)
    efficiency = weighted.efficiency()
    ranks = _density_ranks(artifact, simulations, min(n_simulations, N_COVERAGE), seed)
    n_param = len(U_NAMES)
    document = {
        "n_simulations": n_simulations,
        "seed": seed,
        "n_samples": n_samples,
        "mean_negative_log_q": independent.loss,
        "mean_negative_log_prior": PRIOR_LOSS,
        "ks_distance_independent": independent.ks_distance(),
        "ks_distance_published_sobol": published.ks_distance(),
        "importance_efficiency": {
            "n_simulations": n_importance,
            "n_samples": 10_000,
            "median": float(np.median(efficiency)),
            "quantiles_16_84": np.quantile(efficiency, [0.16, 0.84]).tolist(),
        },
        "pooled": pooled(independent.ranks[:, :n_param]),
        "tarp_distance": ks_distance(independent.tarp),
        "expected_coverage": {"n_simulations": len(ranks), "distance": ks_distance(ranks)},
        "slices": slices(
            independent.ranks, independent.names, _slice_by(artifact, simulations.observation)
        ),
        "bias_and_width": bias_and_width(
            independent.truth, independent.quantiles, independent.names
        ),
    }
    reasons = failures(document)
    document |= {"passed": not reasons, "failures": reasons}
    return Report(document, simulations, independent, ranks, weighted)


def failures(document: dict[str, Any]) -> list[str]:
    """Why an artifact with this validation should not serve; empty where it should.

    The limits lie above what a good artifact shows: they catch a wrong one.
    """
    noise = 1.63 / np.sqrt(document["n_simulations"])
    limits = {
        "largest ks_distance_independent": (
            max(document["ks_distance_independent"].values()),
            MAX_KS_DISTANCE + noise,
        ),
        "tarp_distance": (document["tarp_distance"], MAX_KS_DISTANCE + noise),
    }
    reasons = [
        f"{name}: expected at most {limit:.3f}, got {value:.3f}"
        for name, (value, limit) in limits.items()
        if not value <= limit
    ]
    efficiency = document["importance_efficiency"]["median"]
    if not efficiency >= MIN_EFFICIENCY:
        reasons.append(
            f"median importance_efficiency: expected at least {MIN_EFFICIENCY}, "
            f"got {efficiency:.3g}"
        )
    return reasons


def _density_ranks(
    artifact: Artifact, simulations: Simulations, n: int, seed: int
) -> NDArray[np.float64]:
    """Credibility (n,) of the highest-density region that just holds the truth."""
    observation = simulations.observation.rows(slice(0, n))
    theta = sample(artifact, observation, N_COVERAGE_SAMPLES, seed + 1, independent=True)
    truth = simulations.theta[None, :n].astype(np.float32)
    log_q_truth = log_prob(artifact, truth, observation)[0]
    return density_ranks(log_prob(artifact, theta, observation), log_q_truth)


def _slice_by(artifact: Artifact, observation: Observation) -> dict[str, NDArray[np.float64]]:
    """Redshift, signal-to-noise of the middle band and a colour of each simulation."""
    bands = artifact.bands.names
    middle = len(bands) // 2
    mag = mag_from_nanomaggy(observation.flux)
    return {
        "redshift": observation.redshift,
        f"signal_to_noise_{bands[middle]}": (observation.flux / observation.flux_err)[:, middle],
        f"color_{bands[middle - 1]}-{bands[middle]}": mag[:, middle - 1] - mag[:, middle],
    }
