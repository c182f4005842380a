"""Calibration and sharpness of an artifact on fresh simulations of its own forward model.

Calibration: the rank of the truth among the posterior samples is uniform for a perfect posterior
(Talts et al. 2018); its distance from uniform is the Kolmogorov-Smirnov statistic. Sharpness: the
mean -ln q of the truth, and the importance efficiency against the exact posterior.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.estimation import log_prob, sample
from sedflow_core.importance import weigh
from sedflow_core.prior import N_U, U_NAMES, to_u
from sedflow_core.sfh import calc_derived
from sedflow_core.simulated import Simulations, forward_model, simulate

_CHUNK = 64
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
        loss: mean -ln q(u | context) of the truth.
    """

    names: tuple[str, ...]
    ranks: NDArray[np.float64]
    loss: float

    def ks_distance(self) -> dict[str, float]:
        """Kolmogorov-Smirnov distance of each quantity's ranks from uniform."""
        return {
            name: ks_distance(ranks) for name, ranks in zip(self.names, self.ranks.T, strict=True)
        }


def ks_distance(ranks: NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov distance of ranks (n,) in (0, 1) from the uniform distribution."""
    ordered = np.sort(ranks)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


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
    ranks = []
    n = len(simulations.observation)
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
        ranks.append(_ranks(artifact, part, torch.tensor(theta).transpose(0, 1)))
        progress(rows.stop - rows.start)
    truth = simulations.theta[None].astype(np.float32)
    loss = -float(log_prob(artifact, truth, simulations.observation).mean())
    return Calibration(U_NAMES + artifact.derived_names, np.concatenate(ranks), loss)


def _ranks(artifact: Artifact, simulations: Simulations, theta: Tensor) -> NDArray[np.float64]:
    """Ranks (n, n_name) of the truth among samples theta (n, n_sample, 12)."""
    redshift = torch.tensor(simulations.observation.redshift)
    derived = calc_derived(theta, redshift, artifact.tables, artifact.derived_names)
    samples = torch.cat([to_u(theta.double()), derived.double()], dim=-1)
    truth = torch.cat(
        [
            to_u(torch.tensor(simulations.theta)),
            torch.tensor(simulations.derived).double(),
        ],
        dim=-1,
    )
    # Half the ties count as below: quantities with a floor or a shared zero stay uniform.
    below = (samples < truth[:, None]).double().sum(dim=1)
    ties = (samples == truth[:, None]).double().sum(dim=1)
    return ((below + 0.5 * ties + 0.5) / (theta.shape[1] + 1)).numpy()


class Report(NamedTuple):
    """What `validate` measured: `document` for the manifest, ranks for the figure."""

    document: dict[str, Any]
    calibration: Calibration


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
    efficiency = weigh(artifact, forward_model(artifact), observation).efficiency()
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
    }
    return Report(document, independent)
