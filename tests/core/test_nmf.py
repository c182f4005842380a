"""The NMF bases: the shipped fit against the original curves, and the loader of the originals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import make_interp_spline

from sedflow_core.errors import GridError
from sedflow_core.nmf import SFH_FILE, TIME_FILE, ZH_FILE, NMFBases, load_nmf

PEAKS_GYR = [1.17, 5.60, 8.37, 11.14]


@pytest.fixture(scope="module")
def shipped() -> NMFBases:
    return load_nmf()


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    for name in (SFH_FILE, ZH_FILE, TIME_FILE):
        shutil.copyfile(shared_data / "nmf" / name, tmp_path / name)
    return tmp_path


def test_shipped_bases_cover_the_age_of_the_universe_and_are_never_negative(
    shipped: NMFBases,
) -> None:
    assert shipped.sfh.shape == (4, shipped.lookback_gyr.size)
    assert shipped.zh.shape == (2, shipped.lookback_gyr.size)
    assert shipped.lookback_gyr[[0, -1]].tolist() == [0.0, 13.8]
    assert np.diff(shipped.lookback_gyr).min() > 0
    assert shipped.sfh.min() >= 0
    assert shipped.zh.min() >= 0


def test_shipped_sfh_bases_peak_at_the_published_lookback_times(shipped: NMFBases) -> None:
    peaks = shipped.lookback_gyr[shipped.sfh.argmax(axis=1)]
    np.testing.assert_allclose(peaks, PEAKS_GYR, atol=0.05)


def test_shipped_fit_stays_within_half_a_percent_of_the_originals(
    shipped: NMFBases, shared_data: Path
) -> None:
    original = load_nmf(shared_data / "nmf")
    np.testing.assert_array_equal(shipped.lookback_gyr, original.lookback_gyr)
    for ours, theirs in zip(
        [*shipped.sfh, *shipped.zh], [*original.sfh, *original.zh], strict=True
    ):
        assert np.abs(ours - theirs).max() <= 0.005 * theirs.max()


def test_metallicity_history_follows_the_originals_over_the_prior(
    shipped: NMFBases, shared_data: Path
) -> None:
    original = load_nmf(shared_data / "nmf")
    gamma = 10 ** np.random.default_rng(0).uniform(np.log10(4.5e-5), np.log10(1.5e-2), (4000, 2))
    met, truth = (np.clip(gamma @ bases.zh, 4.49e-5, 4.49e-2) for bases in (shipped, original))
    difference_dex = np.abs(np.log10(met / truth))
    assert np.quantile(difference_dex, 0.99) < 0.02
    assert difference_dex.max() < 0.3


def test_originals_are_reversed_reordered_and_extrapolated_linearly(shared_data: Path) -> None:
    bases = load_nmf(shared_data / "nmf")
    time = np.loadtxt(shared_data / "nmf" / TIME_FILE)[::-1]
    for file_name, order, ours in (
        (SFH_FILE, [2, 0, 1, 3], bases.sfh),
        (ZH_FILE, [0, 1], bases.zh),
    ):
        table = np.loadtxt(shared_data / "nmf" / file_name)[order]
        linear = make_interp_spline(time, table[:, ::-1], k=1, axis=1)
        truth = np.maximum(linear(bases.lookback_gyr), 0)
        np.testing.assert_allclose(ours, truth, atol=1e-12)
    peaks = bases.lookback_gyr[bases.sfh.argmax(axis=1)]
    np.testing.assert_allclose(peaks, PEAKS_GYR, atol=0.02)


@pytest.mark.parametrize("name", [SFH_FILE, ZH_FILE, TIME_FILE])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(GridError, match=name):
        load_nmf(folder)


def test_wrong_shape_is_named_with_what_was_expected(folder: Path) -> None:
    np.savetxt(folder / ZH_FILE, np.ones((3, 50)))
    with pytest.raises(GridError, match=rf"expected .*\(2, 50\) in .*{ZH_FILE}, got \(3, 50\)"):
        load_nmf(folder)


@pytest.mark.parametrize("content", ["not a number", "nan " * 50])
def test_unreadable_table_is_refused(folder: Path, content: str) -> None:
    (folder / TIME_FILE).write_text(content)
    with pytest.raises(GridError, match=TIME_FILE):
        load_nmf(folder)


def test_lookback_times_in_the_wrong_order_are_refused(folder: Path) -> None:
    np.savetxt(folder / TIME_FILE, np.loadtxt(folder / TIME_FILE)[::-1])
    with pytest.raises(GridError, match="descending"):
        load_nmf(folder)
