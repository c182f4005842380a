"""The guarded FSPS subprocess, driven with small stand-in `fsps` modules."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sedflow_core.errors import GridError, MissingExtraError
from sedflow_core.ssp import load_ssp

GOOD = """
import numpy as np

class StellarPopulation:
    libraries = (b"mist", b"miles", b"DL07")
    ssp_ages = np.array([6.0, 8.0, 10.0])

    def __init__(self, **settings):
        assert settings["zcontinuous"] == 1 and settings["sfh"] == 0, settings
        assert settings["imf_type"] == 1, settings
        assert not settings["add_neb_emission"] and not settings["dust2"], settings
        self.params = {}

    def get_spectrum(self, tage, peraa):
        assert tage == 0.0 and peraa
        wave = np.linspace(1000.0, 20000.0, 400)
        fading = 10.0 ** (self.params["logzsol"] - self.ssp_ages)
        return wave, fading[:, None] * wave

    @property
    def stellar_mass(self):
        return np.array([1.0, 0.8, 0.6])
"""
FORTRAN_STOP = """
import os
print("SPS_SETUP ERROR: isochrone file not found", flush=True)
os._exit(0)
"""
RAISES = """
class StellarPopulation:
    def __init__(self, **settings):
        raise RuntimeError("spectral library is broken")
"""


@pytest.fixture
def sps_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with an FSPS data folder and an empty cache."""
    home = tmp_path / "sps"
    for name in ("ISOCHRONES/MIST", "SPECTRA/MILES"):
        (home / name).mkdir(parents=True)
    monkeypatch.setenv("SPS_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return home


def install(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module `fsps` with this source on the path of this process and its children."""
    (folder / "fsps.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_grid_is_computed_binned_and_cached(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD, tmp_path, monkeypatch)
    grid = load_ssp("fsps", wave_range=(4000.0, 4100.0))
    assert grid.flux.shape == (13, 3, 5)
    np.testing.assert_allclose(grid.lg_met, np.log10(0.019) + np.arange(-2.5, 0.51, 0.25))
    np.testing.assert_allclose(grid.lg_age_gyr, [-3.0, -1.0, 1.0])
    centre = 4010.0 + 20.0 * np.arange(5)
    np.testing.assert_allclose(grid.flux[10, 1], 1e-8 * centre, rtol=1e-5)
    np.testing.assert_allclose(grid.surviving[0], [1.0, 0.8, 0.6])
    assert grid.provenance["libraries"] == ["mist", "miles", "DL07"]
    install(FORTRAN_STOP, tmp_path, monkeypatch)
    cached = load_ssp("fsps", wave_range=(4000.0, 4100.0))
    np.testing.assert_array_equal(cached.flux, grid.flux)


def test_exit_code_zero_without_the_marker_is_a_failure(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FORTRAN_STOP, tmp_path, monkeypatch)
    with pytest.raises(GridError) as caught:
        load_ssp("fsps")
    message = str(caught.value)
    assert "exit code 0" in message
    assert f"SPS_HOME={sps_home}" in message
    assert "isochrone file not found" in message


def test_exception_in_fsps_is_reported_with_the_end_of_stderr(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(RAISES, tmp_path, monkeypatch)
    with pytest.raises(GridError, match=r"exit code 1(.|\n)*spectral library is broken"):
        load_ssp("fsps")


def test_range_that_fsps_does_not_cover_is_reported(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD, tmp_path, monkeypatch)
    with pytest.raises(GridError, match=r"1000-20000 A, the range of fsps"):
        load_ssp("fsps", wave_range=(500.0, 1500.0))


def test_unset_home_is_named_before_anything_runs(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD, tmp_path, monkeypatch)
    monkeypatch.delenv("SPS_HOME")
    with pytest.raises(GridError, match="SPS_HOME unset"):
        load_ssp("fsps")


def test_home_that_is_no_folder_is_named(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD, tmp_path, monkeypatch)
    monkeypatch.setenv("SPS_HOME", str(tmp_path / "absent"))
    with pytest.raises(GridError, match=r"SPS_HOME=.*absent, which is no folder"):
        load_ssp("fsps")


def test_missing_data_folder_is_named(
    sps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(GOOD, tmp_path, monkeypatch)
    (sps_home / "SPECTRA" / "MILES").rmdir()
    with pytest.raises(GridError, match="without files in SPECTRA"):
        load_ssp("fsps")


@pytest.mark.skipif(importlib.util.find_spec("fsps") is not None, reason="fsps is installed")
def test_missing_package_names_the_extra(sps_home: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"\[fsps\]"):
        load_ssp("fsps")
