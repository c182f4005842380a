"""The exact posterior of one galaxy as a density to walk in.

Mass only scales the light, so whatever the other parameters say, the mass that fits is known: on a
ridge as thin as the photometry is precise, across all other dimensions. The walkers' first
coordinate is therefore the distance of log mass from the best-fitting one, which takes the ridge
away and costs nothing; the others are those of the space u. Measured on four galaxies the walkers
accept five times as often and forget ten times as fast as in u itself.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.emulator import emulate, fix_redshift
from sedflow_core.errors import ArtifactError
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.noise import gaussian_log_likelihood, log_likelihood
from sedflow_core.observation import Observation, to_context
from sedflow_core.prior import N_U, PARAM_NAMES, PARAMETERS, U_NAMES, column, from_u
from sedflow_core.units import Array

Likelihood = Literal["generative", "gaussian"]
"""The noise model's, of flux and error; or the paper's Eq. 1, which takes the errors as given."""

_MASS = U_NAMES.index("log_mstar")
_MASS_RANGE = next((p.low, p.high) for p in PARAMETERS if p.name == "log_mstar")


class Target(Protocol):
    """A density to walk in, prior times likelihood."""

    @property
    def n_dim(self) -> int:
        """Number of dimensions."""

    def __call__(self, points: Array) -> tuple[Array, Array]:
        """ln likelihood and ln prior (n,) of points (n, n_dim); -inf where there is none."""

    def draw_prior(self, n: int, random: np.random.RandomState) -> Array:
        """Points (n, n_dim) from the prior."""


class Proposal(Protocol):
    """A density near a target, to draw from."""

    def draw(self, n: int, random: np.random.RandomState) -> tuple[Array, Array]:
        """Points (n, n_dim) and their ln density (n,)."""

    def log_prob(self, points: Array) -> Array:
        """ln density (n,) of points (n, n_dim)."""


class GalaxyTarget:
    """The posterior of one galaxy by the emulator; a point is (mass offset, u of the others).

    Args:
        artifact: holds the emulator, the noise model and the tables.
        observation: one galaxy.
        likelihood: what the photometry says.

    Raises:
        ArtifactError: the artifact was built without an emulator.
    """

    def __init__(
        self, artifact: Artifact, observation: Observation, likelihood: Likelihood = "generative"
    ) -> None:
        if artifact.trust is None:
            raise ArtifactError(f"{artifact.name}: expected an emulator, got none: build it again")
        self._noise, self._population = artifact.trust.noise, artifact.tables
        self._likelihood = likelihood
        self._flux, self._flux_err, self._redshift = observation.tensors()
        self._prior = artifact.prior
        self._fixed = fix_redshift(artifact.trust.emulator, artifact.tables, self._redshift)

    @property
    def n_dim(self) -> int:
        """Number of dimensions."""
        return N_U

    def __call__(self, points: Array) -> tuple[Array, Array]:
        """ln likelihood and ln prior (n,) of points (n, n_u), that of the prior -inf outside it.

        The likelihood of an impossible point is the least number, of which any share is one too.
        """
        low, high = _MASS_RANGE
        with torch.inference_mode():
            y = torch.tensor(points)
            theta, flux = self._at_reference(y)
            log_mass = self._best_mass(theta, flux) + y[:, _MASS]
            scale = 10.0 ** (log_mass - column(theta, "log_mstar"))
            inside = (log_mass > low) & (log_mass < high)
            theta[:, PARAM_NAMES.index("log_mstar")] = log_mass
            log_like = self._log_weight(flux * scale[:, None], theta)
            square = y.square().sum(dim=-1) - y[:, _MASS].square()
            log_prior = torch.where(inside, -0.5 * square, -torch.inf)
            log_like = torch.where(inside, log_like, -torch.inf).nan_to_num(-torch.inf)
            return log_like.numpy(), log_prior.numpy()

    def draw_prior(self, n: int, random: np.random.RandomState) -> Array:
        """Points (n, n_u) from the prior."""
        points = random.normal(size=(n, N_U))
        log_mass = random.uniform(*_MASS_RANGE, size=n)
        with torch.inference_mode():
            best = self._best_mass(*self._at_reference(torch.tensor(points)))
        points[:, _MASS] = log_mass - best.numpy()
        return points

    def to_u(self, points: Array) -> Tensor:
        """The points (n, n_u) in the space u, float64."""
        low, high = _MASS_RANGE
        u = torch.tensor(points)
        log_mass = self._best_mass(*self._at_reference(u)) + u[:, _MASS]
        u[:, _MASS] = torch.special.ndtri((log_mass - low) / (high - low))
        return u

    def from_u(self, u: Tensor) -> Array:
        """Points (n, n_u) of u (n, n_u) float64."""
        low, high = _MASS_RANGE
        points = u.clone()
        log_mass = low + (high - low) * torch.special.ndtr(u[:, _MASS])
        points[:, _MASS] = log_mass - self._best_mass(*self._at_reference(u))
        return points.numpy()

    def emulated_flux(self, u: Tensor) -> Tensor:
        """Noiseless flux (n, n_band) [nanomaggies] of points u (n, n_u)."""
        return self._emulate(from_u(u))

    def log_density(self, u: Tensor) -> Tensor:
        """ln posterior density (n,) of points u (n, n_u), in the space u, up to a constant."""
        theta = from_u(u)
        weight = self._log_weight(self._emulate(theta), theta)
        return weight - 0.5 * u.square().sum(dim=-1)

    def _log_weight(self, model_flux: Tensor, theta: Tensor) -> Tensor:
        """ln likelihood (n,), and what the artifact's prior is over that of the table."""
        changed = log_prior_weight(self._prior, theta, self._redshift, self._population)
        return self._log_likelihood(model_flux) + changed

    def _log_likelihood(self, model_flux: Tensor) -> Tensor:
        """ln likelihood (n,) of noiseless flux (n, n_band)."""
        if self._likelihood == "gaussian":
            return gaussian_log_likelihood(self._flux, self._flux_err, model_flux)
        return log_likelihood(self._flux, self._flux_err, model_flux, self._noise)

    def chi_square(self, u: Tensor) -> Tensor:
        """Chi-square (n,) of the photometry against points u (n, n_u)."""
        return ((self._flux - self.emulated_flux(u)) / self._flux_err).square().sum(dim=-1)

    def _at_reference(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters and flux of points (n, n_u) at one mass for all."""
        at_median = y.clone()
        at_median[:, _MASS] = 0.0
        theta = from_u(at_median)
        return theta, self._emulate(theta)

    def _emulate(self, theta: Tensor) -> Tensor:
        few = theta.float()[None]
        return emulate(self._fixed, self._population, few, self._flux.shape[1])[0].double()

    def _best_mass(self, theta: Tensor, flux: Tensor) -> Tensor:
        """log10 of the mass (n,) at which flux fits best, at least one sigma above nothing."""
        weighted = flux / self._flux_err.square()
        square = (weighted * flux).sum(dim=-1)
        overlap = (weighted * self._flux).sum(dim=-1)
        scale = torch.maximum(overlap, square.sqrt()) / square
        return column(theta, "log_mstar") + torch.log10(scale)


class FlowProposal:
    """The flow's posterior of the galaxy of a target, in the target's coordinates."""

    def __init__(self, artifact: Artifact, observation: Observation, target: GalaxyTarget) -> None:
        self._context = to_context(*observation.tensors(), artifact.scale)
        self._flow, self._target = artifact.flow, target

    def draw(self, n: int, random: np.random.RandomState) -> tuple[Array, Array]:
        """Points (n, n_u) and their ln density (n,)."""
        base = torch.tensor(random.normal(size=(N_U, n)), dtype=torch.float32)
        with torch.inference_mode():
            u, log_q = self._flow.sample_u(base, self._context)
            u = u[0].T.double()
            return self._target.from_u(u), _in_mass(log_q[0].double(), u)

    def log_prob(self, points: Array) -> Array:
        """ln density (n,) of points (n, n_u)."""
        with torch.inference_mode():
            u = self._target.to_u(points)
            return _in_mass(self._flow(u.float(), self._context).double(), u)


def _in_mass(log_q: Tensor, u: Tensor) -> Array:
    """ln density (n,) per log mass, not per u, up to a constant; the flow's is per u."""
    return (log_q + 0.5 * u[:, _MASS].square()).numpy()
