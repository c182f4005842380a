"""Parameters and redshift -> noiseless band fluxes, without spectra: small enough to serve.

Band fluxes are linear in the light of each population, so at one redshift they are one matrix
product of population weights with band fluxes of the SSPs. Dust is smooth over a band: its
transmission is replaced by its values at a few wavelengths, with weights per wavelength fitted to
an ensemble of dust curves (an empirical quadrature, as for gravitational waves: Antil et al. 2013).
The tables come from the galaxy model itself in seconds; nothing is trained. Needs torch alone.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.dust import attenuation_curve, birth_cloud_curve
from sedflow_core.interpolate import Position, interpolate, locate, ramp_factors
from sedflow_core.prior import column
from sedflow_core.sfh import (
    History,
    PopulationTables,
    TimeBins,
    calc_history,
    calc_time_bins,
    locate_met,
    younger_fraction,
)

_AGE_POWER = -0.8
"""Stars fade as about this power of age, so fluxes are nearly linear in it between nodes."""


class EmulatorTables(NamedTuple):
    """What the emulator needs beside `PopulationTables`.

    Attributes:
        redshift: (n_z,) ascending from 0.
        wave: (n_band, n_node) observed wavelengths at which dust is evaluated [Angstrom].
        age_gyr: (n_age,) ascending ages of the populations.
        band_flux: (n_z, n_met, n_age, n_band * n_node) flux [nanomaggies] of 1 Msun formed at
            (1 + z) D_L^2 = 1 Mpc^2, split among the dust nodes; float32.
        birth_cloud_age_gyr: (1,) populations younger than this see the birth clouds.
    """

    redshift: Tensor
    wave: Tensor
    age_gyr: Tensor
    band_flux: Tensor
    birth_cloud_age_gyr: Tensor


class FixedRedshift(NamedTuple):
    """The emulator at the redshifts of n galaxies; float32.

    Attributes:
        bins: time bins.
        bin_flux: (n, n_met, n_bin, 2 * n_column) of the time bins, as factors of the ramps of
            log10 Z: inside birth clouds, then outside.
        age_nodes: (n_age,) ascending nodes age**-0.8 of `burst_flux`.
        burst_flux: (n, n_met, n_age, n_column) band fluxes of single populations.
        birth_cloud, wave_rest: (n, n_column) relative birth-cloud depth and rest wavelength.
        cloud_age_gyr: age of the birth clouds.
        lg_scale: (n,) log10 of 1 / ((1 + z) D_L^2).
    """

    bins: TimeBins
    bin_flux: Tensor
    age_nodes: Tensor
    burst_flux: Tensor
    birth_cloud: Tensor
    wave_rest: Tensor
    cloud_age_gyr: float
    lg_scale: Tensor


def fix_redshift(
    emulator: EmulatorTables, tables: PopulationTables, redshift: Tensor
) -> FixedRedshift:
    """The emulator at redshifts (n,) within its range, to be called many times."""
    at = locate(redshift.double(), emulator.redshift)
    fraction = at.fraction.float()[:, None, None, None]
    low, high = emulator.band_flux[at.low], emulator.band_flux[at.low + 1]
    flux = high.sub_(low).mul_(fraction).add_(low)  # lerp is slow where weights are broadcast
    # Ages descend in age**-0.8: flipped, the nodes ascend.
    nodes, flux = _fading(emulator.age_gyr).flip(0), flux.flip(2)
    bins = calc_time_bins(redshift, tables)
    young = younger_fraction(bins, float(emulator.birth_cloud_age_gyr))[:, None, :, None]
    of_bins = ramp_factors(_flux_of_bins(bins, nodes, flux), tables.ssp_lgmet.float())
    distance = interpolate(redshift.double(), tables.redshift, tables.luminosity_distance_mpc)
    wave_rest = (emulator.wave.flatten() / (1.0 + redshift[:, None])).float()
    return FixedRedshift(
        bins=bins,
        bin_flux=torch.cat([of_bins * young, of_bins * (1.0 - young)], dim=-1),
        age_nodes=nodes.float(),
        burst_flux=flux,
        birth_cloud=birth_cloud_curve(wave_rest),
        wave_rest=wave_rest,
        cloud_age_gyr=float(emulator.birth_cloud_age_gyr),
        lg_scale=-torch.log10((1.0 + redshift) * distance**2).float(),
    )


def _fading(age_gyr: Tensor) -> Tensor:
    return age_gyr**_AGE_POWER


def _flux_of_bins(bins: TimeBins, nodes: Tensor, flux: Tensor) -> Tensor:
    """Band fluxes (n, n_met, n_bin, n_column) at the bins' centres."""
    position = locate(_fading(bins.center.double().clamp_min(1e-6)), nodes)
    galaxy = torch.arange(len(flux), device=flux.device)[:, None]
    # An index on both sides of a slice moves its axes to the front: (n, n_bin, n_met, n_column).
    low, high = (flux[galaxy, :, index] for index in (position.low, position.low + 1))
    return torch.lerp(low, high, position.fraction.float()[..., None, None]).transpose(1, 2)


def emulate(fixed: FixedRedshift, tables: PopulationTables, theta: Tensor, n_band: int) -> Tensor:
    """Noiseless flux (n, n_sample, n_band) [nanomaggies, AB] of theta (n, n_sample, n_theta)."""
    return emulate_history(fixed, tables, theta, calc_history(theta, fixed.bins, tables), n_band)


def emulate_history(
    fixed: FixedRedshift, tables: PopulationTables, theta: Tensor, history: History, n_band: int
) -> Tensor:
    """`emulate` where the history (n, n_sample) is known."""
    young, old = _light_of_bins(history, fixed, tables).chunk(2, dim=-1)
    burst = history.burst[..., None] * _burst_flux(history, fixed, tables)
    in_cloud = (history.burst_age < fixed.cloud_age_gyr)[..., None]
    tau_bc, tau_ism = (column(theta, name)[..., None] for name in ("tau_bc", "tau_ism"))
    cloud = torch.exp(-tau_bc * fixed.birth_cloud[:, None])
    curve = attenuation_curve(fixed.wave_rest[:, None], column(theta, "n_dust")[..., None])
    diffuse = torch.exp(-tau_ism * curve)
    light = (young * cloud + old + burst * torch.where(in_cloud, cloud, 1.0)) * diffuse
    per_mass: Tensor = light.view(*light.shape[:2], n_band, -1).sum(dim=-1)
    scale: Tensor = 10.0 ** (column(theta, "log_mstar") + fixed.lg_scale[:, None])
    return per_mass * scale[..., None]


def _light_of_bins(history: History, fixed: FixedRedshift, tables: PopulationTables) -> Tensor:
    """Band fluxes (n, n_sample, 2 * n_column) of the time bins: young stars', then old ones'."""
    mass, lgmet = history.mass.mT, history.met.mT.log10()
    light = mass.mT @ fixed.bin_flux[:, 0]
    ramp = torch.empty_like(mass)
    for k, (low, high) in enumerate(pairwise(tables.ssp_lgmet.tolist()), start=1):
        torch.clamp(lgmet, low, high, out=ramp).mul_(mass)
        light.baddbmm_(ramp.mT, fixed.bin_flux[:, k])
    return light


def _burst_flux(history: History, fixed: FixedRedshift, tables: PopulationTables) -> Tensor:
    """Band fluxes (n, n_sample, n_column) of the bursts, per unit mass."""
    met = locate_met(history.burst_met, tables)
    age: Position = locate(_fading(history.burst_age), fixed.age_nodes)
    weight, flux = age.fraction[..., None], fixed.burst_flux
    galaxy = torch.arange(len(flux), device=flux.device)[:, None]
    low, high = (
        torch.lerp(flux[galaxy, m, age.low], flux[galaxy, m, age.low + 1], weight)
        for m in (met.low, met.low + 1)
    )
    return torch.lerp(low, high, met.fraction[..., None])
