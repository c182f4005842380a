"""Importance weights of flow samples against the exact posterior of the generative model."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sedflow_core.artifact import Artifact
from sedflow_core.galaxy import calc_band_flux
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.noise import gaussian_log_likelihood, log_likelihood
from sedflow_core.observation import Observation
from sedflow_core.prior import N_U, PARAM_NAMES, from_u
from sedflow_core.sampling import sample_one
from sedflow_core.simulation import ForwardModel
from sedflow_core.trust import Smoothed, calc_efficiency, chi_square_tail, smooth_weights


class Weighted(NamedTuple):
    """Flow samples of n galaxies with weights that make them exact.

    Attributes:
        theta: (n_sample, n, 12) samples of the flow.
        weights: (n_sample, n) normalised to sum to 1 per galaxy.
        gaussian_weights: the same for the paper's plain Gaussian likelihood.
        p_value: (n,) of the exact posterior: the probability of a larger chi-square
            (posterior-predictive, Gelman et al. 1996).

    Where no sample has a weight above zero they all are zero.
    """

    theta: NDArray[np.float32]
    weights: NDArray[np.float64]
    gaussian_weights: NDArray[np.float64]
    p_value: NDArray[np.float64]

    def efficiency(self) -> NDArray[np.float64]:
        """Importance efficiency of each galaxy, (n,)."""
        return np.asarray(calc_efficiency(torch.tensor(self.weights.T)).numpy())

    def smoothed(self) -> Smoothed:
        """Pareto-smoothed weights of each galaxy."""
        return smooth_weights(torch.tensor(self.weights.T).log())


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
        model: its forward model, see `sedflow_core.fresh_simulations.forward_model`.
        observation: photometry of n galaxies.
        n_samples: independent draws per galaxy.
        seed: of the draws.
    """
    n = len(observation)
    theta = np.empty((n_samples, n, len(PARAM_NAMES)), dtype=np.float32)
    log_q, exact, gaussian, chi_square = torch.empty((4, n_samples, n), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        row = observation.rows(slice(i, i + 1))
        base = torch.randn((N_U, n_samples), generator=generator)
        with torch.inference_mode():
            # Not u of theta, which may round to a bound where the flow has no density.
            u, log_q[:, i], _ = sample_one(artifact, row, base)
        theta[:, i] = from_u(u)
        log_prior, log_exact, log_gaussian = _log_factors(model, u.double(), row)
        exact[:, i], gaussian[:, i] = log_prior + log_exact, log_prior + log_gaussian
        chi_square[:, i] = -2.0 * log_gaussian
    weights, gaussian_weights = (
        torch.softmax(log_p - log_q, dim=0).nan_to_num(0.0) for log_p in (exact, gaussian)
    )
    tail = chi_square_tail(chi_square, observation.flux.shape[1])
    p_value = (weights * tail).sum(dim=0)
    return Weighted(theta, weights.numpy(), gaussian_weights.numpy(), p_value.numpy())


def log_posteriors(
    model: ForwardModel, u: Tensor, observation: Observation
) -> tuple[Tensor, Tensor]:
    """ln posterior (n,) in u up to a constant: exact, and with the Gaussian likelihood.

    Args:
        model: see `sedflow_core.fresh_simulations.forward_model`.
        u: (n, 11) points, float64.
        observation: one galaxy.
    """
    log_prior, exact, gaussian = _log_factors(model, u, observation)
    return log_prior + exact, log_prior + gaussian


def _log_factors(
    model: ForwardModel, u: Tensor, observation: Observation
) -> tuple[Tensor, Tensor, Tensor]:
    """ln of the prior, the exact and the Gaussian likelihood, (n,) each."""
    theta, (flux, flux_err, redshift) = from_u(u), observation.tensors()
    log_prior = -0.5 * u.square().sum(dim=-1)
    log_prior = log_prior + log_prior_weight(model.prior, theta, redshift, model.galaxy.tables)
    model_flux = calc_band_flux(model.galaxy, theta, redshift.expand(len(u)))
    exact = log_likelihood(flux, flux_err, model_flux, model.noise)
    return log_prior, exact, gaussian_log_likelihood(flux, flux_err, model_flux)


def weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """Quantile (n,) of values (n_sample, n) with weights (n_sample, n) that sum to 1."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    cumulative = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    index = np.minimum((cumulative < level).sum(axis=0), len(values) - 1)
    return np.asarray(np.take_along_axis(ordered, index[None], axis=0)[0])
