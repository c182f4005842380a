"""What a validation must reach to pass: one set of limits, wider where few simulations blur it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sedflow_core import Artifact, estimate, sample
from sedflow_core.diagnostics import noise_bound
from sedflow_core.errors import SimulationError
from sedflow_core.exact_ranks import mcmc_ranks, weighted_ranks
from sedflow_core.exactness import distances
from sedflow_core.fresh_simulations import forward_model, simulate
from sedflow_core.importance import weigh
from sedflow_core.validate import LIMITS, N_JUDGED, Sizes, failures, limit

Document = dict[str, Any]


@pytest.fixture
def recorded(shipped: Artifact) -> Document:
    document: Document = deepcopy(shipped.manifest["validation"])
    return document


def test_the_shipped_artifact_passes(recorded: Document) -> None:
    assert recorded["n_simulations"] >= N_JUDGED
    assert failures(recorded) == []


def test_the_shipped_posteriors_are_near_the_exact_ones_of_fresh_simulations(
    shipped: Artifact,
) -> None:
    galaxies = simulate(shipped, 24, seed=31).observation
    found = distances(weigh(shipped, forward_model(shipped), galaxies, n_samples=2_000))
    assert found["median"] >= LIMITS["efficiency"]
    assert found["total_variation"]["median"] <= LIMITS["total_variation"]


def test_the_truth_of_fresh_simulations_ranks_uniformly_among_shipped_posteriors(
    shipped: Artifact,
) -> None:
    simulations = simulate(shipped, 600, seed=32)
    theta = sample(shipped, simulations.observation, 400, independent=True, seed=1)
    ranks = (theta < simulations.theta).mean(axis=0)
    for name, column in zip(shipped.param_names, ranks.T, strict=True):
        distance = stats.kstest(column, "uniform").statistic
        assert distance <= LIMITS["ks_distance"] + 1.63 / len(column) ** 0.5, name


def test_ranks_by_mcmc_are_those_by_weights_and_say_whether_walkers_converged(
    shipped: Artifact, tmp_path: Path
) -> None:
    simulations, model = simulate(shipped, 3, seed=33), forward_model(shipped)
    by_mcmc = mcmc_ranks(shipped, model, simulations, tmp_path)
    assert by_mcmc.n_converged == 3
    by_weights = weighted_ranks(
        shipped, simulations, weigh(shipped, model, simulations.observation)
    )
    assert by_mcmc.ranks == pytest.approx(by_weights, abs=0.1)

    kept = tmp_path / "mcmc-1.npz"
    np.savez(kept, u=np.load(kept)["u"], converged=False)
    again = mcmc_ranks(shipped, model, simulations, tmp_path)
    assert again.n_converged == 2
    assert (again.ranks == by_mcmc.ranks).all()


def test_published_intervals_hold_their_share_of_fresh_truths(shipped: Artifact) -> None:
    n = 600
    simulations = simulate(shipped, n, seed=34)
    summary = estimate(shipped, simulations.observation, include_unsupported=True)
    truth = np.concatenate([simulations.theta, simulations.derived], axis=1)
    low, q16, _, q84, high = np.moveaxis(summary.quantiles, -1, 0)
    for share, lower, upper in ((0.68, q16, q84), (0.95, low, high)):
        inside = ((truth >= lower) & (truth <= upper)).mean(axis=0)
        noise = 3.3 * (share * (1 - share) / n) ** 0.5
        assert inside == pytest.approx(share, abs=noise + 0.01)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("ks_distance_independent", "gamma1"), "ks_distance"),
        (("ks_distance_independent", "z_mw"), "ks_distance_derived"),
        (("pooled", "ks_distance"), "pooled"),
        (("tarp_distance",), "tarp"),
        (("importance_efficiency", "total_variation", "median"), "total_variation"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_each_limit_is_the_largest_that_passes(
    recorded: Document, path: tuple[str, ...], name: str
) -> None:
    *folders, last = path
    part = recorded
    for folder in folders:
        part = part[folder]
    part[last] = LIMITS[name]
    assert failures(recorded) == []
    part[last] = LIMITS[name] + 0.001
    (reason,) = failures(recorded)
    assert f"expected at most {LIMITS[name]:.5g}, got {part[last]:.5g}" in reason
    part[last] = float("nan")
    assert len(failures(recorded)) == 1


def test_the_efficiency_has_a_smallest_value_that_passes(recorded: Document) -> None:
    recorded["importance_efficiency"]["median"] = 0.25
    assert failures(recorded) == []
    recorded["importance_efficiency"]["median"] = 0.249
    assert failures(recorded) == ["median importance_efficiency: expected at least 0.25, got 0.249"]


def test_too_little_measured_does_not_pass(recorded: Document) -> None:
    recorded |= {"n_simulations": 19_999, "n_samples": 999}
    recorded["importance_efficiency"]["n_simulations"] = 199
    assert failures(recorded) == [
        "n_simulations: expected at least 20,000, got 19,999",
        "n_samples: expected at least 1,000, got 999",
        "n_simulations of importance_efficiency: expected at least 200, got 199",
    ]


def test_a_slice_is_judged_by_its_own_number(recorded: Document) -> None:
    part = recorded["slices"]["redshift"][1]
    largest = LIMITS["ks_distance"] + noise_bound(part["n"])
    part["ks_distance"]["tau_ism"] = largest
    assert failures(recorded) == []
    part["ks_distance"]["tau_ism"] = largest + 0.001
    (reason,) = failures(recorded)
    assert reason.startswith("ks_distance of tau_ism for redshift")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(n_simulations=11), "n_simulations: expected at least 12, got 11"),
        (Sizes(n_samples=3), "n_samples: expected at least 4, got 3"),
    ],
    ids=["simulations", "samples"],
)
def test_too_little_to_measure_anything_is_refused(sizes: Sizes, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        sizes.check()


def test_few_simulations_blur_a_distance() -> None:
    assert limit("tarp", N_JUDGED) == LIMITS["tarp"]
    assert limit("tarp", 100) == pytest.approx(LIMITS["tarp"] + 0.163)
