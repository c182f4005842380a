"""Importance weights of flow samples against the exact posterior of the generative model."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.estimation import log_prob, sample
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.noise import gaussian_log_likelihood, log_likelihood
from sedflow_core.observation import Observation
from sedflow_core.prior import from_u, to_u
from sedflow_core.simulation import ForwardModel


class Weighted(NamedTuple):
    """Flow samples of n galaxies with weights that make them exact.

    Attributes:
        theta: (n_sample, n, 12) samples of the flow.
        weights: (n_sample, n) normalised to sum to 1 per galaxy.
        gaussian_weights: the same for the paper's plain Gaussian likelihood.
    """

    theta: NDArray[np.float32]
    weights: NDArray[np.float64]
    gaussian_weights: NDArray[np.float64]

    def efficiency(self) -> NDArray[np.float64]:
        """(sum w)^2 / (n_sample sum w^2) of each galaxy, (n,)."""
        return np.asarray(1.0 / (len(self.weights) * (self.weights**2).sum(axis=0)))


def weigh(
    artifact: Artifact,
    model: ForwardModel,
    observation: Observation,
    *,
    n_samples: int = 10_000,
    seed: int = 0,
) -> Weighted:
    """Draw independent flow samples and weigh them by exact posterior / flow density.

    The exact posterior is prior(u) * p(flux, flux_err | noiseless flux), with the normal flux and
    the truncated-normal error of `sedflow_core.noise`.

    Args:
        artifact: see `load_artifact`.
        model: its forward model, see `sedflow_core.simulated.forward_model`.
        observation: photometry of n galaxies.
        n_samples: independent draws per galaxy.
        seed: of the draws.
    """
    theta = sample(artifact, observation, n_samples, seed, independent=True)
    log_q = torch.tensor(log_prob(artifact, theta, observation)).double()
    exact, gaussian = torch.empty_like(log_q), torch.empty_like(log_q)
    for i in range(len(observation)):
        u = to_u(torch.tensor(theta[:, i]).double())
        row = observation.rows(slice(i, i + 1))
        exact[:, i], gaussian[:, i] = log_posteriors(model, u, row)
    return Weighted(
        theta,
        torch.softmax(exact - log_q, dim=0).numpy(),
        torch.softmax(gaussian - log_q, dim=0).numpy(),
    )


def log_posteriors(
    model: ForwardModel, u: Tensor, observation: Observation
) -> tuple[Tensor, Tensor]:
    """ln posterior (n,) in u up to a constant: exact, and with the Gaussian likelihood.

    Args:
        model: see `sedflow_core.simulated.forward_model`.
        u: (n, 11) points, float64.
        observation: one galaxy.
    """
    theta, redshift = from_u(u), torch.tensor(observation.redshift)
    log_prior = -0.5 * u.square().sum(dim=-1)
    log_prior = log_prior + log_prior_weight(model.prior, theta, redshift, model.galaxy.tables)
    model_flux = calc_band_flux(model.galaxy, theta, redshift.expand(len(u)))
    flux, flux_err = torch.tensor(observation.flux), torch.tensor(observation.flux_err)
    exact = log_likelihood(flux, flux_err, model_flux, model.noise)
    return log_prior + exact, log_prior + gaussian_log_likelihood(flux, flux_err, model_flux)


def weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """Quantile (n,) of values (n_sample, n) with weights (n_sample, n) that sum to 1."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    cumulative = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    index = np.minimum((cumulative < level).sum(axis=0), len(values) - 1)
    return np.asarray(np.take_along_axis(ordered, index[None], axis=0)[0])
