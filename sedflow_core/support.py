"""Does an observation lie inside the training support? One bit per rule, band and colour.

The two rules of Hahn & Melchior (2022, Appendix) are `sigma_high` (a magnitude error more than
three widths above its mean at the observed magnitude) and `color_blue` (a colour bluer than 99.9 %
of the noisy training colours). Beyond the paper: ranges of magnitude, redshift and small errors,
the density of the training set about the magnitudes and their errors, given the redshift, and
values no flux, error or redshift can have.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.bands import BandSet
from sedflow_core.errors import BandError
from sedflow_core.mixture import Mixture, fit_mixture, log_conditional
from sedflow_core.noise import NoiseModel, mag_error_model, mag_from_flux
from sedflow_core.units import POGSON

N_SIGMA = 3.0
TAIL = 1e-3
"""Fraction of the training set beyond each limit on colour, small error and density."""
N_DENSITY = 50_000
"""Simulations behind the density."""


class SupportTables(NamedTuple):
    """Limits of the training support, float64.

    Attributes:
        mag, mean, width: (n_band, n_node) magnitude error of the training set against magnitude.
        mag_range: (n_band, 2); redshift_range: (2,).
        color_blue: (n_color,) bluest supported colours, in the order of `BandSet.colors`.
        sigma_low: (n_band,) smallest supported magnitude errors.
        log_first, log_rest, part_mean, part_root: the `Mixture` of ln redshift, magnitudes and ln
            of their errors.
        density_low: () ln of the smallest supported density, given the redshift.
    """

    mag: Tensor
    mean: Tensor
    width: Tensor
    mag_range: Tensor
    redshift_range: Tensor
    color_blue: Tensor
    sigma_low: Tensor
    log_first: Tensor
    log_rest: Tensor
    part_mean: Tensor
    part_root: Tensor
    density_low: Tensor

    def mixture(self) -> Mixture:
        """The density of the training set."""
        return Mixture(self.log_first, self.log_rest, self.part_mean, self.part_root)


def flag_names(bands: BandSet) -> tuple[str, ...]:
    """The name of every flag bit, lowest bit first.

    Raises:
        BandError: the flags of so many bands do not fit into 63 bits.
    """
    names = bands.names
    rules = (
        *(f"sigma_high_{b}" for b in names),
        *(f"color_blue_{names[i]}-{names[j]}" for i, j in bands.colors),
        *(f"mag_range_{b}" for b in names),
        "redshift_range",
        *(f"sigma_low_{b}" for b in names),
        *(f"non_finite_{b}" for b in names),
        *(f"non_positive_flux_{b}" for b in names),
        *(f"non_positive_error_{b}" for b in names),
        "non_finite_redshift",
        "density_low",  # bits never change their place: what is new comes last
    )
    if len(rules) > 63:
        raise BandError(f"support flags: expected at most 63 bits, got {len(rules)} for {names}")
    return rules


def fit_support(
    flux: Tensor,
    flux_err: Tensor,
    redshift: Tensor,
    *,
    noise: NoiseModel,
    redshift_range: tuple[float, float],
    bands: BandSet,
) -> SupportTables:
    """Support limits from noisy training photometry (n, n_band) [nanomaggies], redshift (n,)."""
    mag, sigma = mag_from_flux(flux), POGSON * flux_err / flux
    colors = torch.stack([mag[:, i] - mag[:, j] for i, j in bands.colors], dim=-1)
    points = _points(mag, sigma, redshift)
    mixture = fit_mixture(points[:N_DENSITY])
    return SupportTables(
        mag=noise.mag,
        mean=noise.mean,
        width=noise.width,
        mag_range=noise.mag_range,
        redshift_range=torch.tensor(redshift_range, dtype=torch.float64),
        color_blue=_lower_tail(colors),
        sigma_low=_lower_tail(sigma),
        log_first=mixture.log_first,
        log_rest=mixture.log_rest,
        part_mean=mixture.mean,
        part_root=mixture.root,
        density_low=_lower_tail(log_conditional(points, mixture)),
    )


def _points(mag: Tensor, sigma: Tensor, redshift: Tensor) -> Tensor:
    """Coordinates (n, 1 + 2 n_band) of the density."""
    return torch.cat([redshift.log()[:, None], mag, sigma.log()], dim=-1)


def _lower_tail(values: Tensor) -> Tensor:
    return values.kthvalue(max(1, int(TAIL * len(values))), dim=0).values


def check_support(
    flux: Tensor, flux_err: Tensor, redshift: Tensor, tables: SupportTables, bands: BandSet
) -> Tensor:
    """Support flags (n,) int64, 0 inside; bit i is `flag_names(bands)[i]`.

    Args:
        flux, flux_err: (n, n_band) nanomaggies, float64; redshift: (n,). Any value is legal.
    """
    flux, flux_err, redshift = (
        torch.where(t.isfinite(), t, torch.nan) for t in (flux, flux_err, redshift)
    )
    mag = mag_from_flux(torch.where(flux > 0, flux, torch.nan))
    sigma = POGSON * flux_err / flux
    model = mag_error_model(mag.nan_to_num(0.0), tables)
    colors = torch.stack([mag[:, i] - mag[:, j] for i, j in bands.colors], dim=-1)
    density = log_conditional(_points(mag, sigma, redshift), tables.mixture())
    low, high = tables.mag_range.unbind(dim=-1)
    z_low, z_high = tables.redshift_range
    # A comparison with NaN is false: what has no magnitude sets its own bit and no other.
    rules = torch.cat(
        [
            mag.isfinite() & (sigma > model.mean + N_SIGMA * model.width),
            colors < tables.color_blue,
            (mag < low) | (mag > high),
            ((redshift < z_low) | (redshift > z_high))[:, None],
            mag.isfinite() & (flux_err > 0) & (sigma < tables.sigma_low),
            flux.isnan() | flux_err.isnan(),
            flux <= 0,
            flux_err <= 0,
            redshift.isnan()[:, None],
            (density < tables.density_low)[:, None],
        ],
        dim=-1,
    )
    bits = 1 << torch.arange(rules.shape[1], device=rules.device)
    return (rules.long() * bits).sum(dim=-1)


def can_encode(flux: Tensor, flux_err: Tensor, redshift: Tensor) -> Tensor:
    """Whether the context of each row is finite: finite flux, positive error and redshift; (n,)."""
    finite = flux.isfinite() & flux_err.isfinite() & (flux_err > 0)
    return finite.all(dim=-1) & redshift.isfinite() & (redshift > 0)


def any_flag(
    flags: NDArray[np.int64], names: tuple[str, ...], rules: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Whether flags (n,) have a bit whose name begins with one of `rules`."""
    mask = sum(1 << i for i, name in enumerate(names) if name.startswith(rules))
    return np.asarray((flags & mask) != 0)


def reasons_of(flags: int, names: tuple[str, ...]) -> list[str]:
    """Names of the bits set in flags."""
    return [name for i, name in enumerate(names) if flags >> i & 1]
