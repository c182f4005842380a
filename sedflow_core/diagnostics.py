"""Diagnostics of calibration on arrays alone: pooled ranks, slices, coverage, bias and widths."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedflow_core.units import Array


def ks_distance(ranks: Array) -> float:
    """Kolmogorov-Smirnov distance of ranks (n,) in (0, 1) from the uniform distribution."""
    ordered = np.sort(ranks)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def ks_p_value(distance: float, n: int) -> float:
    """Probability of a larger Kolmogorov-Smirnov distance of n uniform ranks (asymptotic)."""
    root = np.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * distance  # Stephens (1970)
    k = np.arange(1, 101)
    p = 2.0 * np.sum((-1.0) ** (k - 1) * np.exp(-2.0 * (k * scaled) ** 2))
    return float(np.clip(p, 0.0, 1.0)) if scaled > 0.2 else 1.0


def pooled(ranks: Array, n_sets: int = 10) -> dict[str, Any]:
    """KS distance and p-value of all ranks (n, n_name) together, and of disjoint sets of rows.

    Ranks of one galaxy depend on each other, so even a perfect posterior has p-values below
    uniform ones: the paper's figure, kept for comparison.
    """
    distance = ks_distance(ranks.ravel())
    sets = [part.ravel() for part in np.array_split(ranks, n_sets)]
    p_values = [ks_p_value(ks_distance(part), len(part)) for part in sets if len(part)]
    return {
        "ks_distance": distance,
        "p_value": ks_p_value(distance, ranks.size),
        "median_p_value_of_sets": float(np.median(p_values)),
        "n_per_set": len(ranks) // n_sets,
    }


def slices(
    ranks: Array, names: tuple[str, ...], by: dict[str, Array], n_slice: int = 3
) -> dict[str, list[dict[str, Any]]]:
    """Largest KS distance of ranks (n, n_name) in slices of equal number of each quantity (n,)."""
    result: dict[str, list[dict[str, Any]]] = {}
    for quantity, values in by.items():
        result[quantity] = []
        for rows in np.array_split(np.argsort(values), n_slice):
            distance = np.array([ks_distance(column) for column in ranks[rows].T])
            result[quantity].append(
                {
                    "range": [float(values[rows].min()), float(values[rows].max())],
                    "n": len(rows),
                    "max_ks_distance": float(distance.max()),
                    "of": names[int(distance.argmax())],
                }
            )
    return result


def tarp_levels(samples: Array, truth: Array, reference: Array) -> Array:
    """Credibility (n,) of the truth about a random reference (TARP; Lemos et al. 2023).

    The fraction of samples (n, n_sample, n_dim) nearer to the reference (n, n_dim) than the truth
    (n, n_dim) is; uniform for a calibrated posterior.
    """
    of_samples = np.linalg.norm(samples - reference[:, None], axis=-1)
    of_truth = np.linalg.norm(truth - reference, axis=-1)
    return np.asarray((of_samples < of_truth[:, None]).mean(axis=1))


def bias_and_width(
    truth: Array, quantiles: Array, names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Bias, scatter and widths of each quantity's posterior.

    Args:
        truth: (n, n_name); quantiles: (n, n_name, 3) at 16, 50 and 84 %.
        names: of the quantities.
    """
    low, median, high = np.moveaxis(quantiles, -1, 0)
    half_width = 0.5 * (high - low)
    change = median - truth
    inside = ((truth >= low) & (truth <= high)).mean(axis=0)
    spread = np.quantile(change, [0.16, 0.84], axis=0)
    return {
        name: {
            "median_bias": float(np.median(change[:, i])),
            "scatter": float(0.5 * (spread[1, i] - spread[0, i])),
            "median_half_width": float(np.median(half_width[:, i])),
            "inside_68": float(inside[i]),
        }
        for i, name in enumerate(names)
    }


def density_ranks(log_q: NDArray[Any], log_q_truth: NDArray[Any]) -> Array:
    """Credibility (n,) of the smallest highest-density region that holds the truth.

    log_q (n_sample, n) of samples and log_q_truth (n,); uniform for a calibrated posterior.
    """
    return np.asarray((log_q > log_q_truth).mean(axis=0))
