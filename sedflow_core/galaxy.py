"""Parameters and redshift -> noiseless band fluxes: the PROVABGS galaxy model, batched.

The light of all time bins is one matrix product of SSP weights with the SSP grid. Two populations
lie between the grid's ages and are interpolated one by one: the burst, and the oldest bin, which
the age of the universe cuts.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sedflow_core.bands import BandSet, Transmission, load_transmission, rest_wave_range
from sedflow_core.dust import attenuation_curve, birth_cloud_curve
from sedflow_core.errors import MissingExtraError, SimulationError
from sedflow_core.interpolate import Position, interpolate, locate
from sedflow_core.nmf import NMFBases, load_nmf
from sedflow_core.prior import column
from sedflow_core.sfh import (
    BIN_EDGES_GYR,
    History,
    PopulationTables,
    TimeBins,
    calc_history,
    calc_time_bins,
    locate_met,
    younger_fraction,
)
from sedflow_core.ssp import SSPGrid, load_ssp
from sedflow_core.units import NJY_PER_NANOMAGGY

L_SUN_ERG_S = 3.846e33
MPC_CM = 3.0857e24
C_ANGSTROM_S = 2.99792458e18
NANOMAGGY_ERG_S_CM2_HZ = NJY_PER_NANOMAGGY * 1e-32
COSMOLOGY = "Planck13"
WAVE_STEP = 20.0
"""Bin width of the rest grid [Angstrom]."""
_N_REDSHIFT_PER_UNIT = 5000
_N_LOOKBACK = 1381
_CHUNK = 2048


class GalaxyModel(NamedTuple):
    """Everything the forward model needs, built once by `build_galaxy_model`.

    Attributes:
        bands: the band set of the fluxes.
        wave: (n_wave,) rest wavelength of the bin centres [Angstrom].
        ln_ssp: (n_met, n_age, n_wave) ln of the SSP flux [Lsun/A per Msun formed].
        bin_ssp: (n_met * n_bin, n_wave) SSP flux at the uncut bins' central ages.
        tables: ages, histories and surviving mass.
        photometry: (n_z, n_wave * n_band) flux [nanomaggies] of 1 Lsun/A in one rest bin where
            (1 + z) D_L^2 is 1 Mpc^2, on redshift nodes from 0 by redshift_step.
        redshift_step: spacing of the nodes.
        birth_cloud_age_gyr: populations younger than this see the birth clouds.
        ssp_provenance: source of the SSP grid, and of histories that are not ours.
    """

    bands: BandSet
    wave: Tensor
    ln_ssp: Tensor
    bin_ssp: Tensor
    tables: PopulationTables
    photometry: Tensor
    redshift_step: float
    birth_cloud_age_gyr: float
    ssp_provenance: dict[str, Any]


def build_galaxy_model(
    bands: BandSet,
    *,
    ssp: str = "bc03-miles",
    redshift_max: float = 0.2,
    birth_cloud_age_gyr: float = 0.1,
    nmf_dir: str | None = None,
) -> GalaxyModel:
    """The forward model for any band set and redshifts 0..redshift_max.

    Args:
        bands: see `sedflow_core.bands.parse_band_set`.
        ssp: SSP grid, see `sedflow_core.ssp.load_ssp`.
        redshift_max: largest redshift of the photometry and cosmology tables.
        birth_cloud_age_gyr: 0.1 in Hahn & Melchior (2022); their emulator used 0.01.
        nmf_dir: folder with the original NMF files; None for the shipped fit.

    Raises:
        BandError, GridError, MissingExtraError: filters, grid or their packages are not there.
    """
    curves = load_transmission(bands)
    wave_range = rest_wave_range(curves, redshift_max, WAVE_STEP)
    grid = load_ssp(ssp, wave_range=wave_range, wave_step=WAVE_STEP)
    nmf = load_nmf(nmf_dir)
    tables = build_population_tables(grid, nmf, redshift_max)
    provenance = dict(grid.provenance)
    if nmf_dir is not None:  # its path does not say what the files hold
        content = b"".join(curves.tobytes() for curves in nmf)
        provenance["nmf_sha256"] = hashlib.sha256(content).hexdigest()
    ln_ssp = torch.tensor(np.log(grid.flux), dtype=torch.float32)
    step = min(5e-4, redshift_max / 4)
    n_node = int(np.ceil(redshift_max / step)) + 2
    return GalaxyModel(
        bands=bands,
        wave=torch.tensor(0.5 * (grid.wave_edges[1:] + grid.wave_edges[:-1])).float(),
        ln_ssp=ln_ssp,
        bin_ssp=_ssp_of_bins(ln_ssp, tables),
        tables=tables,
        photometry=_photometry_table(curves, grid, step * np.arange(n_node)),
        redshift_step=step,
        birth_cloud_age_gyr=birth_cloud_age_gyr,
        ssp_provenance=provenance,
    )


def build_population_tables(grid: SSPGrid, nmf: NMFBases, redshift_max: float) -> PopulationTables:
    """Cosmology (Planck13), NMF histories and surviving mass as small float64 tables."""
    try:
        from astropy.cosmology import Planck13
    except ImportError as error:
        raise MissingExtraError("astropy", "sim") from error
    n_redshift = max(64, int(_N_REDSHIFT_PER_UNIT * redshift_max)) + 2
    redshift = np.linspace(0.0, redshift_max * 1.001, n_redshift)
    lookback = np.linspace(0.0, BIN_EDGES_GYR[-1], _N_LOOKBACK)
    sfh = np.stack([np.interp(lookback, nmf.lookback_gyr, basis) for basis in nmf.sfh])
    zh = np.stack([np.interp(lookback, nmf.lookback_gyr, basis) for basis in nmf.zh])
    steps = 0.5 * (sfh[:, 1:] + sfh[:, :-1]) * np.diff(lookback)
    cumulative = np.concatenate([np.zeros((len(sfh), 1)), np.cumsum(steps, axis=1)], axis=1)
    arrays = (
        redshift,
        Planck13.age(redshift).to_value("Gyr"),
        Planck13.luminosity_distance(redshift).to_value("Mpc"),
        lookback,
        cumulative,
        zh,
        grid.lg_age_gyr,
        grid.lg_met,
        grid.surviving,
    )
    return PopulationTables(*(torch.tensor(a, dtype=torch.float64) for a in arrays))


def _ssp_of_bins(ln_ssp: Tensor, tables: PopulationTables) -> Tensor:
    edges = torch.tensor(BIN_EDGES_GYR, dtype=torch.float64)
    center = 0.5 * (edges[1:] + edges[:-1])
    index, fraction = locate(center.log10(), tables.ssp_lg_age_gyr)
    weight = fraction.float()[:, None]
    return torch.lerp(ln_ssp[:, index], ln_ssp[:, index + 1], weight).exp().flatten(0, 1)


def _photometry_table(
    curves: tuple[Transmission, ...], grid: SSPGrid, redshift: np.ndarray
) -> Tensor:
    """Integrals of response * wavelength over each redshifted rest bin, per AB zero flux."""
    edges = grid.wave_edges[None, :] * (1.0 + redshift[:, None])
    per_band = []
    for curve in curves:
        wave = np.linspace(curve.wave[0], curve.wave[-1], 20_001)
        response = np.interp(wave, curve.wave, curve.response)
        weight = response * wave
        photons = np.concatenate([[0.0], np.cumsum(0.5 * (weight[1:] + weight[:-1]))])
        zero_flux = NANOMAGGY_ERG_S_CM2_HZ * C_ANGSTROM_S * np.trapezoid(response / wave, wave)
        integral = np.interp(edges, wave, photons * (wave[1] - wave[0]))
        per_band.append(np.diff(integral, axis=1) / zero_flux)
    table = np.stack(per_band, axis=-1) * L_SUN_ERG_S / (4.0 * np.pi * MPC_CM**2)
    return torch.tensor(table.reshape(len(redshift), -1), dtype=torch.float32)


def calc_band_flux(model: GalaxyModel, theta: Tensor, redshift: Tensor) -> Tensor:
    """Noiseless flux (n, n_band) [nanomaggies, AB], float64.

    Args:
        theta: (n, n_theta) physical parameters; redshift: (n,) within the model's range.

    Raises:
        SimulationError: a redshift is not positive, or beyond the model's range.
    """
    redshift_max = float(model.tables.redshift[-1])
    outside = ~((redshift > 0) & (redshift <= redshift_max))
    if outside.any():
        raise SimulationError(
            f"redshift: expected more than 0 and at most {redshift_max:.4g}, "
            f"got {float(redshift[outside][0]):.4g}"
        )
    chunks = zip(theta.float().split(_CHUNK), redshift.double().split(_CHUNK), strict=True)
    return torch.cat([_band_flux(model, t, z) for t, z in chunks])


def _band_flux(model: GalaxyModel, theta: Tensor, redshift: Tensor) -> Tensor:
    light = calc_luminosity(model, theta, redshift)
    position = (redshift / model.redshift_step).clamp(0.0, model.photometry.shape[0] - 1.001)
    index = position.long()
    fraction = (position - index).float()[:, None]
    table = torch.lerp(model.photometry[index], model.photometry[index + 1], fraction)
    per_band = table.view(*light.shape, len(model.bands.names))
    per_mass = torch.bmm(light[:, None, :], per_band)[:, 0].double()
    return per_mass * _distance_factor(model, theta, redshift)[:, None]


def _distance_factor(model: GalaxyModel, theta: Tensor, redshift: Tensor) -> Tensor:
    """Mass formed / ((1 + z) D_L^2), so that flux = factor * integrated rest luminosity."""
    tables = model.tables
    distance = interpolate(redshift, tables.redshift, tables.luminosity_distance_mpc)
    mass = 10.0 ** column(theta, "log_mstar").double()
    return mass / ((1.0 + redshift) * distance**2)


def calc_luminosity(model: GalaxyModel, theta: Tensor, redshift: Tensor) -> Tensor:
    """Attenuated rest-frame luminosity density (n, n_wave) [Lsun/A per Msun formed].

    Args:
        theta: (n, n_theta) float32; redshift: (n,), which sets the age of the universe.
    """
    bins = calc_time_bins(redshift, model.tables)
    history = calc_history(theta[:, None, :], bins, model.tables)
    young, old = _populations(model, history, bins)
    tau_bc, tau_ism, n_dust = (
        column(theta, name)[:, None] for name in ("tau_bc", "tau_ism", "n_dust")
    )
    clouds = torch.exp(-tau_bc * birth_cloud_curve(model.wave))
    diffuse = torch.exp(-tau_ism * attenuation_curve(model.wave, n_dust))
    return (young * clouds + old) * diffuse


def _populations(model: GalaxyModel, history: History, bins: TimeBins) -> tuple[Tensor, Tensor]:
    """Light of the populations inside and outside birth clouds, (n, n_wave) each."""
    mass, met = history.mass[:, 0], history.met[:, 0]
    in_cloud = younger_fraction(bins, model.birth_cloud_age_gyr)
    is_cut = (bins.high < torch.tensor(BIN_EDGES_GYR[1:])) & (bins.high > bins.low)
    on_grid = mass * ~is_cut
    met_position = locate_met(met, model.tables)
    young = _grid_weights(on_grid * in_cloud, met_position, model) @ model.bin_ssp
    old = _grid_weights(on_grid * (1.0 - in_cloud), met_position, model) @ model.bin_ssp
    cut_age = (bins.center * is_cut).sum(dim=-1).clamp_min(1e-3)
    cut_met = (met * is_cut).sum(dim=-1).clamp_min(1e-5)
    old = old + (mass * is_cut).sum(dim=-1)[:, None] * _ssp_at(model, cut_age, cut_met)
    burst_age, burst = history.burst_age[:, 0], history.burst
    light = burst * _ssp_at(model, burst_age, history.burst_met[:, 0])
    burst_in_cloud = (burst_age < model.birth_cloud_age_gyr)[:, None]
    return young + light * burst_in_cloud, old + light * ~burst_in_cloud


def _grid_weights(mass: Tensor, met: Position, model: GalaxyModel) -> Tensor:
    """Weights (n, n_met * n_bin) of the SSPs: mass split between neighbouring metallicities."""
    n_met = model.ln_ssp.shape[0]
    weights = mass.new_zeros((mass.shape[0], n_met, mass.shape[1]))
    weights.scatter_(1, met.low[:, None], (mass * (1.0 - met.fraction))[:, None])
    weights.scatter_(1, met.low[:, None] + 1, (mass * met.fraction)[:, None])
    return weights.flatten(1)


def _ssp_at(model: GalaxyModel, age_gyr: Tensor, met: Tensor) -> Tensor:
    """SSP flux (n, n_wave): linear over log Z, log-linear over log age; both (n,)."""
    age = locate(age_gyr.log10(), model.tables.ssp_lg_age_gyr.float())
    position = locate_met(met, model.tables)
    weight = age.fraction[:, None]
    low, high = (
        torch.lerp(model.ln_ssp[m, age.low], model.ln_ssp[m, age.low + 1], weight).exp_()
        for m in (position.low, position.low + 1)
    )
    return torch.lerp(low, high, position.fraction[:, None])
