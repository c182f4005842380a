"""Another prior over the same parameters: the table's, weighted by the value of some quantities.

A file says which distribution a quantity, be it a parameter or derived, shall follow. The quantity
is cut into bins, and the weight of a bin is the mass that the wanted distribution has there over
the mass that the prior of `sedflow_core.prior` has. All else stays as it is, given the quantity. So
the weighted prior has the wanted distribution, bin by bin; with several quantities it is the
product of the weights, normalised, and each distribution is met as far as the quantities are
independent. A derived quantity has its distribution over all redshifts together, not at each.
Needs torch alone.
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core.errors import PriorError
from sedflow_core.prior import PARAM_NAMES
from sedflow_core.quantities import calc_quantities
from sedflow_core.sfh import DERIVED_NAMES, PopulationTables
from sedflow_core.units import Array

N_BIN = 100
"""Candidate bins of equal width, and as many of equal mass."""
MIN_MASS = 1e-3
"""Least mass of a bin under the prior of the table; thinner bins join their neighbour."""
MIN_INSIDE = 0.01
"""Least mass of a wanted distribution within the range that the quantity can take."""

Cdf = Callable[[Array], Array]


class Factor(NamedTuple):
    """Weight of the prior by the value of one quantity.

    Attributes:
        name: of a parameter or derived quantity.
        edges: (n_bin - 1,) ascending edges between the bins; the outer bins have no end.
        weight: (n_bin,) wanted mass over mass of the table's prior, of the last of several
            factors times what normalises their product; float64 like the edges.
    """

    name: str
    edges: Tensor
    weight: Tensor


def read_prior_file(path: Path) -> dict[str, dict[str, Any]]:
    """The wanted distribution of each quantity that a TOML file names.

    A table per quantity holds `distribution` and its numbers: "uniform" with `low` and `high`,
    "normal" with `mean` and `std`, "exponential" from 0 on with `mean`, "histogram" with n + 1
    `edges` and n `density`.

    Raises:
        PriorError: the file cannot be read, or a quantity or distribution is not one of these.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PriorError(f"{path}: expected a TOML file, got: {error}") from None
    known = PARAM_NAMES + DERIVED_NAMES
    for name, wanted in document.items():
        if name not in known:
            raise PriorError(f"{path}: expected quantities among {known}, got {name!r}")
        if not isinstance(wanted, dict):
            raise PriorError(f"{path}: {name}: expected a table [{name}], got {wanted!r}")
        _cdf(name, wanted)
    if not document:
        raise PriorError(f"{path}: expected at least one quantity, got none")
    return document


def _cdf(name: str, wanted: Mapping[str, Any]) -> Cdf:
    kind = wanted.get("distribution")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise PriorError(f"{name}: expected a distribution among {sorted(_FIELDS)}, got {kind!r}")
    if set(wanted) != {"distribution", *_FIELDS[kind]}:
        got = sorted(set(wanted) - {"distribution"})
        raise PriorError(f"{name}: expected {kind} with {list(_FIELDS[kind])}, got {got}")
    try:
        values = [np.asarray(wanted[field], dtype=np.float64) for field in _FIELDS[kind]]
    except (TypeError, ValueError):
        raise PriorError(f"{name}: expected numbers, got {dict(wanted)}") from None
    if not all(np.isfinite(v).all() for v in values):
        raise PriorError(f"{name}: expected finite numbers, got {dict(wanted)}")
    if kind == "normal":
        return _normal(name, *values)
    if kind == "exponential":
        return _exponential(name, *values)
    if kind == "histogram":
        return _histogram(name, *values)
    return _uniform(name, *values)


_FIELDS = {
    "uniform": ("low", "high"),
    "normal": ("mean", "std"),
    "exponential": ("mean",),
    "histogram": ("edges", "density"),
}


def _normal(name: str, mean: Array, std: Array) -> Cdf:
    if mean.ndim or std.ndim or std <= 0:
        raise PriorError(f"{name}: expected a positive std, got mean {mean} and std {std}")
    return lambda x: torch.special.ndtr(torch.as_tensor((x - mean) / std)).numpy()


def _exponential(name: str, mean: Array) -> Cdf:
    if mean.ndim or mean <= 0:
        raise PriorError(f"{name}: expected a positive mean, got {mean}")
    return lambda x: np.asarray(-np.expm1(-np.maximum(x, 0.0) / mean))


def _uniform(name: str, low: Array, high: Array) -> Cdf:
    if low.ndim or high.ndim or not low < high:
        raise PriorError(f"{name}: expected low < high, got low {low} and high {high}")
    return _histogram(name, np.stack([low, high]), np.ones(1))


def _histogram(name: str, edges: Array, density: Array) -> Cdf:
    if edges.ndim != 1 or density.shape != (len(edges) - 1,) or not (np.diff(edges) > 0).all():
        raise PriorError(
            f"{name}: expected ascending edges, one more than densities, got edges "
            f"{edges.tolist()} and {density.size} densities"
        )
    mass = density * np.diff(edges)
    if (density < 0).any() or not mass.sum() > 0:
        raise PriorError(f"{name}: expected densities above zero, got {density.tolist()}")
    cumulative = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
    return lambda x: np.asarray(np.interp(x, edges, cumulative))


def tabulate_prior(
    distributions: Mapping[str, Mapping[str, Any]],
    theta: Tensor,
    redshift: Tensor,
    tables: PopulationTables,
) -> list[dict[str, Any]]:
    """The factors of a new prior as a document of plain values, for manifests.

    Args:
        distributions: see `read_prior_file`.
        theta: (n, n_theta) draws from the table's prior at redshift (n,).
        tables: of the galaxy model.

    Raises:
        PriorError: a distribution lies outside the range that its quantity takes, or no draw is
            likely under all of them.
    """
    document: list[dict[str, Any]] = [
        {"name": name, **_tabulate(name, wanted, values), "wanted": dict(wanted)}
        for (name, wanted), values in zip(
            distributions.items(),
            calc_quantities(theta, redshift, tables, tuple(distributions)).T.numpy(),
            strict=True,
        )
    ]
    log_weight = log_prior_weight(parse_factors(document), theta, redshift, tables)
    mean = float(log_weight.exp().mean())
    if not mean > 0.0:
        raise PriorError(
            f"prior: expected distributions that a draw satisfies together, got "
            f"{', '.join(distributions)}"
        )
    document[-1]["weight"] = [weight / mean for weight in document[-1]["weight"]]
    return document


def _tabulate(name: str, wanted: Mapping[str, Any], values: Array) -> dict[str, list[float]]:
    cdf = _cdf(name, wanted)
    low, high = values.min(), values.max()
    outside, inside = cdf(low), cdf(high) - cdf(low)
    if not inside >= MIN_INSIDE:
        raise PriorError(
            f"{name}: expected a distribution within {low:.4g} to {high:.4g}, got {dict(wanted)}"
        )
    levels = np.linspace(0.0, 1.0, N_BIN + 1)[1:-1]
    lowest, highest = np.quantile(values, [1e-4, 1 - 1e-4])
    equal_width = np.linspace(lowest, highest, N_BIN + 1)
    own = [wanted.get(field, []) for field in ("low", "high", "edges")]
    wanted_edges = np.concatenate([*map(np.ravel, own)])
    others = np.unique(np.concatenate([np.quantile(values, levels), equal_width]))
    edges = _space(np.concatenate([wanted_edges, others]), values)
    mass = np.diff(_mass_below(edges, values), prepend=0.0, append=1.0)
    target = np.diff((cdf(edges) - outside) / inside, prepend=0.0, append=1.0)
    return {"edges": edges.tolist(), "weight": (target / mass).tolist()}


def _mass_below(edges: Array, values: Array) -> Array:
    return np.searchsorted(np.sort(values), edges) / len(values)


def _space(candidates: Array, values: Array) -> Array:
    """The candidate edges, first come first served, with MIN_MASS of the values in every bin."""
    kept: list[float] = []
    masses = np.array([0.0, 1.0])
    for edge, below in zip(candidates, _mass_below(candidates, values), strict=True):
        if np.abs(masses - below).min() >= MIN_MASS:
            kept.append(float(edge))
            masses = np.append(masses, below)
    return np.sort(kept)


def parse_factors(document: list[dict[str, Any]] | None) -> tuple[Factor, ...]:
    """The factors of a document that `tabulate_prior` made; none for None."""
    return tuple(
        Factor(
            part["name"],
            torch.tensor(part["edges"], dtype=torch.float64),
            torch.tensor(part["weight"], dtype=torch.float64),
        )
        for part in document or []
    )


def log_prior_weight(
    factors: tuple[Factor, ...], theta: Tensor, redshift: Tensor, tables: PopulationTables
) -> Tensor:
    """ln of the new prior over the table's: (n,), float64; 0 without factors.

    Args:
        factors: of the new prior.
        theta: (n, n_theta); redshift: (n,) or (1,).
        tables: of the galaxy model.
    """
    total = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
    if not factors:
        return total
    names = tuple(factor.name for factor in factors)
    quantities = calc_quantities(theta, redshift, tables, names).T.contiguous()
    for factor, values in zip(factors, quantities, strict=True):
        bins = torch.bucketize(values, factor.edges.to(values.device), right=True)
        total += factor.weight.to(values.device)[bins].log()
    return total


def accept(
    factors: tuple[Factor, ...],
    theta: Tensor,
    redshift: Tensor,
    tables: PopulationTables,
    generator: torch.Generator,
) -> Tensor:
    """Which draws (n,) from the table's prior to keep, so that they follow the new one."""
    largest = sum(float(factor.weight.max().log()) for factor in factors)
    log_weight = log_prior_weight(factors, theta, redshift, tables)
    chance = torch.rand(len(theta), generator=generator, dtype=torch.float64)
    return chance < torch.exp(log_weight - largest)
