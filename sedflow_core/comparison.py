"""The flow against the exact posterior, galaxy by galaxy: `sedflow compare`.

Two references, each with its own weakness. Weights turn the flow's own independent draws into the
exact posterior wherever the flow has draws at all; the walkers of `sedflow_core.mcmc` know nothing
of the flow, but take seconds a galaxy. Both are of the generative model, noise included.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sedflow_core.artifact import Artifact
from sedflow_core.chains import MIN_ESS
from sedflow_core.estimation import estimate
from sedflow_core.exactness import HEAVY_TAIL, divergences
from sedflow_core.importance import Weighted, weigh, weighted_quantile
from sedflow_core.mcmc import ExactPosterior, sample_exact
from sedflow_core.observation import Observation
from sedflow_core.prior import PARAM_NAMES
from sedflow_core.quantities import calc_quantities
from sedflow_core.simulation import ForwardModel
from sedflow_core.summary import LEVEL_NAMES, LEVELS
from sedflow_core.trust import fit_pareto_k
from sedflow_core.units import Array

BOUNDS = {name: 0.1 if name == "log_mstar" else 0.15 for name in PARAM_NAMES}
"""Largest accepted median of |difference of medians| [posterior sigma]."""
LOW_EFFICIENCY = 0.01
FAR = 0.3
"""A difference of medians that calls for a reason [posterior sigma]."""


class Difference(NamedTuple):
    """One galaxy's posterior by the flow, against the exact one.

    Attributes:
        by_weights: (12,) flow's median minus exact median, in exact standard deviations; infinite
            where no draw has a weight. by_mcmc: the same by MCMC, NaN where it was not run.
        gaussian: (12,) shift of the exact median by the paper's Gaussian likelihood, likewise.
        exact: (n_name, 5) quantiles of the exact posterior by weights at `LEVELS`, of all that is
            published; NaN where no draw has a weight.
        efficiency, pareto_k, kl_exact_flow, total_variation: of the weights.
        r_hat, ess, seconds, correction: of the walkers, see `sedflow_core.mcmc`; NaN likewise.
        converged: whether MCMC, if it was run, reached the exact posterior.
        reasons: why the galaxy may lie outside the support; empty inside.
    """

    by_weights: Array
    by_mcmc: Array
    gaussian: Array
    exact: Array
    efficiency: float
    pareto_k: float
    kl_exact_flow: float
    total_variation: float
    r_hat: float
    ess: float
    seconds: float
    correction: float
    converged: bool
    reasons: tuple[str, ...]

    def explain(self) -> str:
        """Why the flow is far from the exact posterior, as far as it can be told."""
        if self.reasons:
            return "outside the support: " + ", ".join(self.reasons)
        if not self.converged:
            return (
                f"walkers not converged: R-hat {self.r_hat:.3f}, {self.ess:.0f} effective samples, "
                f"efficiency of the emulator's correction {self.correction:.2f}"
            )
        if self.efficiency < LOW_EFFICIENCY:
            return f"the flow misses the posterior: efficiency {self.efficiency:.4f}"
        if self.pareto_k > HEAVY_TAIL:
            return f"weights with a heavy tail: Pareto k {self.pareto_k:.2f}"
        return "the flow's own bias"


def compare(
    artifact: Artifact,
    model: ForwardModel,
    observation: Observation,
    *,
    n_draws: int,
    n_mcmc: int,
    max_seconds: float,
    seed: int,
) -> Iterator[Difference]:
    """Compare galaxy by galaxy, in order.

    Args:
        artifact: see `load_artifact`.
        model: its forward model.
        observation: n galaxies with finite photometry.
        n_draws: of the flow, independent, for the weights.
        n_mcmc: galaxies, from the first, to sample by MCMC too, for at most `max_seconds` each.
        seed: of draws and walkers.
    """
    for i in range(len(observation)):
        galaxy = observation.rows(slice(i, i + 1))
        weighted = weigh(artifact, model, galaxy, n_samples=n_draws, seed=seed + i)
        exact = None
        if i < n_mcmc:
            exact = sample_exact(
                artifact, galaxy, model=model, max_seconds=max_seconds, seed=seed + i
            )
        yield difference(artifact, galaxy, weighted, exact)


def difference(
    artifact: Artifact, galaxy: Observation, weighted: Weighted, exact: ExactPosterior | None
) -> Difference:
    """Compare the published posterior of one galaxy with weighted draws, and with MCMC."""
    summary = estimate(artifact, galaxy, include_unsupported=True)
    columns = [summary.names.index(name) for name in PARAM_NAMES]
    published = summary.quantiles[0, columns, summary.levels.index(0.5)]
    draws = weighted.theta[:, 0].astype(np.float64)
    median, width = _weighted_moments(draws, weighted.weights[:, 0])
    gaussian, _ = _weighted_moments(draws, weighted.gaussian_weights[:, 0])
    nothing, chains = float("nan"), None if exact is None else exact.chains
    by_weights, by_mcmc, shift = (
        np.full(len(PARAM_NAMES), value) for value in (np.inf, np.nan, np.inf)
    )
    if weighted.weights.any():
        by_weights = (published - median) / width
        if weighted.gaussian_weights.any():
            shift = (gaussian - median) / width
    kl, total_variation = divergences(weighted.weights)
    if exact is not None:
        theta = exact.theta().astype(np.float64)
        by_mcmc = (published - np.median(theta, axis=0)) / theta.std(axis=0)
    return Difference(
        by_weights=by_weights,
        by_mcmc=by_mcmc,
        gaussian=shift,
        exact=_exact_quantiles(artifact, galaxy, weighted),
        efficiency=float(weighted.efficiency()[0]),
        pareto_k=float(fit_pareto_k(torch.tensor(weighted.weights[:, 0]).log())),
        kl_exact_flow=float(kl[0]),
        total_variation=float(total_variation[0]),
        r_hat=nothing if chains is None else float(chains.r_hat.max()),
        ess=nothing if chains is None else float(chains.ess.min()),
        seconds=nothing if chains is None else chains.seconds,
        correction=nothing if exact is None else exact.correction,
        converged=exact is None or exact.converged(MIN_ESS),
        reasons=tuple(summary.reasons(0)),
    )


def _exact_quantiles(artifact: Artifact, galaxy: Observation, weighted: Weighted) -> Array:
    names = artifact.param_names + artifact.derived_names
    weights = weighted.weights[:, 0]
    if not weights.any():
        return np.full((len(names), len(LEVELS)), np.nan)
    theta, redshift = torch.tensor(weighted.theta[:, 0]), torch.tensor(galaxy.redshift)
    values = calc_quantities(theta, redshift, artifact.tables, names).numpy()
    of_every = np.broadcast_to(weights[:, None], values.shape)
    return np.stack([weighted_quantile(values, of_every, level) for level in LEVELS], axis=-1)


def _weighted_moments(draws: Array, weights: Array) -> tuple[Array, Array]:
    """Median and standard deviation (n_theta,) of draws (n, n_theta) with weights (n,)."""
    of_every = np.broadcast_to(weights[:, None], draws.shape)
    mean = weights @ draws
    spread = np.sqrt(weights @ (draws - mean) ** 2)
    return weighted_quantile(draws, of_every, 0.5), np.maximum(spread, np.finfo(float).tiny)


def table(differences: Sequence[Difference]) -> list[dict[str, str | float | bool]]:
    """One row per parameter: median |difference| by each reference, its bound, and whether held."""
    by_weights = np.median(np.abs([d.by_weights for d in differences]), axis=0)
    walked = [d.by_mcmc for d in differences if d.converged and not np.isnan(d.r_hat)]
    by_mcmc = np.median(np.abs(walked or [np.full(len(PARAM_NAMES), np.nan)]), axis=0)
    gaussian = np.median(np.abs([d.gaussian for d in differences]), axis=0)
    return [
        {
            "parameter": name,
            "by_weights": float(by_weights[i]),
            "by_mcmc": float(by_mcmc[i]),
            "bound": BOUNDS[name],
            # NaN, where no MCMC converged, is beyond nothing.
            "held": not max(by_weights[i], np.nan_to_num(by_mcmc[i])) > BOUNDS[name],
            "gaussian_shift": float(gaussian[i]),
        }
        for i, name in enumerate(PARAM_NAMES)
    ]


def per_galaxy(differences: Sequence[Difference], names: Sequence[str]) -> dict[str, Array]:
    """Columns (n,) of all galaxies: differences, diagnostics, exact quantiles of `names`."""
    weights = ("efficiency", "pareto_k", "kl_exact_flow", "total_variation")
    scalars = (*weights, "r_hat", "ess", "seconds", "correction")
    columns = {name: np.array([getattr(d, name) for d in differences]) for name in scalars}
    for kind in ("by_weights", "by_mcmc", "gaussian"):
        values = np.array([getattr(d, kind) for d in differences])
        columns |= {f"{kind}_{name}": values[:, i] for i, name in enumerate(PARAM_NAMES)}
    exact = np.array([d.exact for d in differences])
    for i, name in enumerate(names):
        for j, level in enumerate(LEVEL_NAMES):
            columns[f"exact_{name}_{level}"] = exact[:, i, j]
    reasons = np.array([" ".join(d.reasons) for d in differences])
    return columns | {"reasons": reasons, "why": np.array([why(d) for d in differences])}


def why(of: Difference) -> str:
    """The reason of the largest difference where it is far, else nothing."""
    name, size = worst(of)
    return f"{name} {size:+.2f}: {of.explain()}" if abs(size) > FAR else ""


def worst(of: Difference) -> tuple[str, float]:
    """The parameter with the largest difference, by MCMC where that was run, and its size."""
    values = of.by_weights if np.isnan(of.r_hat) else of.by_mcmc
    at = int(np.abs(values).argmax())
    return PARAM_NAMES[at], float(values[at])
