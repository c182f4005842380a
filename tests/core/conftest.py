"""Expensive things that several tests of the core share."""

from pathlib import Path

import numpy as np
import pytest

from sedflow_core.bands import BandSet, parse_band_set
from sedflow_core.galaxy import GalaxyModel, build_galaxy_model
from sedflow_core.simulation import (
    ForwardConfig,
    ForwardModel,
    TrainingSet,
    load_training_set,
    write_training_set,
)
from sedflow_core.ssp import SSPGrid, save_ssp

SYNTHETIC = ForwardConfig(ssp="synthetic")


@pytest.fixture(scope="session")
def ugriz() -> BandSet:
    return parse_band_set("sdss2010-ugriz")


@pytest.fixture(scope="session")
def forward() -> ForwardModel:
    """A forward model of synthetic stars in ugriz."""
    return SYNTHETIC.build()


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
