"""Observed photometry, and its one encoding as the flow's context.

Per band the context holds an asinh magnitude, finite for zero and negative flux, and the log of
the error on the same scale; then the log of the redshift. Fixed constants shift and rotate the
result to zero mean and unit covariance over the training set, because colours carry most of the
information in a small part of the magnitudes' range.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.errors import ObservationError
from sedflow_core.units import NANOMAGGY_ZERO_POINT, POGSON, Array

Photometry = tuple[Tensor, Tensor, Tensor]
"""flux (n, n_band), flux_err (n, n_band) [nanomaggies] and redshift (n,), float64."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Photometry of n galaxies.

    Attributes:
        flux: (n, n_band) total, dereddened AB flux in nanomaggies; zero and negative are legal.
        flux_err: (n, n_band) its standard error in nanomaggies.
        redshift: (n,) spectroscopic redshift.

    Raises:
        ObservationError: the shapes do not belong together. Values are not judged here:
            non-finite or unphysical ones become support flags.
    """

    flux: Array
    flux_err: Array
    redshift: Array

    def __post_init__(self) -> None:
        for name in ("flux", "flux_err", "redshift"):
            object.__setattr__(self, name, _as_numbers(getattr(self, name)))
        if self.flux.ndim != 2:
            raise ObservationError(f"flux: expected shape (n, n_band), got {self.flux.shape}")
        if self.flux_err.shape != self.flux.shape:
            raise ObservationError(
                f"flux_err: expected shape {self.flux.shape}, got {self.flux_err.shape}"
            )
        if self.redshift.shape != self.flux.shape[:1]:
            raise ObservationError(
                f"redshift: expected shape {self.flux.shape[:1]}, got {self.redshift.shape}"
            )

    def __len__(self) -> int:
        return len(self.redshift)

    def rows(self, index: slice | NDArray[Any]) -> "Observation":
        """The galaxies selected by a slice, mask or index array."""
        return Observation(self.flux[index], self.flux_err[index], self.redshift[index])

    def tensors(self, device: str = "cpu") -> Photometry:
        """The photometry on a device."""
        flux, flux_err = (torch.tensor(t, device=device) for t in (self.flux, self.flux_err))
        return flux, flux_err, torch.tensor(self.redshift, device=device)


def _as_numbers(values: Any) -> Array:
    """Contiguous float64, NaN where masked: what lies under a mask is no measurement."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, np.asarray(values, np.float64))
    return np.asarray(values, dtype=np.float64, order="C")


class ContextScale(NamedTuple):
    """Constants of the encoding; all float64.

    Attributes:
        softening: (n_band,) asinh softening flux in nanomaggies.
        mean: (n_context,) training mean of the raw context.
        whiten: (n_context, n_context) matrix that gives the centred context unit covariance.
    """

    softening: Tensor
    mean: Tensor
    whiten: Tensor


def raw_context(flux: Tensor, flux_err: Tensor, redshift: Tensor, softening: Tensor) -> Tensor:
    """Asinh magnitudes, log errors on that scale and log redshift: (n, 2 n_band + 1)."""
    scaled = flux / (2.0 * softening)
    asinh_mag = NANOMAGGY_ZERO_POINT - 2.5 * torch.log10(softening) - POGSON * torch.asinh(scaled)
    asinh_mag_err = POGSON * flux_err / torch.hypot(flux, 2.0 * softening)
    return torch.cat([asinh_mag, asinh_mag_err.log(), redshift.log()[:, None]], dim=-1)


def fit_context_scale(
    flux: Tensor, flux_err: Tensor, redshift: Tensor, softening: Tensor
) -> ContextScale:
    """Encoding constants from training photometry (n, n_band), (n, n_band), (n,)."""
    raw = raw_context(flux, flux_err, redshift, softening)
    mean = raw.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((raw - mean).T))
    return ContextScale(softening, mean, (vectors / values.sqrt()).T.contiguous())


def to_context(flux: Tensor, flux_err: Tensor, redshift: Tensor, scale: ContextScale) -> Tensor:
    """The flow's context (n, 2 n_band + 1), float32, for finite positive errors and redshifts.

    Args:
        flux: (n, n_band) nanomaggies, float64; flux_err alike; redshift: (n,).
        scale: constants fitted by `fit_context_scale`.
    """
    raw = raw_context(flux, flux_err, redshift, scale.softening) - scale.mean
    return multiply_rows(raw, scale.whiten).float()


def multiply_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ row for each of rows (n, n_in), (n, n_out).

    Not as one product of matrices: a row's bits must not depend on its batch.
    """
    return (rows.unsqueeze(1) * matrix).sum(dim=-1)
