"""Photometric corrections against their definitions in magnitudes."""

import numpy as np
import pytest

from sedflow_core.corrections import (
    AB_FACTORS,
    ERROR_FLOOR_MAG,
    EXTINCTION_PER_EBV,
    add_error_floor,
    apply_ab_factors,
    deredden,
)
from sedflow_core.units import mag_err_from_flux, mag_from_nanomaggy

FLUX = np.array([[3.0, 30.0, 0.7, 100.0, 12.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
ERROR = 0.1 * FLUX


def test_dereddening_brightens_by_the_extinction_and_keeps_the_signal_to_noise() -> None:
    extinction = np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    flux, error = deredden(FLUX, ERROR, extinction)
    dimming = mag_from_nanomaggy(FLUX) - mag_from_nanomaggy(flux)
    np.testing.assert_allclose(dimming, np.broadcast_to(extinction, FLUX.shape))
    np.testing.assert_allclose(flux / error, FLUX / ERROR)


def test_ab_factors_of_sdss_are_the_offsets_of_blanton_and_roweis() -> None:
    """m_AB - m_SDSS = -.036, .012, .010, .028, .040 in ugriz (Blanton & Roweis 2007)."""
    flux, error = apply_ab_factors(FLUX, ERROR, [AB_FACTORS["SDSS"][b] for b in "ugriz"])
    offset = mag_from_nanomaggy(flux) - mag_from_nanomaggy(FLUX)
    published = np.broadcast_to([-0.036, 0.012, 0.010, 0.028, 0.040], FLUX.shape)
    np.testing.assert_allclose(offset, published, atol=5e-4)
    np.testing.assert_allclose(flux / error, FLUX / ERROR)


def test_floor_adds_in_quadrature_in_magnitudes() -> None:
    floor = [ERROR_FLOOR_MAG["SDSS"][b] for b in "ugriz"]
    error = add_error_floor(FLUX, ERROR, floor)
    expected = np.hypot(mag_err_from_flux(FLUX, ERROR), floor)
    np.testing.assert_allclose(mag_err_from_flux(FLUX, error), expected)


def test_floor_of_negative_flux_widens_and_of_missing_flux_stays_missing() -> None:
    error = add_error_floor([[-1.0, np.nan]], [[0.1, 0.1]], [0.05, 0.05])
    assert error[0, 0] > 0.1
    assert np.isnan(error[0, 1])


def test_floor_makes_no_error_where_there_is_none() -> None:
    error = add_error_floor([[9.0, 9.0, 9.0]], [[0.0, -1.0, np.nan]], [0.05, 0.05, 0.05])
    np.testing.assert_array_equal(error, [[0.0, -1.0, np.nan]])


@pytest.mark.parametrize("system", sorted(EXTINCTION_PER_EBV))
def test_extinction_falls_to_the_red_in_every_system(system: str) -> None:
    coefficients = [EXTINCTION_PER_EBV[system][b] for b in "ugriz"]
    assert np.all(np.diff(coefficients) < 0)
    assert EXTINCTION_PER_EBV[system].keys() <= AB_FACTORS[system].keys()
