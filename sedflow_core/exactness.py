"""How far a flow is from the exact posterior: distances from weights, and classifiers.

The weights of independent flow samples against the exact posterior give its Kullback-Leibler
divergence and total variation from the flow. A classifier asked to tell samples of the two apart
(C2ST; Lopez-Paz & Oquab 2017) needs no density: .5 where it cannot, 1 where it always can.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.errors import MissingExtraError
from sedflow_core.importance import Weighted
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, U_NAMES
from sedflow_core.sampling import sample_one
from sedflow_core.simulation import stream_generator
from sedflow_core.target import GalaxyTarget
from sedflow_core.trust import fit_pareto_k
from sedflow_core.units import Array

N_PER_CLASS = 5_000
POOL = 40
"""Flow samples for every exact draw taken from them by weight."""
POWER_NAME, POWER_SHIFT = "n_dust", 0.5
"""The control of power: a parameter, and its shift [posterior sigma in u]. Were it independent of
the others, the best classifier would be right in .60 of cases; of the mass, which is not, in .94.
"""
HEAVY_TAIL = 0.7
_CLASSIFIER = {
    "hidden_layer_sizes": (128, 128),
    "batch_size": 500,
    "early_stopping": True,
    "max_iter": 200,
}


def distances(weighted: Weighted) -> dict[str, Any]:
    """Importance efficiency, KL(exact || flow), total variation and Pareto k over the galaxies."""
    n = len(weighted.weights)
    kl, total_variation = divergences(weighted.weights)
    log_weight = torch.tensor(weighted.weights).log()
    # Where too few samples have a weight for a fit, the tail is as heavy as can be.
    pareto_k = np.nan_to_num(fit_pareto_k(log_weight.T).numpy(), nan=1.0)
    return {
        "n_simulations": weighted.weights.shape[1],
        "n_samples": n,
        "by": "simulator",
        **_quantiles(weighted.efficiency()),
        "kl_exact_flow": _quantiles(kl),
        "total_variation": _quantiles(total_variation),
        "pareto_k": _quantiles(pareto_k) | {"above_0.7": float(np.mean(pareto_k > HEAVY_TAIL))},
    }


def divergences(weights: Array) -> tuple[Array, Array]:
    """KL(exact || flow) and total variation (n,) of n galaxies with weights (n_sample, n).

    Where no sample has a weight, flow and exact posterior have nothing in common.
    """
    n = len(weights)
    kl = (weights * np.log(n * weights, where=weights > 0, out=np.zeros_like(weights))).sum(axis=0)
    total_variation = 0.5 * np.abs(weights - 1.0 / n).sum(axis=0)
    met = weights.any(axis=0)
    return np.where(met, kl, np.inf), np.where(met, total_variation, 1.0)


def _quantiles(values: Array) -> dict[str, Any]:
    low, median, high = np.quantile(values, [0.16, 0.5, 0.84], method="nearest")
    return {
        "median": float(median),
        "median_error": median_error(values),
        "quantiles_16_84": [float(low), float(high)],
    }


def median_error(values: Array) -> float:
    """Standard error of the median of values (n,): half of what lies within sqrt(n) / 2 places."""
    step = 0.5 / np.sqrt(len(values))
    low, high = np.quantile(values, [0.5 - step, 0.5 + step], method="nearest")
    return float(0.5 * (high - low)) if low < high else 0.0


class ClassifierTest(NamedTuple):
    """Accuracies of classifiers on the samples of one galaxy.

    Attributes:
        exact: flow against exact posterior; best: what no classifier can exceed there, which is
            (1 + total variation) / 2, by the weights.
        null: flow against flow; power: flow against flow with `POWER_NAME` shifted.
        distinct: fraction of the exact draws that are different points.
    """

    exact: float
    best: float
    null: float
    power: float
    distinct: float


def classify(
    artifact: Artifact,
    observation: Observation,
    *,
    n: int = N_PER_CLASS,
    seed: int = 0,
) -> ClassifierTest:
    """C2ST in u of one galaxy, n independent draws against n, by five-fold cross-validation.

    The exact draws are taken by weight, from the emulator that the artifact carries, out of `POOL`
    times as many flow samples, so that hardly any point comes twice.

    Raises:
        ArtifactError: the artifact carries no emulator.
        MissingExtraError: sbi is not installed.
    """
    generator, target = stream_generator(seed, 0), GalaxyTarget(artifact, observation)

    def flow() -> tuple[Tensor, Tensor]:
        """n draws, and ln exact posterior / flow at each."""
        base = torch.randn((N_U, n), generator=generator)
        u, log_q, _ = sample_one(artifact, observation, base)
        return u, target.log_density(u.double()) - log_q.double()

    with torch.inference_mode():
        pool = [flow() for _ in range(POOL)]
        u, log_weight = (torch.cat(parts) for parts in zip(*pool, strict=True))
        weight = torch.softmax(log_weight, dim=0)
        index = torch.multinomial(weight, n, replacement=True, generator=generator)
        exact = u[index]
        first, second = flow()[0], flow()[0]
        shifted = second.clone()
        column = U_NAMES.index(POWER_NAME)
        shifted[:, column] += POWER_SHIFT * second[:, column].std()
    return ClassifierTest(
        exact=_c2st(first, exact, seed),
        best=best_accuracy(weight),
        null=_c2st(first, second, seed),
        power=_c2st(first, shifted, seed),
        distinct=len(index.unique()) / n,
    )


def best_accuracy(weight: Tensor) -> float:
    """Of a classifier that knows both densities, from weights (n,) of draws of the first."""
    return float(0.5 + 0.25 * (len(weight) * weight - 1.0).abs().mean())


def _c2st(first: Tensor, second: Tensor, seed: int) -> float:
    try:
        from sbi.utils.metrics import c2st
    except ImportError as error:
        raise MissingExtraError("sbi", "train") from error
    accuracy = c2st(first, second, seed=seed + 1, classifier="mlp", classifier_kwargs=_CLASSIFIER)
    return float(accuracy)


def summarise(tests: list[ClassifierTest]) -> dict[str, Any]:
    """Median and range of the accuracies, for the manifest."""
    columns: dict[str, NDArray[np.float64]] = {
        name: np.array(values)
        for name, values in zip(ClassifierTest._fields, zip(*tests, strict=True), strict=True)
    }
    return {
        "n_simulations": len(tests),
        "n_per_class": N_PER_CLASS,
        "by": "emulator",
        "power_shift": {POWER_NAME: POWER_SHIFT},
        **{
            name: {
                "median": float(np.median(values)),
                "range": [float(values.min()), float(values.max())],
            }
            for name, values in columns.items()
        },
    }
