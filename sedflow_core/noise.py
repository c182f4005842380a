"""The photometric noise model of Hahn & Melchior (2022), Eqs. 4-5, from NASA-Sloan Atlas figures.

Each band's magnitude error is normal, with mean and width interpolated at the noiseless magnitude,
and truncated below at the calibration floor (redrawn, not clipped); the flux then gets normal noise
of that error. The observer knows only the noisy flux and the flux error. The errors that networks
are trained on spread more widely than the atlas's, see `widen`.
"""

import json
from importlib import resources
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sedflow_core.errors import BandError, SimulationError
from sedflow_core.interpolate import interpolate_rows
from sedflow_core.units import NANOMAGGY_ZERO_POINT, POGSON

MIN_SPREAD = 0.2
"""Of the widened errors: least width over mean."""
FLOOR_SHARE = 0.5
"""Floor of the widened errors over that of the survey."""


class NoiseModel(NamedTuple):
    """Magnitude errors per band, all float64.

    Attributes:
        mag: (n_band, n_node) AB magnitude of the nodes, ascending.
        mean, width: (n_band, n_node) mean and standard deviation of the magnitude error.
        floor: (n_band,) smallest magnitude error.
        mag_range: (n_band, 2) range of observed magnitudes that the figures cover.
    """

    mag: Tensor
    mean: Tensor
    width: Tensor
    floor: Tensor
    mag_range: Tensor


class MagError(NamedTuple):
    """Mean and width of the untruncated magnitude error, (..., n_band) each."""

    mean: Tensor
    width: Tensor


def load_noise(bands: tuple[str, ...], survey: str = "nsa-wide") -> NoiseModel:
    """The shipped noise figures of a survey for the named bands.

    Args:
        bands: their names.
        survey: "nsa" as the NASA-Sloan Atlas has them, or "nsa-wide", see `widen`.

    Raises:
        SimulationError: there are no such figures.
        BandError: the figures lack a band.
    """
    if survey not in ("nsa", "nsa-wide"):
        raise SimulationError(f"noise: expected nsa or nsa-wide, got {survey!r}")
    text = resources.files("sedflow_core").joinpath("data/noise_nsa.json").read_text()
    figures = json.loads(text)["bands"]
    missing = [band for band in bands if band not in figures]
    if missing:
        raise BandError(f"noise: expected bands among {sorted(figures)}, got {missing}")
    per_band = [figures[band] for band in bands]
    longest = max(len(f["mag"]) for f in per_band)

    def stack(key: str, step: float) -> Tensor:
        # Bands with fewer nodes repeat their last value beyond their end.
        rows = [
            f[key] + [f[key][-1] + step * (i + 1) for i in range(longest - len(f[key]))]
            for f in per_band
        ]
        return torch.tensor(rows, dtype=torch.float64)

    noise = NoiseModel(
        mag=stack("mag", 1.0),
        mean=stack("sigma_median", 0.0),
        width=stack("sigma_std", 0.0),
        floor=torch.tensor([f["floor"] for f in per_band], dtype=torch.float64),
        mag_range=torch.tensor([f["mag_range"] for f in per_band], dtype=torch.float64),
    )
    return widen(noise) if survey == "nsa-wide" else noise


def widen(noise: NoiseModel) -> NoiseModel:
    """The noise model with errors that spread by `MIN_SPREAD` of their mean at least.

    The errors of bright galaxies are hardly more than the calibration floor, in some bins within a
    thousandth of it. As an error is relative to the noiseless flux, it would tell that flux far
    better than the observed flux does, and the posterior would end where the error meets the floor.
    """
    return noise._replace(
        width=torch.maximum(noise.width, MIN_SPREAD * noise.mean), floor=FLOOR_SHARE * noise.floor
    )


def mag_from_flux(flux: Tensor) -> Tensor:
    """AB magnitude of flux [nanomaggies]; NaN or infinity where it is not positive."""
    return NANOMAGGY_ZERO_POINT - 2.5 * torch.log10(flux)


class MagErrorNodes(Protocol):
    """Anything that tabulates the magnitude error: nodes, mean and width, (n_band, n_node) each."""

    @property
    def mag(self) -> Tensor:
        """AB magnitude of the nodes, ascending."""

    @property
    def mean(self) -> Tensor:
        """Mean of the magnitude error."""

    @property
    def width(self) -> Tensor:
        """Standard deviation of the magnitude error."""


def mag_error_model(mag: Tensor, nodes: MagErrorNodes) -> MagError:
    """Mean and width of the magnitude error at mag (..., n_band), constant beyond the nodes."""
    by_band = mag.reshape(-1, mag.shape[-1]).T.contiguous()
    of_band = interpolate_rows(by_band, nodes.mag, nodes.mean, nodes.width)
    mean, width = (values.T.reshape(mag.shape) for values in of_band)
    return MagError(mean, width)


def draw_noise(
    flux: Tensor, noise: NoiseModel, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noisy flux and its error for noiseless flux (n, n_band) > 0 [nanomaggies], float64.

    The truncated normal is drawn by inversion, so every row costs the same number of draws.
    """
    shape = (2, *flux.shape)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=flux.device)
    model = mag_error_model(mag_from_flux(flux), noise)
    below = torch.special.ndtr((noise.floor - model.mean) / model.width)
    quantile = (below + (1.0 - below) * uniform[0]).clamp_max(1.0 - 1e-12)
    sigma_mag = torch.maximum(model.mean + model.width * torch.special.ndtri(quantile), noise.floor)
    flux_err = sigma_mag * flux / POGSON
    normal = torch.special.ndtri(uniform[1].clamp(1e-16, 1.0 - 1e-16))
    return flux + flux_err * normal, flux_err


def log_likelihood(flux: Tensor, flux_err: Tensor, model_flux: Tensor, noise: NoiseModel) -> Tensor:
    """ln p(flux, flux_err | noiseless model_flux) up to a constant, summed over bands; (...).

    Both factors of the generative model: the normal flux, and the truncated-normal magnitude error
    at the noiseless magnitude with its normaliser and Jacobian. -inf below the error floor.

    Args:
        flux, flux_err: (..., n_band) observed [nanomaggies]; model_flux: (..., n_band) noiseless.
    """
    chi = (flux - model_flux) / flux_err
    gauss = -0.5 * chi**2 - flux_err.log()
    sigma_mag = POGSON * flux_err / model_flux
    model = mag_error_model(mag_from_flux(model_flux), noise)
    pull = (sigma_mag - model.mean) / model.width
    kept = torch.special.log_ndtr(-(noise.floor - model.mean) / model.width)
    error = -0.5 * pull**2 - model.width.log() - kept - model_flux.log()
    log_prob = torch.where(sigma_mag >= noise.floor, gauss + error, -torch.inf)
    return log_prob.sum(dim=-1)


def gaussian_log_likelihood(flux: Tensor, flux_err: Tensor, model_flux: Tensor) -> Tensor:
    """The paper's plain likelihood (Eq. 1), up to a constant, summed over bands; (...)."""
    return (-0.5 * ((flux - model_flux) / flux_err) ** 2).sum(dim=-1)


def in_mag_range(flux: Tensor, noise: NoiseModel) -> Tensor:
    """Whether every band of flux (n, n_band) lies in the magnitude range; (n,) bool."""
    mag = mag_from_flux(flux)
    inside = (mag >= noise.mag_range[:, 0]) & (mag <= noise.mag_range[:, 1])
    return inside.all(dim=-1)
