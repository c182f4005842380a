"""What a better network could gain: for two normals, and beside the weights of flow samples."""

import numpy as np
import pytest
import torch

from sedflow_core import Artifact
from sedflow_core.exactness import divergences
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.gap import gap, measure_gaps, summarise_gaps
from sedflow_core.importance import weigh


def test_the_gap_between_two_normals_is_their_divergence() -> None:
    """Truths of N(0, 1), samples of N(1/2, 1): KL = 1/8, whatever the evidence."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((4_000, 401), generator=generator, dtype=torch.float64)
    x[:, 1:] += 0.5
    log_weight = -0.5 * x.square() + 0.5 * (x - 0.5).square() + 7.0
    gaps = np.array([gap(row) for row in log_weight])
    truth = x[:, 0].numpy()
    found = summarise_gaps(gaps, {"x": truth})
    assert found["mean"] == pytest.approx(0.125, abs=0.03)
    assert found["error"] == pytest.approx(0.5 / 4_000**0.5, rel=0.1)
    # ln p - ln q at x is 1/8 - x/2: a slice knows where its truths lie.
    parts = found["slices"]["x"]
    assert [part["n_simulations"] for part in parts] == [800] * 5
    assert parts[0]["range"][0] == truth.min()
    assert parts[-1]["range"][1] == truth.max()
    for part in parts:
        low, high = part["range"]
        mean = truth[(truth >= low) & (truth <= high)].mean()
        assert part["mean"] == pytest.approx(0.125 - 0.5 * mean, abs=0.03)


def test_samples_where_there_is_no_posterior_count_as_none() -> None:
    log_weight = torch.tensor([0.0, 0.0, -torch.inf, torch.nan, 0.0], dtype=torch.float64)
    assert gap(log_weight) == pytest.approx(np.log(2.0))
    assert gap(torch.tensor([0.0, -torch.inf, -torch.inf])) == np.inf


def test_truths_and_weights_agree_on_the_divergence(shipped: Artifact) -> None:
    simulations, model = simulate(shipped, 150, seed=35), forward_model(shipped)
    gaps = measure_gaps(shipped, model, simulations)
    weighted = weigh(shipped, model, simulations.observation, n_samples=1_000)
    divergence, _ = divergences(weighted.weights)
    assert gaps.mean() == pytest.approx(divergence.mean(), abs=4.0 * gaps.std() / 150**0.5)
    assert gaps.mean() > 0.0
