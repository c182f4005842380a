"""Simulations pushed outside the training support, each in one known way.

What goes wrong with real photometry: noisier or better than the training set's, colours that no
galaxy has, bands in the wrong order, a wrong unit, redshift or filter system, one bad band, dust of
the Milky Way left in.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.bands import FILTER_SYSTEMS, BandSet
from sedflow_core.corrections import EXTINCTION_PER_EBV
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.noise import draw_noise, load_noise
from sedflow_core.observation import Observation, Photometry
from sedflow_core.prior import from_u
from sedflow_core.simulation import ForwardConfig, ForwardModel, NoisySimulations, simulate_noisy
from sedflow_core.units import NJY_PER_NANOMAGGY, POGSON

CLEAN = "clean"
NOISE_FACTORS = (2.0, 5.0, 10.0)
COLOR_SCATTER_MAG = 0.5
BAND_FACTOR = 2.0
REDSHIFT_ERROR = 0.1
EBV_MAG = 0.2
MIN_SIGMA_MAG = 0.003
"""Smallest error without a calibration floor, as catalogues of bright galaxies have it."""
OTHER_SYSTEMS = {"sdss2010": "ugriz", "lsst2023": "ugrizy", "decam2014": "ugriz"}
"""Filter group -> its bands, for galaxies seen through a system other than the artifact's."""


class Setting(NamedTuple):
    """What a corruption may draw on."""

    config: ForwardConfig
    model: ForwardModel
    generator: torch.Generator

    @property
    def bands(self) -> BandSet:
        """The bands that are simulated."""
        return self.model.galaxy.bands


Corruption = Callable[[NoisySimulations, Setting], Photometry]


def corrupted_simulations(artifact: Artifact, n: int, seed: int) -> dict[str, Observation]:
    """n fresh simulations as they are (`CLEAN`) and n others for every corruption, by its name.

    Raises:
        MissingExtraError: the packages of the extra `sim` are not installed.
    """
    config = ForwardConfig(**artifact.manifest["provenance"]["forward_model"])
    model = forward_model(artifact)
    corruptions = all_corruptions(artifact.bands)
    rows = simulate_noisy(model, n * len(corruptions), seed=seed)
    setting = Setting(config, model, torch.Generator().manual_seed(seed))
    populations = {}
    for i, (name, corrupt) in enumerate(corruptions.items()):
        part = NoisySimulations(*(t[i * n : (i + 1) * n] for t in rows))
        populations[name] = Observation(*(t.numpy() for t in corrupt(part, setting)))
    return populations


def all_corruptions(bands: BandSet) -> dict[str, Corruption]:
    """Name -> corruption; `CLEAN`, which leaves photometry as it is, comes first."""
    noise = {f"noise_x{factor:g}": _with_noise(factor) for factor in NOISE_FACTORS}
    groups = [
        group
        for group, names in OTHER_SYSTEMS.items()
        if FILTER_SYSTEMS[group] != bands.system and set(bands.names) <= set(names)
    ]
    filters = {f"filters_of_{FILTER_SYSTEMS[g].lower()}": _with_filters(g) for g in groups}
    return {
        CLEAN: lambda rows, _: (rows.flux, rows.flux_err, rows.redshift),
        **noise,
        "no_error_floor": _without_floor,
        "odd_colors": _with_odd_colors,
        "neighbours_swapped": _with_neighbours_swapped,
        "order_reversed": _reversed,
        "njy_as_nanomaggy": _in_njy,
        "redshift_off": _with_redshift_off,
        "one_band_off": _with_one_band_off,
        "not_dereddened": _reddened,
        **filters,
    }


def _with_noise(factor: float) -> Corruption:
    """Errors larger by a factor, and said to be."""

    def corrupt(rows: NoisySimulations, setting: Setting) -> Photometry:
        flux, flux_err = draw_noise(rows.noiseless_flux, setting.model.noise, setting.generator)
        noisy = rows.noiseless_flux + factor * (flux - rows.noiseless_flux)
        return noisy, factor * flux_err, rows.redshift

    return corrupt


def _without_floor(rows: NoisySimulations, setting: Setting) -> Photometry:
    """Errors without the calibration floor of the atlas, and noise to match."""
    sigma = POGSON * rows.flux_err / rows.noiseless_flux
    floor = load_noise(setting.bands.names, "nsa").floor
    left = (sigma**2 - floor**2).clamp_min(MIN_SIGMA_MAG**2).sqrt()
    flux_err = left * rows.noiseless_flux / POGSON
    return rows.noiseless_flux + flux_err * _normal(rows, setting), flux_err, rows.redshift


def _normal(rows: NoisySimulations, setting: Setting) -> Tensor:
    return torch.randn(rows.flux.shape, generator=setting.generator, dtype=torch.float64)


def _with_odd_colors(rows: NoisySimulations, setting: Setting) -> Photometry:
    factor = 10.0 ** (0.4 * COLOR_SCATTER_MAG * _normal(rows, setting))
    return rows.flux * factor, rows.flux_err * factor, rows.redshift


def _with_neighbours_swapped(rows: NoisySimulations, setting: Setting) -> Photometry:
    """The second and third band in each other's place, g and r of ugriz."""
    order = list(range(len(setting.bands.names)))
    order[1:3] = reversed(order[1:3])
    return rows.flux[:, order], rows.flux_err[:, order], rows.redshift


def _reversed(rows: NoisySimulations, _: Setting) -> Photometry:
    return rows.flux.flip(1), rows.flux_err.flip(1), rows.redshift


def _in_njy(rows: NoisySimulations, _: Setting) -> Photometry:
    return rows.flux * NJY_PER_NANOMAGGY, rows.flux_err * NJY_PER_NANOMAGGY, rows.redshift


def _with_redshift_off(rows: NoisySimulations, setting: Setting) -> Photometry:
    """Too high where that stays in the training range, else as much too low as it allows."""
    lowest, highest = setting.model.redshift_range
    high = rows.redshift + REDSHIFT_ERROR
    low = (rows.redshift - REDSHIFT_ERROR).clamp_min(lowest)
    return rows.flux, rows.flux_err, torch.where(high < highest, high, low)


def _with_one_band_off(rows: NoisySimulations, setting: Setting) -> Photometry:
    """One band, any, too bright or too faint by `BAND_FACTOR`."""
    n, n_band = rows.flux.shape
    band, brighter = torch.rand((2, n), generator=setting.generator)
    factor = torch.ones_like(rows.flux)
    off = torch.where(brighter < 0.5, BAND_FACTOR, 1.0 / BAND_FACTOR).double()
    factor[torch.arange(n), (band * n_band).long()] = off
    return rows.flux * factor, rows.flux_err * factor, rows.redshift


def _reddened(rows: NoisySimulations, setting: Setting) -> Photometry:
    """Dimmed by the dust of the Milky Way at E(B-V) = `EBV_MAG`."""
    per_ebv = EXTINCTION_PER_EBV[setting.bands.system]
    extinction = EBV_MAG * torch.tensor([per_ebv[b] for b in setting.bands.names]).double()
    factor = 10.0 ** (-0.4 * extinction)
    return rows.flux * factor, rows.flux_err * factor, rows.redshift


def _with_filters(group: str) -> Corruption:
    """The same galaxies through the filters of another system."""

    def corrupt(rows: NoisySimulations, setting: Setting) -> Photometry:
        bands = f"{group}-{''.join(setting.bands.names)}"
        other = setting.config._replace(bands=bands).build()
        noiseless = calc_band_flux(other.galaxy, from_u(rows.u), rows.redshift)
        flux, flux_err = draw_noise(noiseless, setting.model.noise, setting.generator)
        return flux, flux_err, rows.redshift

    return corrupt
