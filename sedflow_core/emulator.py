"""Parameters and one redshift -> noiseless band fluxes, without spectra: small enough to serve.

Band fluxes are linear in the light of each population, so at one redshift they are one matrix
product of population weights with band fluxes of the SSPs. Dust is smooth over a band: its
transmission is replaced by its values at a few wavelengths, with weights per wavelength fitted to
an ensemble of dust curves (an empirical quadrature, as for gravitational waves: Antil et al. 2013).
The tables come from the galaxy model itself in seconds; nothing is trained. Needs torch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.dust import attenuation_curve, birth_cloud_curve
from sedflow_core.interpolate import Position, locate
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
        redshift: (n_z,) evenly spaced from 0.
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
    """The emulator at one redshift; float32.

    Attributes:
        bins: time bins, with a leading axis of 1.
        bin_flux: (n_met * n_bin, 2 * n_column) of the time bins: inside birth clouds, then outside.
        age_nodes: (n_age,) ascending nodes age**-0.8 of `burst_flux`.
        burst_flux: (n_met, n_age, n_column) band fluxes of single populations.
        birth_cloud, wave_rest: (n_column,) relative birth-cloud depth and rest wavelength.
        cloud_age_gyr: age of the birth clouds.
        lg_scale: log10 of 1 / ((1 + z) D_L^2).
    """

    bins: TimeBins
    bin_flux: Tensor
    age_nodes: Tensor
    burst_flux: Tensor
    birth_cloud: Tensor
    wave_rest: Tensor
    cloud_age_gyr: float
    lg_scale: float


def fix_redshift(
    emulator: EmulatorTables, tables: PopulationTables, redshift: Tensor
) -> FixedRedshift:
    """The emulator at redshift (1,) within its range, to be called many times."""
    return fix_bins(emulator, tables, redshift, calc_time_bins(redshift, tables))


def fix_bins(
    emulator: EmulatorTables, tables: PopulationTables, redshift: Tensor, bins: TimeBins
) -> FixedRedshift:
    """As `fix_redshift`, for time bins at hand."""
    at = locate(redshift.double(), emulator.redshift)
    low, fraction = int(at.low), float(at.fraction)
    flux = torch.lerp(emulator.band_flux[low], emulator.band_flux[low + 1], fraction)
    # Ages descend in age**-0.8: flipped, the nodes ascend.
    nodes, flux = _fading(emulator.age_gyr).flip(0), flux.flip(1)
    position = locate(_fading(bins.center[0].double().clamp_min(1e-6)), nodes)
    weight = position.fraction.float()[:, None]
    of_bins = torch.lerp(flux[:, position.low], flux[:, position.low + 1], weight)
    young = younger_fraction(bins, float(emulator.birth_cloud_age_gyr))[0][:, None]
    distance = _interpolate_distance(tables, redshift)
    wave_rest = (emulator.wave.flatten() / (1.0 + redshift)).float()
    return FixedRedshift(
        bins=bins,
        bin_flux=torch.cat([of_bins * young, of_bins * (1.0 - young)], dim=-1).flatten(0, 1),
        age_nodes=nodes.float(),
        burst_flux=flux.contiguous(),
        birth_cloud=birth_cloud_curve(wave_rest),
        wave_rest=wave_rest,
        cloud_age_gyr=float(emulator.birth_cloud_age_gyr),
        lg_scale=-float(torch.log10((1.0 + redshift) * distance**2)),
    )


def _fading(age_gyr: Tensor) -> Tensor:
    return age_gyr**_AGE_POWER


def _interpolate_distance(tables: PopulationTables, redshift: Tensor) -> Tensor:
    index, fraction = locate(redshift.double(), tables.redshift)
    distance = tables.luminosity_distance_mpc
    return torch.lerp(distance[index], distance[index + 1], fraction)


def emulate(fixed: FixedRedshift, tables: PopulationTables, theta: Tensor, n_band: int) -> Tensor:
    """Noiseless flux (n, n_band) [nanomaggies, AB] of theta (n, n_theta), float32."""
    history = calc_history(theta[None], fixed.bins, tables)
    return emulate_history(fixed, tables, theta, history, n_band)


def emulate_history(
    fixed: FixedRedshift, tables: PopulationTables, theta: Tensor, history: History, n_band: int
) -> Tensor:
    """As `emulate`, for the histories of theta at hand."""
    light = _bin_weights(history, fixed, tables) @ fixed.bin_flux
    young, old = light.chunk(2, dim=-1)
    burst = history.burst[0][:, None] * _burst_flux(history, fixed, tables)
    in_cloud = (history.burst_age[0] < fixed.cloud_age_gyr)[:, None]
    tau_bc, tau_ism, n_dust = (
        column(theta, name)[:, None] for name in ("tau_bc", "tau_ism", "n_dust")
    )
    cloud = torch.exp(-tau_bc * fixed.birth_cloud)
    diffuse = torch.exp(-tau_ism * attenuation_curve(fixed.wave_rest, n_dust))
    light = (young * cloud + old + burst * torch.where(in_cloud, cloud, 1.0)) * diffuse
    per_mass = light.view(len(theta), n_band, -1).sum(dim=-1)
    scale: Tensor = 10.0 ** (column(theta, "log_mstar") + fixed.lg_scale)
    return per_mass * scale[:, None]


def _bin_weights(history: History, fixed: FixedRedshift, tables: PopulationTables) -> Tensor:
    """Mass (n, n_met * n_bin), split between the neighbouring metallicities of the grid."""
    mass, met = history.mass[0], locate_met(history.met[0], tables)
    n_met = fixed.burst_flux.shape[0]
    weights = mass.new_zeros((mass.shape[0], n_met, mass.shape[1]))
    upper = mass * met.fraction
    weights.scatter_(1, met.low[:, None], (mass - upper)[:, None])
    weights.scatter_(1, met.low[:, None] + 1, upper[:, None])
    return weights.flatten(1)


def _burst_flux(history: History, fixed: FixedRedshift, tables: PopulationTables) -> Tensor:
    """Band fluxes (n, n_column) of the bursts, per unit mass."""
    met = locate_met(history.burst_met[0], tables)
    age: Position = locate(_fading(history.burst_age[0]), fixed.age_nodes)
    weight, flux = age.fraction[:, None], fixed.burst_flux
    low, high = (
        torch.lerp(flux[m, age.low], flux[m, age.low + 1], weight) for m in (met.low, met.low + 1)
    )
    return torch.lerp(low, high, met.fraction[:, None])
