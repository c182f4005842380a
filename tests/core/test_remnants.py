"""Remnant masses against numerical integrals of the Kroupa IMF."""

import numpy as np
import pytest
from scipy.integrate import quad

from sedflow_core.remnants import kroupa_integral, remnant_fraction, turnoff_mass


def kroupa_2001(mass: float) -> float:
    return mass**-1.3 if mass < 0.5 else 0.5 * mass**-2.3


def remnant_mass(mass: float) -> float:
    if mass < 8.5:
        return 0.077 * mass + 0.48
    return 1.4 if mass < 40 else 0.5 * mass


def integrate(power: float, lower: float, upper: float) -> float:
    knots = [m for m in (0.5, 8.5, 40.0) if lower < m < upper]
    return float(
        quad(lambda m: m**power * kroupa_2001(m), lower, upper, points=knots, limit=200)[0]
    )


def test_imf_is_normalised_to_one_solar_mass_formed() -> None:
    assert kroupa_integral(np.asarray(0.1), np.asarray(100.0), power=1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.3), (0.3, 2.0), (1.0, 100.0), (8.5, 40.0)])
def test_imf_integrals_agree_with_quadrature(power: float, lower: float, upper: float) -> None:
    truth = integrate(power, lower, upper) / integrate(1.0, 0.1, 100.0)
    ours = kroupa_integral(np.asarray(lower), np.asarray(upper), power=power)
    assert ours == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("mass", [0.9, 1.1, 2.2, 8.5, 30.0, 90.0])
def test_turnoff_inverts_the_living_fraction_and_remnants_agree_with_quadrature(
    mass: float,
) -> None:
    formed = integrate(1.0, 0.1, 100.0)
    living = np.asarray(integrate(1.0, 0.1, mass) / formed)
    dead, _ = quad(
        lambda m: remnant_mass(m) * kroupa_2001(m),
        mass,
        100.0,
        points=[m for m in (8.5, 40.0) if m > mass] or None,
        limit=200,
    )
    assert turnoff_mass(living) == pytest.approx(mass, rel=1e-3)
    assert remnant_fraction(living) == pytest.approx(dead / formed, abs=2e-4)


def test_surviving_mass_rises_with_the_living_mass_and_never_exceeds_what_formed() -> None:
    living = np.linspace(0.32, 1.0, 500)
    surviving = living + remnant_fraction(living)
    assert np.diff(surviving).min() > 0
    assert surviving.max() <= 1.0
    assert remnant_fraction(np.asarray(1.0)) == pytest.approx(0.0, abs=1e-12)


def test_old_solar_population_keeps_about_sixty_percent() -> None:
    living = np.asarray(0.459)
    assert living + remnant_fraction(living) == pytest.approx(0.60, abs=0.02)
