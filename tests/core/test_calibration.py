"""Ranks of the truth on posteriors that are right by design, and runs that are cut short."""

from pathlib import Path

import numpy as np
import pytest

from sedflow_core import Artifact
from sedflow_core.calibration import Calibration, calibrate
from sedflow_core.diagnostics import ks_distance, noise_bound
from sedflow_core.exact_ranks import weighted_ranks
from sedflow_core.fresh_simulations import Simulations, simulate
from sedflow_core.importance import Weighted

NO_TEST = np.empty(0)
"""p-values that nobody looks at."""

N, N_SAMPLE = 120, 64


@pytest.fixture(scope="module")
def simulations(tiny: Artifact) -> Simulations:
    return simulate(tiny, N, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def calibration(tiny: Artifact, simulations: Simulations, folder: Path) -> Calibration:
    return calibrate(tiny, simulations, n_samples=N_SAMPLE, independent=True, folder=folder)


def test_shapes_and_ranges(tiny: Artifact, calibration: Calibration) -> None:
    n_name = 11 + len(tiny.derived_names)
    assert calibration.ranks.shape == (N, n_name)
    assert calibration.control.shape == (N, 4, n_name)
    assert calibration.quantiles.shape == (N, n_name, 5)
    assert calibration.tarp.shape == (N, n_name + 1)
    assert calibration.density.shape == calibration.loss.shape == (N,)
    for levels in (calibration.ranks, calibration.control, calibration.tarp, calibration.density):
        assert ((levels >= 0) & (levels <= 1)).all()
    assert (np.diff(calibration.quantiles, axis=-1) >= 0).all()


def test_samples_that_take_the_place_of_the_truth_rank_uniformly(calibration: Calibration) -> None:
    for column in calibration.control.reshape(-1, calibration.control.shape[-1]).T:
        # Four samples of one galaxy are independent; half a step of 1 / 64 is the grid's.
        assert ks_distance(column) < noise_bound(4 * N) + 1 / N_SAMPLE


def test_an_untrained_flow_is_found_out(calibration: Calibration) -> None:
    mass = calibration.names.index("log_mstar")
    assert ks_distance(calibration.ranks[:, mass]) > noise_bound(N)
    assert calibration.loss.mean() > 10


def test_a_run_goes_on_from_what_its_folder_holds(
    tiny: Artifact, simulations: Simulations, folder: Path, calibration: Calibration
) -> None:
    (kept,) = folder.glob("independent-*.npz")
    before = kept.stat().st_mtime_ns
    again = calibrate(tiny, simulations, n_samples=N_SAMPLE, independent=True, folder=folder)
    assert kept.stat().st_mtime_ns == before
    fresh = calibrate(tiny, simulations, n_samples=N_SAMPLE, independent=True)
    for ours, kept_values, others in zip(calibration[1:], again[1:], fresh[1:], strict=True):
        np.testing.assert_array_equal(ours, kept_values)
        np.testing.assert_allclose(ours, others)


def test_ranks_by_equal_weights_are_the_fractions_below(
    tiny: Artifact, simulations: Simulations
) -> None:
    rng = np.random.default_rng(1)
    theta = simulations.theta[rng.integers(0, N, (500, 2))].astype(np.float32)
    weights = np.full((500, 2), 1 / 500)
    ranks = weighted_ranks(tiny, simulations, Weighted(theta, weights, weights, NO_TEST))
    mass = (theta[..., 0] < simulations.theta[:2, 0].astype(np.float32)).mean(axis=0)
    np.testing.assert_allclose(ranks[:, 0], mass, atol=0.02)

    weights[:, 0] = 0.0
    without_first = weighted_ranks(tiny, simulations, Weighted(theta, weights, weights, NO_TEST))
    np.testing.assert_array_equal(without_first, ranks[1:])
