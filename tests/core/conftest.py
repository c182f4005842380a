"""Expensive things that several tests of the core share."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, Observation
from sedflow_core.bands import BandSet, parse_band_set
from sedflow_core.galaxy import GalaxyModel, build_galaxy_model, calc_band_flux
from sedflow_core.prior import draw_u, from_u
from sedflow_core.simulation import (
    ForwardConfig,
    ForwardModel,
    TrainingSet,
    load_training_set,
    write_training_set,
)
from sedflow_core.ssp import SSPGrid, save_ssp
from sedflow_core.ssp_library import PACKAGED, Library

SYNTHETIC = ForwardConfig(ssp="synthetic")


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    """What draws from torch's own generator does not depend on the tests before it."""
    torch.manual_seed(0)


def golden(artifact: Artifact) -> Observation:
    """The golden galaxies of an artifact."""
    return Observation(*(artifact.golden[name] for name in ("flux", "flux_err", "redshift")))


@pytest.fixture(scope="session")
def bc03_library() -> Library:
    """BC03 on its own wavelengths."""
    return PACKAGED["bc03-miles"].read("unused")


@pytest.fixture(scope="session")
def ugriz() -> BandSet:
    return parse_band_set("sdss2010-ugriz")


@pytest.fixture(scope="session")
def forward() -> ForwardModel:
    """A forward model of synthetic stars in ugriz."""
    return SYNTHETIC.build()


VAGUE_MEAN, VAGUE_WIDTH, VAGUE_FLOOR = 0.6, 0.2, 0.05
"""Magnitude errors so large that draws from the prior meet the posterior."""


@pytest.fixture(scope="session")
def vague(forward: ForwardModel) -> ForwardModel:
    noise = forward.noise
    return forward._replace(
        noise=noise._replace(
            mean=torch.full_like(noise.mean, VAGUE_MEAN),
            width=torch.full_like(noise.width, VAGUE_WIDTH),
            floor=torch.full_like(noise.floor, VAGUE_FLOOR),
        )
    )


@pytest.fixture(scope="session")
def vague_observation() -> Observation:
    flux = 10 ** (0.4 * (22.5 - np.array([[19.0, 17.6, 17.0, 16.7, 16.5]])))
    return Observation(flux, 0.55 * flux, [0.08])


class PriorDraws(NamedTuple):
    """Draws u (n, n_u) from the prior, and the ln likelihoods (n,) of `vague_observation`."""

    u: torch.Tensor
    exact: np.ndarray
    gaussian: np.ndarray


@pytest.fixture(scope="session")
def prior_draws(vague: ForwardModel, vague_observation: Observation) -> PriorDraws:
    """The posterior by brute force, its likelihood written with scipy."""
    u = draw_u(60_000, torch.Generator().manual_seed(7))
    redshift = torch.full((len(u),), 0.08, dtype=torch.float64)
    model_flux = calc_band_flux(vague.galaxy, from_u(u), redshift).numpy()
    flux, flux_err = vague_observation.flux, vague_observation.flux_err
    gaussian = stats.norm(model_flux, flux_err).logpdf(flux).sum(axis=1)
    error = stats.truncnorm(
        (VAGUE_FLOOR - VAGUE_MEAN) / VAGUE_WIDTH, np.inf, VAGUE_MEAN, VAGUE_WIDTH
    )
    mag_err = 2.5 / np.log(10.0) * flux_err / model_flux
    exact = gaussian + (error.logpdf(mag_err) - np.log(model_flux)).sum(axis=1)
    return PriorDraws(u, exact, gaussian)


@pytest.fixture(scope="session")
def bc03_10myr(ugriz: BandSet) -> GalaxyModel:
    """BC03 galaxies with birth clouds of 10 Myr, as the emulator of PROVABGS has them."""
    return build_galaxy_model(ugriz, birth_cloud_age_gyr=0.01)


@pytest.fixture(scope="session")
def bc03_100myr(bc03_10myr: GalaxyModel) -> GalaxyModel:
    """BC03 galaxies with birth clouds of 100 Myr, as the paper's text has them."""
    return bc03_10myr._replace(birth_cloud_age_gyr=0.1)


@pytest.fixture(scope="session")
def flat_ssp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stars of every age and metallicity with one flat L_nu: 1e-4 (5500 A / lambda)^2 Lsun/A."""
    edges = np.arange(1000.0, 12001.0, 10.0)
    average = 1e-4 * 5500.0**2 / (edges[1:] * edges[:-1])
    shape = (2, 2, len(average))
    grid = SSPGrid(
        name="flat",
        lg_age_gyr=np.array([-4.0, 1.5]),
        lg_met=np.array([-4.0, -1.0]),
        wave_edges=edges,
        flux=np.broadcast_to(average, shape).astype(np.float32),
        surviving=np.ones(shape[:2], dtype=np.float32),
        provenance={"imf": None},
    )
    path = tmp_path_factory.mktemp("flat") / "flat.npz"
    save_ssp(grid, path)
    return path


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken training set of three small shards."""
    folder = tmp_path_factory.mktemp("training-set")
    *_, n_rows = write_training_set(folder, SYNTHETIC, n_rows=20_000, seed=4, blocks_per_shard=1)
    assert n_rows >= 20_000
    return folder


@pytest.fixture(scope="session")
def training_set(training_folder: Path) -> TrainingSet:
    return load_training_set(training_folder, 10_000)
