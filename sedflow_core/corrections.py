"""Catalogue flux -> total, dereddened AB flux with the error floor the flow was trained on.

The NASA-Sloan Atlas's NMGY fluxes are corrected for extinction (Blanton et al. 2011) and AB, and
their errors hold the floor. Bright galaxies without it may lie outside the training range.
"""

import numpy as np
from numpy.typing import ArrayLike

from sedflow_core.units import POGSON, Array

AB_FACTORS: dict[str, dict[str, float]] = {
    "SDSS": {"u": 1.0337, "g": 0.9890, "r": 0.9908, "i": 0.9745, "z": 0.9638},
    "LSST": dict.fromkeys("ugrizy", 1.0),
    "DECam": dict.fromkeys("ugrizy", 1.0),
}
"""Catalogue nanomaggies -> AB nanomaggies per filter system; SDSS as in kcorrect v4 / the NSA."""

ERROR_FLOOR_MAG: dict[str, dict[str, float]] = {
    "SDSS": {"u": 0.05, "g": 0.02, "r": 0.02, "i": 0.02, "z": 0.03},
}
"""Calibration error added in quadrature by the NSA [mag]."""

EXTINCTION_PER_EBV: dict[str, dict[str, float]] = {
    "SDSS": {"u": 4.239, "g": 3.303, "r": 2.285, "i": 1.698, "z": 1.263},
    "LSST": {"u": 4.145, "g": 3.237, "r": 2.273, "i": 1.684, "z": 1.323, "y": 1.088},
    "DECam": {"u": 3.963, "g": 3.186, "r": 2.140, "i": 1.569, "z": 1.196, "y": 1.048},
}
"""A_X / E(B-V) for E(B-V) on the scale of Schlegel, Finkbeiner & Davis (1998), R_V = 3.1. SDSS and
LSST: Schlafly & Finkbeiner (2011), Table 6. DECam: by their law, as the Dark Energy Survey (Abbott
et al. 2018, Sec. 4.2) and, for u, the NOIRLab Source Catalog (Nidever et al. 2021) have it."""


def deredden(
    flux: ArrayLike, flux_err: ArrayLike, extinction_mag: ArrayLike
) -> tuple[Array, Array]:
    """Flux and error, any unit, corrected for Galactic extinction [mag]."""
    factor = 10.0 ** (0.4 * np.asarray(extinction_mag, dtype=np.float64))
    return np.asarray(flux) * factor, np.asarray(flux_err) * factor


def apply_ab_factors(
    flux: ArrayLike, flux_err: ArrayLike, factors: ArrayLike
) -> tuple[Array, Array]:
    """Flux and error (n, n_band) brought to the AB system by a factor per band (n_band,)."""
    factor = np.asarray(factors, dtype=np.float64)
    return np.asarray(flux) * factor, np.asarray(flux_err) * factor


def add_error_floor(flux: ArrayLike, flux_err: ArrayLike, floor_mag: ArrayLike) -> Array:
    """Error (n, n_band) with a floor [mag] added in quadrature, in the unit of the flux.

    An error that is not positive, and so none, stays as it is.
    """
    error = np.asarray(flux_err, dtype=np.float64)
    floor = np.asarray(floor_mag, dtype=np.float64) * np.abs(np.asarray(flux)) / POGSON
    return np.where(error > 0, np.hypot(error, floor), error)
