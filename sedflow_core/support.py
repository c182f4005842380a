"""Does an observation lie inside the training support? One bit per rule, band and colour.

The two rules of Hahn & Melchior (2022, Appendix) are `sigma_high` (a magnitude error more than
three widths above its mean at the observed magnitude) and `color_blue` (a colour bluer than 99.9 %
of the noisy training colours). Beyond the paper: ranges of magnitude, redshift and small errors,
and values no flux, error or redshift can have.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.bands import BandSet
from sedflow_core.errors import BandError
from sedflow_core.noise import NoiseModel, mag_error_model, mag_from_flux
from sedflow_core.units import POGSON

N_SIGMA = 3.0
TAIL = 1e-3
"""Fraction of the training set beyond each colour and small-error limit."""


class SupportTables(NamedTuple):
    """Limits of the training support, float64.

    Attributes:
        mag, mean, width: (n_band, n_node) magnitude error of the training set against magnitude.
        mag_range: (n_band, 2); redshift_range: (2,).
        color_blue: (n_color,) bluest supported colours, in the order of `BandSet.colors`.
        sigma_low: (n_band,) smallest supported magnitude errors.
    """

    mag: Tensor
    mean: Tensor
    width: Tensor
    mag_range: Tensor
    redshift_range: Tensor
    color_blue: Tensor
    sigma_low: Tensor


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
    )
    if len(rules) > 63:
        raise BandError(f"support flags: expected at most 63 bits, got {len(rules)} for {names}")
    return rules


def fit_support(
    flux: Tensor,
    flux_err: Tensor,
    noise: NoiseModel,
    redshift_range: tuple[float, float],
    bands: BandSet,
) -> SupportTables:
    """Support limits from noisy training photometry (n, n_band), float64 [nanomaggies]."""
    mag = mag_from_flux(flux)
    colors = torch.stack([mag[:, i] - mag[:, j] for i, j in bands.colors], dim=-1)
    return SupportTables(
        mag=noise.mag,
        mean=noise.mean,
        width=noise.width,
        mag_range=noise.mag_range,
        redshift_range=torch.tensor(redshift_range, dtype=torch.float64),
        color_blue=_lower_tail(colors),
        sigma_low=_lower_tail(POGSON * flux_err / flux),
    )


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
        ],
        dim=-1,
    )
    bits = torch.ones((), dtype=torch.int64) << torch.arange(rules.shape[1])
    return (rules.long() * bits).sum(dim=-1)


def can_encode(flux: Tensor, flux_err: Tensor, redshift: Tensor) -> Tensor:
    """Whether the context of each row is finite: finite flux, positive error and redshift; (n,)."""
    finite = flux.isfinite() & flux_err.isfinite() & (flux_err > 0)
    return finite.all(dim=-1) & redshift.isfinite() & (redshift > 0)


def reasons_of(flags: int, names: tuple[str, ...]) -> list[str]:
    """Names of the bits set in flags."""
    return [name for i, name in enumerate(names) if flags >> i & 1]
