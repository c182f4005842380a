"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from sedflow_core import Artifact, load_artifact
from sedflow_core.testing import tiny_artifact

ROOT = Path(__file__).parent.parent

# A busy machine is no failure of the code.
hypothesis_settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("busy")


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real galaxies and alert packets that lies beside the checkout, not inside it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder}")
    if os.environ.get("CI") == "true" and not (folder / "galaxies_dev.csv.gz").exists():
        pytest.fail(f"expected real galaxies in {folder}, got none")
    return folder


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny artifact."""
    return tiny_artifact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Artifact:
    """The tiny artifact: complete, untrained."""
    return load_artifact(tiny_path)


@pytest.fixture(scope="session")
def shipped() -> Artifact:
    """The artifact that the package ships."""
    return load_artifact("sdss-ugriz")
