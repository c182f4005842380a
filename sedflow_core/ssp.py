"""Grids of simple stellar populations (SSPs): where they come from, and one shape for them all.

`load_ssp` bins a library (`ssp_library`, `fsps_grid`) once onto uniform wavelength bins and keeps
the result in the user's cache folder.
"""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedflow_core.errors import GridError
from sedflow_core.ssp_library import PACKAGED, Library, synthetic_library
from sedflow_core.units import Array

CACHE_FORMAT = 1  # raise it when a reader or the binning changes what is stored

Array32 = NDArray[np.float32]

_ARRAYS = {
    "lg_age_gyr": np.float64,
    "lg_met": np.float64,
    "wave_edges": np.float64,
    "flux": np.float32,
    "surviving": np.float32,
}


class SSPGrid(NamedTuple):
    """Spectra of simple stellar populations, per Msun formed, in uniform rest-wavelength bins.

    lg_age_gyr: (n_age,) log10 age in Gyr, ascending. Younger populations are taken as the first
        row; a library's row at age zero is left out, because it has no logarithm.
    lg_met: (n_met,) log10 Z, ascending, on the scale where the Sun has Z = 0.019.
    wave_edges: (n_wave + 1,) Angstrom, rest frame.
    flux: (n_met, n_age, n_wave) float32, Lsun/A per Msun formed, averages over the bins, positive.
    surviving: (n_met, n_age) float32, mass in living stars and remnants per mass formed; NaN where
        the library gives nothing to compute it from.
    provenance: source, digest, IMF, isochrones, library, and how `surviving` was made.
    """

    name: str
    lg_age_gyr: Array
    lg_met: Array
    wave_edges: Array
    flux: Array32
    surviving: Array32
    provenance: dict[str, Any]


def load_ssp(
    name: str | Path,
    *,
    wave_range: tuple[float, float] = (2200.0, 11600.0),
    wave_step: float = 20.0,
) -> SSPGrid:
    """Return an SSP grid on bins of `wave_step` Angstrom over `wave_range`, rest frame.

    name: "bc03-miles" (extra `sim`), "popstar" (extra `popstar`), "fsps" (extra `fsps` and its data
    under $SPS_HOME), "synthetic" (analytic, needs nothing) or the path of a file by `save_ssp`.

    Raises MissingExtraError when the package is not installed, and GridError for an unknown name, a
    file that cannot be used or a range that the library does not cover.
    """
    edges = uniform_edges(wave_range, wave_step)
    if name == "synthetic":
        return bin_library(synthetic_library(), edges)
    if name == "fsps":
        from sedflow_core.fsps_grid import fsps_digest, run_fsps

        return cached_grid(_cache_name("fsps", fsps_digest(), edges), lambda: run_fsps(edges))
    if name in PACKAGED:
        source = PACKAGED[str(name)]
        digest = _sha256(source.find())
        return cached_grid(
            _cache_name(str(name), digest, edges), lambda: bin_library(source.read(digest), edges)
        )
    if not Path(name).is_file():
        known = ", ".join([*PACKAGED, "fsps", "synthetic"])
        raise GridError(f"expected an SSP grid ({known}) or the path of a file, got {str(name)!r}")
    grid = _read_npz(Path(name))
    content = b"".join(getattr(grid, key).tobytes() for key in _ARRAYS)
    provenance = {**grid.provenance, "npz_sha256": hashlib.sha256(content).hexdigest()}
    return _rebin(grid._replace(provenance=provenance), edges)


def check_populations(whose: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise GridError where a grid's provenance is not the expected one.

    A package's version counts only where the digest of its data is not known.
    """
    by_version = "sha256" not in expected
    for name, value in expected.items():
        if found.get(name) != value and (name != "version" or by_version):
            raise GridError(
                f"{whose}: stellar populations: expected {name} {value}, got {found.get(name)}"
            )


def save_ssp(grid: SSPGrid, path: str | Path) -> None:
    """Write `grid` to an .npz file in one step: readers see the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            arrays = {key: getattr(grid, key) for key in _ARRAYS}
            np.savez(stream, name=grid.name, provenance=json.dumps(grid.provenance), **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def bin_library(library: Library, wave_edges: Array) -> SSPGrid:
    """Average the spectra, taken as linear between their points, exactly over each bin.

    Raises GridError when the bins reach outside the library or a spectrum is not positive.
    """
    wave = library.wave
    _check_range(library.name, (wave[0], wave[-1]), wave_edges)
    rows = [_bin_averages(wave, flux, wave_edges) for flux in library.flux]
    grid = SSPGrid(
        name=library.name,
        lg_age_gyr=library.lg_age_gyr,
        lg_met=library.lg_met,
        wave_edges=wave_edges,
        flux=np.stack(rows).astype(np.float32),
        surviving=library.surviving.astype(np.float32),
        provenance=library.provenance,
    )
    _check_grid(grid)
    return grid


def _bin_averages(wave: Array, flux: Array, edges: Array) -> Array:
    """Average (n_age, n_point) spectra over the bins: differences of their exact integral."""
    width = np.diff(wave)
    whole = np.cumsum(0.5 * (flux[:, 1:] + flux[:, :-1]) * width, axis=1)
    integral = np.concatenate([np.zeros((len(flux), 1)), whole], axis=1)
    segment = np.clip(np.searchsorted(wave, edges, side="right") - 1, 0, wave.size - 2)
    part = edges - wave[segment]
    slope = (flux[:, segment + 1] - flux[:, segment]) / width[segment]
    at_edges = integral[:, segment] + (flux[:, segment] + 0.5 * slope * part) * part
    return np.diff(at_edges, axis=1) / np.diff(edges)


def _rebin(grid: SSPGrid, edges: Array) -> SSPGrid:
    """Cut, join or split the bins of a stored grid; its spectra are constant within each bin."""
    if np.array_equal(grid.wave_edges, edges):
        return grid
    _check_range(grid.name, (grid.wave_edges[0], grid.wave_edges[-1]), edges)
    stored = grid.flux.astype(np.float64) * np.diff(grid.wave_edges)
    overlap = np.clip(edges[:, None], grid.wave_edges[None, :-1], grid.wave_edges[None, 1:])
    below = (overlap - grid.wave_edges[:-1]) / np.diff(grid.wave_edges)
    flux = stored @ np.diff(below, axis=0).T / np.diff(edges)
    return grid._replace(wave_edges=edges, flux=flux.astype(np.float32))


def uniform_edges(wave_range: tuple[float, float], wave_step: float) -> Array:
    """Return the (n_wave + 1,) edges of bins that fill `wave_range` exactly, else GridError."""
    low, high = wave_range
    if not (0 < low < high and wave_step > 0):
        raise GridError(
            f"expected 0 < low < high and a positive step, got {wave_range} {wave_step}"
        )
    n_wave = round((high - low) / wave_step)
    if n_wave < 1 or not np.isclose(low + n_wave * wave_step, high, rtol=0, atol=1e-6):
        raise GridError(f"expected a range of whole steps of {wave_step} A, got {low:g}-{high:g} A")
    return low + wave_step * np.arange(n_wave + 1, dtype=np.float64)


def _check_range(name: str, covered: tuple[float, float], edges: Array) -> None:
    if edges[0] < covered[0] or edges[-1] > covered[1]:
        raise GridError(
            f"expected wavelengths inside {covered[0]:g}-{covered[1]:g} A, the range of {name}, "
            f"got {edges[0]:g}-{edges[-1]:g} A"
        )


def _check_grid(grid: SSPGrid) -> None:
    n_met, n_age, n_wave = grid.lg_met.size, grid.lg_age_gyr.size, grid.wave_edges.size - 1
    for key, shape in (("flux", (n_met, n_age, n_wave)), ("surviving", (n_met, n_age))):
        if getattr(grid, key).shape != shape:
            raise GridError(f"expected {key} of shape {shape}, got {getattr(grid, key).shape}")
    for key in ("lg_age_gyr", "lg_met", "wave_edges"):
        if not (np.diff(getattr(grid, key)) > 0).all():
            raise GridError(f"expected {key} ascending, got {getattr(grid, key)}")
    if not (grid.flux > 0).all():
        raise GridError(f"expected positive flux in {grid.name}, got a minimum {grid.flux.min()}")


def _read_npz(path: Path) -> SSPGrid:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {key: np.asarray(stored[key], dtype) for key, dtype in _ARRAYS.items()}
            provenance = json.loads(str(stored["provenance"]))
            grid = SSPGrid(name=str(stored["name"]), provenance=provenance, **arrays)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise GridError(f"expected an SSP grid written by save_ssp in {path}: {error}") from error
    _check_grid(grid)
    return grid


def cached_grid(file_name: str, build: Callable[[], SSPGrid]) -> SSPGrid:
    """Return the grid in the user's cache folder; build and store it where none can be read.

    The folder is $XDG_CACHE_HOME/sedflow, else ~/.cache/sedflow. Where it cannot be written the
    grid is built every time, with a warning.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "sedflow" / file_name
    if path.is_file():
        try:
            return _read_npz(path)
        except GridError as error:
            warnings.warn(f"SSP cache rebuilt: {error}", RuntimeWarning, stacklevel=3)
    grid = build()
    try:
        save_ssp(grid, path)
    except OSError as error:
        warnings.warn(f"SSP grid not cached: {error}", RuntimeWarning, stacklevel=3)
    return grid


def _cache_name(name: str, digest: str, edges: Array) -> str:
    binning = f"{edges[0]:g}-{edges[-1]:g}-{edges.size - 1}"
    return f"ssp{CACHE_FORMAT}-{name}-{digest[:16]}-{binning}.npz"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
