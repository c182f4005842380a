"""Noisy simulations of an artifact's own forward model, for tests of its posteriors."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sedflow_core.artifact import Artifact
from sedflow_core.observation import Observation
from sedflow_core.units import Array

if TYPE_CHECKING:
    from sedflow_core.simulation import ForwardModel


class Simulations(NamedTuple):
    """n accepted noisy simulations.

    Attributes:
        theta: (n, 12) true parameters; derived: (n, n_derived) true derived quantities.
        noiseless_flux: (n, n_band) nanomaggies.
        observation: what an observer sees.
    """

    theta: Array
    derived: NDArray[np.float32]
    noiseless_flux: Array
    observation: Observation

    def rows(self, rows: slice) -> "Simulations":
        """Some of them."""
        return Simulations(
            self.theta[rows],
            self.derived[rows],
            self.noiseless_flux[rows],
            self.observation.rows(rows),
        )


def forward_model(artifact: Artifact) -> "ForwardModel":
    """The forward model that an artifact was trained on.

    Raises:
        MissingExtraError: the packages of the extra `sim` are not installed.
        GridError: the stellar populations here are not those that it was trained on.
    """
    from sedflow_core.simulation import ForwardConfig
    from sedflow_core.ssp import check_populations

    provenance = artifact.manifest["provenance"]
    model = ForwardConfig(**provenance["forward_model"]).build()
    check_populations(artifact.name, provenance["ssp"], model.galaxy.ssp_provenance)
    return model


def simulate(artifact: Artifact, n: int, seed: int = 0) -> Simulations:
    """n accepted noisy simulations of the artifact's forward model; the first rows of any n agree.

    Args:
        artifact: see `load_artifact`.
        n: number of simulations inside the magnitude cuts.
        seed: of prior, redshift and noise.

    Raises:
        MissingExtraError: the packages of the extra `sim` are not installed.
    """
    from sedflow_core.prior import from_u
    from sedflow_core.quantities import calc_quantities
    from sedflow_core.simulation import simulate_noisy

    rows = simulate_noisy(forward_model(artifact), n, seed=seed)
    theta = from_u(rows.u)
    derived = calc_quantities(theta, rows.redshift, artifact.tables, artifact.derived_names)
    return Simulations(
        theta.numpy(),
        derived.float().numpy(),
        rows.noiseless_flux.numpy(),
        Observation(rows.flux.numpy(), rows.flux_err.numpy(), rows.redshift.numpy()),
    )
