"""Diagnostics of calibration on arrays alone: pooled ranks, slices, coverage, bias and widths."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sedflow_core.units import Array

N_SETS, N_PER_SET = 10, 1_000
"""Disjoint sets of rows whose ranks are pooled, and rows of each, fewer where there are few."""
N_SLICE = 3


def ks_distance(ranks: Array) -> float:
    """Kolmogorov-Smirnov distance of ranks (n,) in (0, 1) from the uniform distribution."""
    ordered = np.sort(ranks)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def expected_ks_distance(n: int) -> float:
    """Mean Kolmogorov-Smirnov distance of n uniform ranks (asymptotic)."""
    return float(np.sqrt(0.5 * np.pi / n) * np.log(2.0))


def ks_p_value(distance: float, n: int) -> float:
    """Probability of a larger Kolmogorov-Smirnov distance of n uniform ranks (asymptotic)."""
    root = np.sqrt(n)
    scaled = (root + 0.12 + 0.11 / root) * distance  # Stephens (1970)
    k = np.arange(1, 101)
    p = 2.0 * np.sum((-1.0) ** (k - 1) * np.exp(-2.0 * (k * scaled) ** 2))
    return float(np.clip(p, 0.0, 1.0)) if scaled > 0.2 else 1.0


def pooled(ranks: Array, control: Array) -> dict[str, Any]:
    """KS distance and p-value of all ranks (n, n_name) together, and of disjoint sets of rows.

    Ranks of one galaxy depend on each other, so even a perfect posterior has p-values below
    uniform ones. This is the figure of the paper's public notebooks; `perfect` is that of control
    (n, n_control, n_name), whose ranks are those of a perfect posterior on the same galaxies.
    """
    n_per_set = min(N_PER_SET, max(1, len(ranks) // N_SETS))
    sets = _p_values(ranks, n_per_set)
    perfect = [_p_values(column, n_per_set) for column in control.swapaxes(0, 1)]
    distance = ks_distance(ranks.ravel())
    low, high = np.quantile(perfect, [0.16, 0.84])
    return {
        "ks_distance": distance,
        "p_value": ks_p_value(distance, ranks.size),
        "median_p_value_of_sets": float(np.median(sets)),
        "p_values_of_sets": sets,
        "n_per_set": n_per_set,
        "perfect": {
            "ks_distance": float(
                np.median([ks_distance(c.ravel()) for c in control.swapaxes(0, 1)])
            ),
            "median_p_value_of_sets": float(np.median([np.median(p) for p in perfect])),
            "p_values_16_84": [float(low), float(high)],
        },
    }


def _p_values(ranks: Array, n_per_set: int) -> list[float]:
    sets = [ranks[i * n_per_set : (i + 1) * n_per_set].ravel() for i in range(N_SETS)]
    return [ks_p_value(ks_distance(part), len(part)) for part in sets if len(part)]


def slices(
    ranks: Array, names: tuple[str, ...], by: dict[str, Array]
) -> dict[str, list[dict[str, Any]]]:
    """KS distances of ranks (n, n_name) in slices of equal number of each quantity (n,).

    `noise` is what one distance of a perfect posterior exceeds in 1 % of cases.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    for quantity, values in by.items():
        result[quantity] = []
        for ends, rows in cut(values, N_SLICE):
            distance = {
                name: ks_distance(column) for name, column in zip(names, ranks[rows].T, strict=True)
            }
            largest = max(distance, key=lambda name: distance[name])
            result[quantity].append(
                {
                    "range": ends,
                    "n": len(rows),
                    "noise": noise_bound(len(rows)),
                    "max_ks_distance": distance[largest],
                    "of": largest,
                    "ks_distance": distance,
                }
            )
    return result


def cut(values: Array, n_slice: int) -> Iterator[tuple[list[float], NDArray[np.intp]]]:
    """Smallest and largest of values (n,), and the rows, of slices of equal number."""
    for rows in np.array_split(np.argsort(values), n_slice):
        yield [float(values[rows[0]]), float(values[rows[-1]])], rows


def noise_bound(n: int) -> float:
    """Distance that 1 % of the KS distances of n uniform ranks exceed."""
    return KS_99 / float(np.sqrt(n))


KS_99 = 1.63


def central_levels(ranks: Array) -> Array:
    """Credibility of the central interval that just holds the truth, of ranks in (0, 1)."""
    return np.asarray(np.abs(2.0 * ranks - 1.0))


def tarp_levels(samples: Array, truth: Array, reference: Array) -> Array:
    """Credibility (n,) of the truth about a random reference (TARP; Lemos et al. 2023).

    The fraction of samples (n, n_sample, n_dim) nearer to the reference (n, n_dim) than the truth
    (n, n_dim) is; uniform for a calibrated posterior.
    """
    of_samples = np.linalg.norm(samples - reference[:, None], axis=-1)
    of_truth = np.linalg.norm(truth - reference, axis=-1)
    return np.asarray((of_samples < of_truth[:, None]).mean(axis=1))


def density_ranks(log_q: NDArray[Any], log_q_truth: NDArray[Any]) -> Array:
    """Credibility (n,) of the smallest highest-density region that holds the truth.

    log_q (n_sample, n) of samples and log_q_truth (n,); uniform for a calibrated posterior.
    """
    return np.asarray((log_q > log_q_truth).mean(axis=0))


def bias_and_width(
    truth: Array, quantiles: Array, names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Bias, scatter and widths of each quantity's posterior, and how many truths lie inside.

    Args:
        truth: (n, n_name); quantiles: (n, n_name, 5) at 2.5, 16, 50, 84 and 97.5 %.
        names: of the quantities.
    """
    lowest, low, median, high, highest = np.moveaxis(quantiles, -1, 0)
    half_width = 0.5 * (high - low)
    change = median - truth
    inside = {
        "inside_68": (truth >= low) & (truth <= high),
        "inside_95": (truth >= lowest) & (truth <= highest),
    }
    spread = np.quantile(change, [0.16, 0.84], axis=0)
    return {
        name: {
            "median_bias": float(np.median(change[:, i])),
            "scatter": float(0.5 * (spread[1, i] - spread[0, i])),
            "median_half_width": float(np.median(half_width[:, i])),
            **{level: float(is_inside[:, i].mean()) for level, is_inside in inside.items()},
        }
        for i, name in enumerate(names)
    }
