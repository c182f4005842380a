"""A fitted mixture against densities known in closed form."""

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core.mixture import N_PART, Mixture, fit_mixture, log_conditional


@pytest.fixture(scope="module")
def sample() -> torch.Tensor:
    """First coordinate from two normals far apart; the second follows it with another width."""
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 20_000)
    first = rng.normal(4.0 * side, 1.0)
    second = rng.normal(0.5 * first, 0.3 + side)
    return torch.tensor(np.stack([first, second], axis=1))


@pytest.fixture(scope="module")
def mixture(sample: torch.Tensor) -> Mixture:
    return fit_mixture(sample)


def test_the_density_given_the_first_coordinate_is_found(
    sample: torch.Tensor, mixture: Mixture
) -> None:
    first, second = sample.numpy().T
    parts = [stats.norm(4.0 * side, 1.0).pdf(first) for side in (0, 1)]
    given = [stats.norm(0.5 * first, 0.3 + side).pdf(second) for side in (0, 1)]
    truth = np.log(sum(p * g for p, g in zip(parts, given, strict=True)) / sum(parts))
    fitted = log_conditional(sample, mixture).numpy()
    assert np.mean(truth - fitted) == pytest.approx(0.0, abs=0.02)
    assert np.std(truth - fitted) <= 0.15


def test_it_integrates_to_one(mixture: Mixture) -> None:
    second = torch.linspace(-12.0, 14.0, 20_001, dtype=torch.float64)
    for first in (-1.0, 2.0, 5.0):
        points = torch.stack([torch.full_like(second, first), second], dim=1)
        density = log_conditional(points, mixture).exp()
        assert float(torch.trapezoid(density, second)) == pytest.approx(1.0, abs=1e-4)


def test_rows_are_independent_and_the_seed_decides(sample: torch.Tensor, mixture: Mixture) -> None:
    together = log_conditional(sample[:50], mixture)
    alone = torch.cat([log_conditional(row[None], mixture) for row in sample[:50]])
    assert torch.equal(together, alone)
    again = fit_mixture(sample)
    assert all(torch.equal(a, b) for a, b in zip(mixture, again, strict=True))
    assert mixture.mean.shape == (N_PART, 2)
