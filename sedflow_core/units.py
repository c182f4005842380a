"""Flux units: nanomaggies, AB magnitudes, nanojansky. The only zero points in the repository."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NANOMAGGY_ZERO_POINT = 22.5
"""AB magnitude of one nanomaggy."""
NJY_PER_NANOMAGGY = 3631.0
"""Nanojansky in one nanomaggy: AB zero flux is 3631 Jy."""
POGSON = 2.5 / np.log(10.0)
"""Magnitudes per unit relative flux, 1.0857."""


def mag_from_nanomaggy(flux: ArrayLike) -> Array:
    """AB magnitude of a flux in nanomaggies; NaN where the flux is not positive."""
    flux = np.asarray(flux, dtype=np.float64)
    positive = np.where(flux > 0, flux, np.nan)
    return NANOMAGGY_ZERO_POINT - 2.5 * np.log10(positive)


def nanomaggy_from_mag(mag: ArrayLike) -> Array:
    """Flux in nanomaggies of an AB magnitude."""
    return np.asarray(10.0 ** (0.4 * (NANOMAGGY_ZERO_POINT - np.asarray(mag, dtype=np.float64))))


def nanomaggy_from_njy(flux: ArrayLike) -> Array:
    """Flux in nanomaggies of a flux in nJy."""
    return np.asarray(np.asarray(flux, dtype=np.float64) / NJY_PER_NANOMAGGY)


def njy_from_nanomaggy(flux: ArrayLike) -> Array:
    """Flux in nJy of a flux in nanomaggies."""
    return np.asarray(np.asarray(flux, dtype=np.float64) * NJY_PER_NANOMAGGY)


def mag_err_from_flux(flux: ArrayLike, flux_err: ArrayLike) -> Array:
    """Magnitude error 1.0857 sigma_F/F, as catalogues give it; NaN for non-positive flux."""
    flux = np.asarray(flux, dtype=np.float64)
    positive = np.where(flux > 0, flux, np.nan)
    return np.asarray(POGSON * np.asarray(flux_err, dtype=np.float64) / positive)
