"""Of which galaxies the posteriors are wrong: the local classifier two-sample test (L-C2ST).

The flow takes the truth of a simulation to a base point, and if its posteriors are right, such
points are standard normal whatever the galaxy. A classifier learns to tell those of many
simulations, each with its galaxy's context beside it, from standard-normal points with the same
contexts (Linhart et al. 2023, https://arxiv.org/abs/2306.03580). How far its probabilities are from
one half at one galaxy, against those of classifiers that learned where there is nothing to tell,
makes the p-value of this galaxy's posterior, of which a single draw of the truth suffices.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.errors import MissingExtraError
from sedflow_core.fresh_simulations import Simulations
from sedflow_core.observation import to_context
from sedflow_core.prior import N_U, to_u
from sedflow_core.units import Array

N_NULL = 60
"""Classifiers of the null hypothesis; each is judged by all others, and the flow's by as many."""
SHIFT = 0.5
"""The control of power: every truth that much higher in one of the base's dimensions [sigma]."""
_LEVEL = 0.05
_N_EVALUATE = 1_000
_CLASSIFIER = {
    "hidden_layer_sizes": (64, 64),
    "early_stopping": True,
    "n_iter_no_change": 10,
    "alpha": 1.0,  # with less, what it learns of noise hides a shift of 0.2 sigma
}


class LocalTest(NamedTuple):
    """p-values of n galaxies' posteriors.

    One classifier judges all galaxies, so its p-values are not independent, and the share of them
    that is small scatters; by how much, `perfect` tells.

    Attributes:
        flow: (n,); power: (n,) were every truth shifted.
        perfect: (n_null, n) of each classifier of the null hypothesis against the others.
    """

    flow: Array
    power: Array
    perfect: Array


def classify_locally(
    artifact: Artifact,
    simulations: Simulations,
    n: int,
    *,
    n_null: int = N_NULL,
    seed: int = 0,
) -> LocalTest:
    """L-C2ST of the first n simulations, by classifiers that learn from all others.

    Raises:
        MissingExtraError: sbi is not installed.
    """
    try:
        from sbi.diagnostics.lc2st import LC2ST_NF
    except ImportError as error:
        raise MissingExtraError("sbi", "train") from error
    base, context = _base_points(artifact, simulations)
    shifted = base.clone()
    shifted[:, 0] += SHIFT
    p_values: list[Array] = []
    null, scores = None, np.empty((0, n))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        normal = torch.distributions.MultivariateNormal(torch.zeros(N_U), torch.eye(N_U))
        for points in (base, shifted):
            test = LC2ST_NF(
                points[n:],
                context[n:],
                normal.sample(torch.Size([len(points) - n])),
                flow_inverse_transform=lambda z, _: z,
                flow_base_dist=normal,
                num_eval=_N_EVALUATE,
                trained_clfs_null=null,
                num_trials_null=n_null,
                classifier_kwargs={**_CLASSIFIER, "random_state": seed},
            )
            test.train_on_observed_data(verbosity=0)
            if null is None:
                test.train_under_null_hypothesis(verbosity=0)
                null = test.trained_clfs_null
                galaxies = [test.get_statistics_under_null_hypothesis(x) for x in context[:n]]
                scores = np.stack([galaxy.scores for galaxy in galaxies], axis=1)
            score = np.array([test.get_statistic_on_observed_data(x) for x in context[:n]])
            p_values.append(_p_value(score, scores[:-1]))
    perfect = [_p_value(row, np.delete(scores, i, axis=0)) for i, row in enumerate(scores)]
    flow, power = p_values
    return LocalTest(flow, power, np.array(perfect))


def _p_value(score: Array, null: Array) -> Array:
    """Of scores (n,) among those of the null hypothesis (n_null, n)."""
    return np.asarray((1 + (null >= score).sum(axis=0)) / (1 + len(null)))


@torch.inference_mode()
def _base_points(artifact: Artifact, simulations: Simulations) -> tuple[Tensor, Tensor]:
    """Where the flow takes the truths (n, n_u), and the contexts (n, n_context)."""
    context = to_context(*simulations.observation.tensors(), artifact.scale)
    u = to_u(torch.tensor(simulations.theta)).float()
    base, _ = artifact.flow.to_base(u, context)
    return base, context


def rejection_rates(test: LocalTest) -> dict[str, Any]:
    """Share of the galaxies whose posterior is rejected, for the manifest."""
    flow, power, perfect = (np.mean(p <= _LEVEL, axis=-1) for p in test)
    return {
        "n_simulations": len(test.flow),
        "n_null": len(test.perfect),
        "level": _LEVEL,
        "power_shift": SHIFT,
        "flow": float(flow),
        "power": float(power),
        "perfect_16_84": np.quantile(perfect, [0.16, 0.84]).tolist(),
    }
