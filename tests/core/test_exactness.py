"""Distances from the exact posterior: in cases known by hand, and classifiers that see a shift."""

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact
from sedflow_core.exactness import (
    ClassifierTest,
    best_accuracy,
    classify,
    distances,
    median_error,
    summarise,
)
from sedflow_core.fresh_simulations import simulate
from sedflow_core.importance import Weighted

NO_TEST = np.empty(0)
"""p-values that nobody looks at."""

N = 100_000


def test_distances_are_those_of_two_normals() -> None:
    """Samples of N(0, 1) weighted to N(1/2, 1): KL = 1/8, total variation = 2 Phi(1/4) - 1."""
    x = np.random.default_rng(2).normal(size=(N, 1))
    weights = np.exp(0.5 * x)
    weights /= weights.sum()
    found = distances(Weighted(np.zeros((N, 1, 12), np.float32), weights, weights, NO_TEST))
    assert found["kl_exact_flow"]["median"] == pytest.approx(0.125, abs=0.005)
    expected = 2 * stats.norm.cdf(0.25) - 1
    assert found["total_variation"]["median"] == pytest.approx(expected, abs=0.005)
    assert found["median"] == pytest.approx(np.exp(-0.25), abs=0.01)
    assert found["pareto_k"]["median"] < 0.5


def test_the_error_of_a_median_is_that_of_many_medians() -> None:
    values = np.random.default_rng(3).exponential(size=(2_000, 400))
    medians = np.median(values, axis=1)
    errors = [median_error(row) for row in values[:200]]
    assert np.mean(errors) == pytest.approx(medians.std(), rel=0.1)


def test_equal_weights_are_no_distance() -> None:
    weights = np.full((1_000, 3), 1e-3)
    found = distances(Weighted(np.zeros((1_000, 3, 12), np.float32), weights, weights, NO_TEST))
    assert found["kl_exact_flow"]["median"] == pytest.approx(0.0, abs=1e-9)
    assert found["total_variation"]["median"] == pytest.approx(0.0, abs=1e-9)
    assert found["n_simulations"] == 3


def test_draws_without_weight_are_as_far_as_can_be() -> None:
    weights = np.zeros((1_000, 1))
    found = distances(Weighted(np.zeros((1_000, 1, 12), np.float32), weights, weights, NO_TEST))
    assert found["kl_exact_flow"]["median"] == np.inf
    assert (found["total_variation"]["median"], found["median"]) == (1.0, 0.0)


def test_classifiers_tell_an_untrained_flow_from_the_exact_posterior(tiny: Artifact) -> None:
    observation = simulate(tiny, 1, seed=5).observation
    result = classify(tiny, observation, n=600)
    assert 0.9 < result.exact < result.best + 0.03
    assert 0.4 < result.null < 0.6
    # Half a sigma in one of 11 dimensions: .60 at best.
    assert result.null + 0.02 < result.power < 0.65


def test_the_best_classifier_of_two_normals_is_right_by_their_overlap() -> None:
    """Of N(0, 1) and N(1/2, 1) it takes the nearer: Phi(1/4)."""
    x = torch.randn(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    accuracy = best_accuracy(torch.softmax(0.5 * x, dim=0))
    assert accuracy == pytest.approx(stats.norm.cdf(0.25), abs=0.003)


def test_the_summary_of_classifiers() -> None:
    tests = [ClassifierTest(0.5, 0.6, 0.5, 0.6, 1.0), ClassifierTest(0.7, 0.8, 0.5, 0.6, 0.9)]
    document = summarise(tests)
    assert document["exact"]["median"] == pytest.approx(0.6)
    assert document["exact"]["range"] == [0.5, 0.7]
    assert document["n_simulations"] == 2
