"""An SSP grid computed by FSPS, in a guarded subprocess.

FSPS ends the whole interpreter with exit code 0 when its data are missing, so success is never
read from the exit code: `python -m sedflow_core.fsps_grid OUT.npz LOW HIGH STEP` writes the grid
and then a marker, OUT.npz.done, and `run_fsps` believes the marker only.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sedflow_core.errors import GridError, MissingExtraError
from sedflow_core.ssp import SSPGrid, bin_library, load_ssp, save_ssp, uniform_edges
from sedflow_core.ssp_library import Z_SUN, Library
from sedflow_core.units import Array

LG_SOLAR = np.arange(-2.5, 0.51, 0.25)  # log10 Z/Zsun
SETTINGS = {
    "zcontinuous": 1,
    "sfh": 0,
    "imf_type": 1,
    "dust1": 0.0,
    "dust2": 0.0,
    "add_dust_emission": False,
    "add_neb_emission": False,
    "add_neb_continuum": False,
}
SPS_FOLDERS = ("ISOCHRONES", "SPECTRA")
STDERR_TAIL = 2000


def fsps_digest() -> str:
    """Return a digest of the FSPS data (names and sizes) and of the python-fsps version.

    Raises MissingExtraError without python-fsps, GridError where $SPS_HOME is not usable.
    """
    if importlib.util.find_spec("fsps") is None:
        raise MissingExtraError("fsps", "fsps")
    problem = _sps_home_problem()
    if problem:
        raise GridError(f"expected the FSPS data under SPS_HOME, got {problem}")
    home = Path(os.environ["SPS_HOME"])
    digest = hashlib.sha256(_fsps_version().encode())
    found = (path for folder in SPS_FOLDERS for path in (home / folder).rglob("*"))
    for path in sorted(filter(Path.is_file, found)):
        digest.update(f"{path.relative_to(home)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def run_fsps(wave_edges: Array) -> SSPGrid:
    """Compute the grid on uniform `wave_edges` (Angstrom) in a subprocess; minutes.

    Raises GridError naming SPS_HOME, what is missing there, the exit code and the end of stderr
    when the subprocess ends without its success marker, whatever its exit code.
    """
    step = wave_edges[1] - wave_edges[0]
    binning = [repr(float(value)) for value in (wave_edges[0], wave_edges[-1], step)]
    with tempfile.TemporaryDirectory(prefix="sedflow-fsps-") as folder:
        path = Path(folder) / "fsps.npz"
        child = subprocess.run(
            [sys.executable, "-m", "sedflow_core.fsps_grid", str(path), *binning],
            env=_child_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if not _marker(path).is_file():
            raise GridError(_failure(child))
        low, high, _ = map(float, binning)
        grid = load_ssp(path, wave_range=(low, high), wave_step=step)
        del grid.provenance["npz_sha256"]  # last bits differ between machines
        return grid


def build_fsps(wave_edges: Array) -> SSPGrid:
    """Compute the grid in this process, which FSPS may end: see `run_fsps`."""
    import fsps

    population = fsps.StellarPopulation(**SETTINGS)
    spectra, masses = [], []
    for lg_solar in LG_SOLAR:
        population.params["logzsol"] = float(lg_solar)
        wave, flux = population.get_spectrum(tage=0.0, peraa=True)  # zero: all ages of the SSP
        spectra.append(np.asarray(flux, dtype=np.float64))
        masses.append(np.asarray(population.stellar_mass, dtype=np.float64))
    library = Library(
        name="fsps",
        lg_age_gyr=np.asarray(population.ssp_ages, dtype=np.float64) - 9.0,
        lg_met=np.log10(Z_SUN) + LG_SOLAR,
        wave=np.asarray(wave, dtype=np.float64),
        flux=np.stack(spectra),
        surviving=np.stack(masses),
        provenance=_provenance(population),
    )
    return bin_library(library, wave_edges)


def _provenance(population: Any) -> dict[str, Any]:
    names = [name.decode() if isinstance(name, bytes) else name for name in population.libraries]
    return {
        "package": "fsps",
        "version": _fsps_version(),
        "sha256": fsps_digest(),
        "settings": SETTINGS,
        "imf": "Chabrier 2003",
        "isochrones": names[0],
        "library": names[1],
        "libraries": names,
        "surviving": "FSPS stellar_mass: living stars and remnants",
    }


def _fsps_version() -> str:
    try:
        return importlib.metadata.version("fsps")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _sps_home_problem() -> str | None:
    home = os.environ.get("SPS_HOME")
    if not home:
        return "SPS_HOME unset"
    if not Path(home).is_dir():
        return f"SPS_HOME={home}, which is no folder"
    missing = [name for name in SPS_FOLDERS if not any(Path(home, name).glob("*"))]
    return f"SPS_HOME={home} without files in {', '.join(missing)}" if missing else None


def _failure(child: "subprocess.CompletedProcess[str]") -> str:
    home = os.environ.get("SPS_HOME")
    problem = _sps_home_problem() or "all folders present, so a file inside them may be missing"
    tail = (child.stderr or child.stdout).strip()[-STDERR_TAIL:] or "nothing printed"
    return (
        f"expected FSPS to finish its grid, got exit code {child.returncode} and no success "
        f"marker; SPS_HOME={home} ({problem}); last output: {tail}"
    )


def _child_environment() -> dict[str, str]:
    """Let the child import this very package, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [inherited, here]))}


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".done")


def main(arguments: list[str]) -> None:
    """Build the grid OUT.npz over LOW to HIGH by STEP (Angstrom); write the marker last."""
    out, low, high, step = arguments
    save_ssp(build_fsps(uniform_edges((float(low), float(high)), float(step))), out)
    _marker(Path(out)).write_text("complete\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
