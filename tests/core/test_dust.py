"""The attenuation curves against the formulas and numbers of their authors."""

import numpy as np
import pytest
import torch

from sedflow_core.dust import attenuation_curve, birth_cloud_curve, bump, calzetti

WAVE = torch.linspace(1500.0, 20000.0, 2000, dtype=torch.float64)
NO_BUMP = 0.85 / 1.9


def curve(wave: float, n_dust: float) -> float:
    point = torch.tensor([wave], dtype=torch.float64)
    return float(attenuation_curve(point, torch.tensor([n_dust], dtype=torch.float64)))


def test_calzetti_follows_their_equation_4() -> None:
    """Calzetti et al. (2000) with R_V = 4.05; their 2.659 is 1.17 / 0.44."""
    micron = WAVE.numpy() / 1e4
    blue = 2.659 * (-2.156 + 1.509 / micron - 0.198 / micron**2 + 0.011 / micron**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / micron) + 4.05
    expected = np.where(micron > 0.63, red, blue) / 4.05
    np.testing.assert_allclose(calzetti(WAVE).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(("wave", "k"), [(1500.0, 10.33), (2800.0, 7.27), (5500.0, 4.05)])
def test_calzetti_at_wavelengths_quoted_in_the_literature(wave: float, k: float) -> None:
    value = 4.05 * float(calzetti(torch.tensor([wave], dtype=torch.float64)))
    assert value == pytest.approx(k, rel=0.01)


def test_calzetti_is_never_negative() -> None:
    assert calzetti(torch.tensor([2.0e4, 5.0e4, 1.0e6])).min() == 0.0


@pytest.mark.parametrize("n_dust", [-2.0, -0.7, 0.0, NO_BUMP, 1.0])
def test_optical_depth_at_5500_angstrom_is_tau_up_to_the_wing_of_the_bump(n_dust: float) -> None:
    wing = (0.85 - 1.9 * n_dust) / 4.05 * float(bump(torch.tensor([5500.0])))
    assert curve(5500.0, n_dust) == pytest.approx(1.0 + wing, abs=2e-3)


def test_bump_is_a_drude_profile_of_unit_height_and_350_angstrom_width() -> None:
    assert float(bump(torch.tensor([2175.0]))) == pytest.approx(1.0)
    half = (np.sqrt(4.0 * 2175.0**2 + 350.0**2) + np.array([-350.0, 350.0])) / 2.0
    np.testing.assert_allclose(bump(torch.tensor(half)).numpy(), 0.5, atol=1e-6)
    assert 2100 < float(WAVE[bump(WAVE).argmax()]) < 2250


def test_bump_stands_above_the_tilted_calzetti_curve_by_its_stated_strength() -> None:
    for n_dust in (-1.0, 0.0, 1.0):
        smooth = float(calzetti(torch.tensor([2175.0])))
        expected = (smooth + (0.85 - 1.9 * n_dust) / 4.05) * (2175.0 / 5500.0) ** n_dust
        assert curve(2175.0, n_dust) == pytest.approx(expected, rel=1e-5)
    assert curve(2175.0, NO_BUMP) == pytest.approx(smooth * (2175.0 / 5500.0) ** NO_BUMP)


def test_negative_slopes_redden_more() -> None:
    slope = [curve(3500.0, n) - curve(9000.0, n) for n in (-1.5, -0.5, 0.0, 0.5)]
    assert np.all(np.diff(slope) < 0)


def test_birth_clouds_go_as_inverse_wavelength() -> None:
    np.testing.assert_allclose((birth_cloud_curve(WAVE) * WAVE).numpy(), 5500.0)
