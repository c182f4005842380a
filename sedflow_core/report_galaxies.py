"""Figures of galaxies for the report: photometry, support, one posterior and its best fits."""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sedflow_core.artifact import Artifact
from sedflow_core.estimation import find_flags
from sedflow_core.fresh_simulations import Simulations
from sedflow_core.galaxy import GalaxyModel, calc_band_flux, calc_luminosity
from sedflow_core.importance import Weighted, weigh
from sedflow_core.mcmc import sample_exact
from sedflow_core.observation import Observation
from sedflow_core.paper_figures import induced_prior, support_planes, training_against_real
from sedflow_core.prior import PARAM_NAMES, from_u
from sedflow_core.quantities import calc_quantities
from sedflow_core.report_figures import best_fit, flow_against_exact
from sedflow_core.simulation import ForwardModel, draw_prior, stream_generator
from sedflow_core.support import any_flag
from sedflow_core.units import Array, mag_err_from_flux, mag_from_nanomaggy

_N_PRIOR, _SEED = 50_000, 0
_N_BEST = 1_000


class Galaxy(NamedTuple):
    """One galaxy, its weighted flow samples, its MCMC samples and its truth where there are any."""

    observation: Observation
    weighted: Weighted
    mcmc: NDArray[np.float32] | None
    truth: Array | None


def photometric_quantities(artifact: Artifact, observation: Observation) -> dict[str, Array]:
    """Label -> (n,): redshift, magnitudes of all bands, and magnitude errors; NaN where none."""
    bands = artifact.bands.names
    mag = mag_from_nanomaggy(observation.flux)
    mag_err = mag_err_from_flux(observation.flux, observation.flux_err)
    return {
        "redshift": observation.redshift,
        **{f"${band}$ [mag]": mag[:, i] for i, band in enumerate(bands)},
        **{rf"$\log\,\sigma_{band}$": np.log10(mag_err[:, i]) for i, band in enumerate(bands)},
    }


def figure_of_training(
    artifact: Artifact,
    simulations: Simulations,
    galaxies: Observation | None,
    highlight: int | None,
) -> Figure:
    """Figure 1 of the paper: what the flow was trained on, and real galaxies."""
    seen = photometric_quantities(artifact, simulations.observation)
    bands = artifact.bands.names
    shown = ["redshift", *(f"${b}$ [mag]" for b in bands[1:3]), rf"$\log\,\sigma_{bands[2]}$"]
    simulated = {
        r"$\log\,M_{\rm formed}$": simulations.theta[:, PARAM_NAMES.index("log_mstar")],
        r"$\beta_1$": simulations.theta[:, PARAM_NAMES.index("beta1")],
        **{name: seen[name] for name in shown},
    }
    if galaxies is None:
        return training_against_real(simulated, {})
    real = photometric_quantities(artifact, galaxies)
    return training_against_real(simulated, {name: real[name] for name in shown}, highlight)


def figure_of_support(
    artifact: Artifact, simulations: Simulations, galaxies: Observation | None
) -> Figure:
    """Figure 5 of the paper: galaxies outside the support, by rule; simulations where none real."""
    observation = simulations.observation if galaxies is None else galaxies
    flags = find_flags(artifact, observation)
    flagged = {
        "errors too large": any_flag(flags, artifact.flag_names, ("sigma_high",)),
        "colours too blue": any_flag(flags, artifact.flag_names, ("color_blue",)),
    }
    flagged["any other rule"] = (flags != 0) & ~np.any(list(flagged.values()), axis=0)
    training, shown = (
        photometric_quantities(artifact, o) for o in (simulations.observation, observation)
    )
    for values in (training, shown):
        _add_colors(values, artifact.bands.names)
    bands = artifact.bands.names
    first, second, third, middle, last = *bands[:3], bands[len(bands) // 2], bands[-1]
    planes = [(f"${b}$ [mag]", rf"$\log\,\sigma_{b}$") for b in (first, middle, last)]
    planes += [
        (f"${second}-{third}$", f"${first}-{second}$"),
        (f"${middle}$ [mag]", f"${middle}-{last}$"),
        ("redshift", f"${middle}$ [mag]"),
    ]
    return support_planes(planes, training, shown, flagged)


def _add_colors(values: dict[str, Array], bands: tuple[str, ...]) -> None:
    middle = bands[len(bands) // 2]
    for a, b in ((bands[0], bands[1]), (bands[1], bands[2]), (middle, bands[-1])):
        values[f"${a}-{b}$"] = values[f"${a}$ [mag]"] - values[f"${b}$ [mag]"]


def figure_of_prior(artifact: Artifact, model: ForwardModel, simulations: Simulations) -> Figure:
    """The prior on derived quantities, and what the magnitude cuts leave of it."""
    u, redshift = draw_prior(model, _N_PRIOR, stream_generator(_SEED, 0))
    names = artifact.derived_names
    prior = calc_quantities(from_u(u), redshift, artifact.tables, names).T.numpy()
    return induced_prior(
        dict(zip(names, prior, strict=True)),
        dict(zip(names, simulations.derived.T, strict=True)),
        [factor.name for factor in model.prior],
    )


def examine(
    artifact: Artifact,
    model: ForwardModel,
    observation: Observation,
    truth: Array | None,
    *,
    with_mcmc: bool,
) -> Galaxy:
    """Sample the posterior of one galaxy by the flow, by weights and, if wished for, by MCMC."""
    mcmc = sample_exact(artifact, observation, model=model).theta() if with_mcmc else None
    return Galaxy(observation, weigh(artifact, model, observation), mcmc, truth)


def figure_of_posterior(artifact: Artifact, galaxy: Galaxy) -> Figure:
    """Figure 2 of the paper, above: parameters and derived quantities by each method."""
    names = PARAM_NAMES + artifact.derived_names
    redshift = torch.tensor(galaxy.observation.redshift)

    def values(theta: NDArray[np.float32]) -> Array:
        of_each = calc_quantities(torch.tensor(theta), redshift, artifact.tables, names)
        return np.asarray(of_each.numpy())

    return flow_against_exact(
        values(galaxy.weighted.theta[:, 0]),
        galaxy.weighted.weights[:, 0],
        names,
        truth=galaxy.truth,
        mcmc=None if galaxy.mcmc is None else values(galaxy.mcmc),
    )


def figure_of_fit(artifact: Artifact, model: ForwardModel, galaxy: Galaxy) -> Figure:
    """Figure 2 of the paper, below: the spectra of the best fits."""
    observation = galaxy.observation
    methods = {"the flow's samples": galaxy.weighted.theta[:_N_BEST, 0]}
    if galaxy.mcmc is None:
        order = np.argsort(galaxy.weighted.weights[:, 0])[-_N_BEST:]
        methods["those of largest weight"] = galaxy.weighted.theta[order, 0]
    else:
        methods["the exact posterior's"] = galaxy.mcmc[:_N_BEST]
    spectra, chi_square = {}, {}
    for method, theta in methods.items():
        best, chi_square[method] = best_sample(model.galaxy, observation, theta)
        wave, spectra[method] = calc_spectrum(model.galaxy, best, observation.redshift)
    photometry = magnitudes(model.galaxy, observation)
    return best_fit(photometry, wave, spectra, chi_square, artifact.bands.names)


def best_sample(
    galaxy: GalaxyModel, observation: Observation, theta: NDArray[np.float32]
) -> tuple[torch.Tensor, float]:
    """The sample (1, n_theta) of theta (n, n_theta) that fits one galaxy best; its chi-square."""
    redshift = torch.tensor(observation.redshift).expand(len(theta))
    flux = calc_band_flux(galaxy, torch.tensor(theta), redshift).numpy()
    chi_square = (((flux - observation.flux) / observation.flux_err) ** 2).sum(axis=1)
    best = int(chi_square.argmin())
    return torch.tensor(theta[best : best + 1]), float(chi_square[best])


def calc_spectrum(galaxy: GalaxyModel, theta: torch.Tensor, redshift: Array) -> tuple[Array, Array]:
    """Observed wavelengths [Angstrom] and AB magnitudes (n_wave,) of one galaxy."""
    z = torch.tensor(redshift)
    light = calc_luminosity(galaxy, theta.float(), z)[0].double()
    weight = galaxy.photometry[round(float(redshift[0]) / galaxy.redshift_step)]
    weight = weight.view(len(light), -1)[:, 0].double()
    # Of a flat spectrum f_nu, L ~ 1 / wave^2, the band flux is f_nu itself.
    flat = (weight / galaxy.wave.double().square()).sum()
    band_flux = calc_band_flux(galaxy, theta, z)[0, 0]
    flux = light * galaxy.wave.double().square() * flat * band_flux / (light * weight).sum()
    return (galaxy.wave * (1.0 + redshift[0])).numpy(), mag_from_nanomaggy(flux.numpy())


def magnitudes(galaxy: GalaxyModel, observation: Observation) -> tuple[Array, Array, Array]:
    """Mean wavelengths [Angstrom], AB magnitudes and errors (n_band,) of the first galaxy."""
    response = galaxy.photometry[0].view(len(galaxy.wave), -1).double()
    wave = (response * galaxy.wave[:, None]).sum(dim=0) / response.sum(dim=0)
    flux, flux_err = observation.flux[0], observation.flux_err[0]
    return wave.numpy(), mag_from_nanomaggy(flux), mag_err_from_flux(flux, flux_err)
