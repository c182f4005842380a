"""Dust attenuation: birth clouds and the diffuse curve of Kriek & Conroy (2013)."""

from functools import cache

import torch
from torch import Tensor

_R_V = 4.05
_BUMP_CENTER = 2175.0
_BUMP_WIDTH = 350.0


def calzetti(wave: Tensor) -> Tensor:
    """Calzetti et al. (2000) k(lambda) / R_V, floored at 0, with their 0.44 normalisation.

    Args:
        wave: rest wavelength [Angstrom].
    """
    micron = wave * 1e-4
    red = 1.17 * (-1.857 + 1.04 / micron) + 1.78
    blue = 1.17 * (-2.156 + 1.509 / micron - 0.198 / micron**2 + 0.011 / micron**3) + 1.78
    return torch.where(wave > 6300.0, red, blue).clamp_min(0.0) / 0.44 / _R_V


def bump(wave: Tensor) -> Tensor:
    """The 2175 A Drude profile of unit strength; wave in Angstrom."""
    width = (_BUMP_WIDTH * wave) ** 2
    return width / ((wave**2 - _BUMP_CENTER**2) ** 2 + width)


def attenuation_curve(wave: Tensor, n_dust: Tensor) -> Tensor:
    """Optical depth of the diffuse dust relative to tau_ism (Kriek & Conroy 2013, Eqs. 1-3).

    Args:
        wave: (n_wave,) rest wavelength [Angstrom].
        n_dust: (..., 1) slope offset, which also sets the bump strength 0.85 - 1.9 n.
    """
    strength = (0.85 - 1.9 * n_dust) / _R_V
    tilt = torch.exp(n_dust * torch.log(wave / 5500.0))
    return (calzetti(wave) + strength * bump(wave)) * tilt


@cache
def curve_at_v() -> tuple[float, float]:
    """The diffuse dust's curve at 5500 A, linear in n_dust there: at n_dust = 0, and its slope."""
    n_dust = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    flat, steep = attenuation_curve(torch.tensor([5500.0]), n_dust).flatten().tolist()
    return flat, steep - flat


def birth_cloud_curve(wave: Tensor) -> Tensor:
    """Optical depth of the birth clouds relative to tau_bc: (lambda / 5500 A)^-1."""
    return 5500.0 / wave
