"""Posterior samples -> quantiles, mean, standard deviation, covariance, probabilities."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.prior import N_THETA
from sedflow_core.support import reasons_of
from sedflow_core.units import Array

LEVELS: tuple[float, ...] = (0.025, 0.16, 0.5, 0.84, 0.975)
LEVEL_NAMES = ("q025", "q16", "q50", "q84", "q975")

SCORE_WIDTH = 0.12
"""Width in normal score over which samples make up a quantile, as a standard deviation."""

EVENTS: dict[str, tuple[str, float, int]] = {
    "log_mstar_surviving_above_10": ("log_mstar_surviving", 10.0, 1),
    "quiescent": ("log_ssfr_1gyr", -11.0, -1),
}
"""Published probabilities: name -> (quantity, threshold, +1 above or -1 below). The mass is the
step in the luminosities of type Ia supernovae; quiescent is log sSFR < -11 / yr."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Posterior summaries of n galaxies, in the order they came in.

    Attributes:
        names: the 12 parameters, then the derived quantities.
        levels: the quantile levels.
        quantiles: (n, n_name, n_level); mean, std: (n, n_name).
        covariance: (n, 12, 12) of the parameters.
        probabilities: event name -> (n,).
        flags: (n,) int64 support flags, 0 inside.
        flag_names: name of each flag bit.
        n_samples, seed: of the posterior samples.
        trust: judgement -> (n,), the fields of `sedflow_core.trust.Trust`; empty where the artifact
            cannot judge.
        prior_width: (n_name,) half of the 16-84 % range under the prior; NaN where not known.

    Rows without a posterior are NaN; `reasons` says why.
    """

    names: tuple[str, ...]
    levels: tuple[float, ...]
    quantiles: Array
    mean: Array
    std: Array
    covariance: Array
    probabilities: dict[str, Array]
    flags: NDArray[np.int64]
    flag_names: tuple[str, ...]
    n_samples: int
    seed: int
    trust: dict[str, Array]
    prior_width: Array

    def __len__(self) -> int:
        return len(self.flags)

    def reasons(self, i: int) -> list[str]:
        """Names of the support flags of row i."""
        return reasons_of(int(self.flags[i]), self.flag_names)

    def quantile(self, name: str, level: float) -> Array:
        """One quantile of one quantity: (n,)."""
        return self.quantiles[:, self.names.index(name), self.levels.index(level)]

    def constraint(self) -> Array:
        """Width of the posterior over that of the prior (n, n_name); near 1 nothing was learnt."""
        low, high = self.levels.index(0.16), self.levels.index(0.84)
        width = self.quantiles[..., high] - self.quantiles[..., low]
        return np.asarray(0.5 * width / self.prior_width)


def empty_summary(
    names: tuple[str, ...],
    flags: NDArray[np.int64],
    flag_names: tuple[str, ...],
    *,
    n_samples: int,
    seed: int,
    judgements: tuple[str, ...] = (),
    prior_width: Array | None = None,
) -> Summary:
    """A summary of len(flags) rows that are all NaN."""
    n, n_name = len(flags), len(names)
    return Summary(
        names=names,
        levels=LEVELS,
        quantiles=np.full((n, n_name, len(LEVELS)), np.nan),
        mean=np.full((n, n_name), np.nan),
        std=np.full((n, n_name), np.nan),
        covariance=np.full((n, N_THETA, N_THETA), np.nan),
        probabilities={
            event: np.full(n, np.nan) for event, (name, _, _) in EVENTS.items() if name in names
        },
        flags=flags,
        flag_names=flag_names,
        n_samples=n_samples,
        seed=seed,
        trust={name: np.full(n, np.nan) for name in judgements},
        prior_width=np.full(n_name, np.nan) if prior_width is None else prior_width,
    )


def fill_rows(summary: Summary, rows: NDArray[np.int64], samples: Tensor) -> None:
    """Summarise samples (n_row, n_name, n_sample) of galaxies into rows (n_row,)."""
    ordered = _ascending(samples)
    mean = samples.mean(dim=-1, keepdim=True)
    centred = samples - mean
    covariance = centred @ centred.mT / samples.shape[-1]
    values = {
        "quantiles": quantiles(ordered, summary.levels),
        "mean": mean[..., 0],
        "std": covariance.diagonal(dim1=-2, dim2=-1).sqrt(),
        "covariance": covariance[:, :N_THETA, :N_THETA],
    }
    for name, of_galaxies in values.items():
        getattr(summary, name)[rows] = of_galaxies.cpu().numpy()
    for event, probability in summary.probabilities.items():
        name, threshold, sign = EVENTS[event]
        beyond = sign * (ordered[:, summary.names.index(name)] - threshold) > 0
        probability[rows] = beyond.double().mean(dim=-1).cpu().numpy()


def _ascending(samples: Tensor) -> Tensor:
    """Samples (..., n_sample) in ascending order."""
    if samples.is_cuda:
        return samples.sort(dim=-1).values
    return torch.from_numpy(np.sort(samples.numpy(), axis=-1))  # faster than torch's


def quantiles(ordered: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles (..., n_level), float64, of ascending samples (..., n_sample).

    Samples of a normal distribution lie on a line against their normal scores (a probability plot).
    A line fitted to the samples near a level gives the quantile with less variance than the sample
    at that level alone, for any density that is smooth over `SCORE_WIDTH`.
    """
    weights = _sample_weights(ordered.shape[-1], levels, ordered.device)
    values = ordered.double() @ weights
    within: Tensor = values.clamp(ordered[..., :1].double(), ordered[..., -1:].double())
    return within


@lru_cache
def _sample_weights(n_samples: int, levels: tuple[float, ...], device: torch.device) -> Tensor:
    """Weights (n_sample, n_level) with which ascending samples add up to quantiles."""
    ranks = (torch.arange(n_samples, dtype=torch.float64) + 0.5) / n_samples
    level = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
    distance = torch.special.ndtri(ranks) - level[:, None]
    spacing = (0.5 * level.square()).exp() * (2.0 * torch.pi) ** 0.5 / n_samples
    width = spacing.clamp_min(SCORE_WIDTH)[:, None]
    kernel = torch.softmax(-0.5 * (distance / width).square(), dim=1)
    mean = (kernel * distance).sum(dim=1, keepdim=True)
    variance = (kernel * (distance - mean).square()).sum(dim=1, keepdim=True)
    variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)  # of a single sample
    weights: Tensor = kernel * (1.0 - mean * (distance - mean) / variance)
    return weights.T.contiguous().to(device)
