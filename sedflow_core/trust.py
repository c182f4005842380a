"""How far to trust one posterior: does it fit the photometry, and is it the exact posterior?

A few of the published samples go through the emulator of the galaxy model. Their chi-square and
posterior-predictive p-value (Gelman et al. 1996) tell whether the model explains the photometry;
their importance weights against the exact posterior, with efficiency and the shape k of the
weights' Pareto tail (Vehtari et al. 2024), whether the flow found it. Needs torch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.emulator import EmulatorTables, emulate, fix_redshift
from sedflow_core.noise import NoiseModel, log_likelihood
from sedflow_core.sfh import PopulationTables

N_DRAWS = 128
"""Samples behind a verdict."""
MIN_EFFICIENCY = 0.02
MIN_P_VALUE = 1e-3
_MIN_TAIL = 5


class TrustTables(NamedTuple):
    """What an artifact holds to judge its posteriors.

    Attributes:
        emulator: of the galaxy model.
        noise: the noise model, for the exact likelihood.
        prior_width: (n_name,) half of the 16-84 % range of parameters and derived quantities under
            the prior.
    """

    emulator: EmulatorTables
    noise: NoiseModel
    prior_width: Tensor


class Trust(NamedTuple):
    """The judgement of n posteriors.

    Attributes:
        chi_square: (n,) of the photometry against the best of the samples.
        p_value: (n,) posterior-predictive probability of a larger chi-square.
        efficiency: (n,) importance efficiency against the exact posterior, 0 to 1.
        pareto_k: (n,) shape of the tail of the weights; above 0.7 the efficiency is optimistic. NaN
            where hardly any sample has a weight.
    """

    chi_square: Tensor
    p_value: Tensor
    efficiency: Tensor
    pareto_k: Tensor


def is_trusted(p_value: float, efficiency: float) -> bool:
    """The verdict: the model explains the photometry, and the flow found the posterior."""
    return p_value >= MIN_P_VALUE and efficiency >= MIN_EFFICIENCY


def judge(
    tables: TrustTables,
    population: PopulationTables,
    photometry: tuple[Tensor, Tensor, Tensor],
    samples: tuple[Tensor, Tensor, Tensor],
) -> Trust:
    """Judge the posteriors of n galaxies by some samples of each.

    Args:
        tables, population: of the artifact.
        photometry: flux (n, n_band), flux_err (n, n_band) [nanomaggies] and redshift (n,), float64.
        samples: u (n, n_sample, n_u), theta (n, n_sample, n_theta) and ln q(u) (n, n_sample).
    """
    flux, flux_err, redshift = photometry
    u, theta, log_q = samples
    fixed = fix_redshift(tables.emulator, population, redshift)
    model_flux = emulate(fixed, population, theta, flux.shape[1]).double()
    flux, flux_err = flux[:, None], flux_err[:, None]
    chi_square = ((flux - model_flux) / flux_err).square().sum(dim=-1)
    tail = torch.special.gammaincc(torch.full_like(chi_square, flux.shape[2] / 2), chi_square / 2)
    exact = log_likelihood(flux, flux_err, model_flux, tables.noise)
    log_weight = exact - 0.5 * u.double().square().sum(dim=-1) - log_q.double()
    return Trust(
        chi_square=chi_square.min(dim=-1).values,
        p_value=tail.mean(dim=-1),
        efficiency=calc_efficiency(log_weight),
        pareto_k=fit_pareto_k(log_weight),
    )


def calc_efficiency(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of ln w (..., n); (...), 0 where no weight is above zero."""
    weight = torch.exp(log_weight - log_weight.max(dim=-1, keepdim=True).values)
    efficiency = weight.sum(dim=-1).square() / weight.square().sum(dim=-1)
    return (efficiency / log_weight.shape[-1]).nan_to_num(0.0)


def fit_pareto_k(log_weight: Tensor) -> Tensor:
    """Shape k (...) of a generalised Pareto distribution fitted to the largest weights.

    The estimator of Zhang & Stephens (2009), for the min(n / 5, 3 sqrt(n)) largest of the weights
    ln w (..., n); NaN where too few of them are above zero.
    """
    n = log_weight.shape[-1]
    n_tail = int(min(0.2 * n, 3.0 * n**0.5))
    if n_tail < _MIN_TAIL:
        return torch.full_like(log_weight[..., 0], torch.nan)
    largest = log_weight.sort(dim=-1).values[..., -(n_tail + 1) :]
    weight = torch.exp(largest - largest[..., -1:])
    excess = weight[..., 1:] - weight[..., :1]
    is_tail = largest.isfinite().all(dim=-1) & (excess[..., -1] > 0)
    return torch.where(is_tail, _zhang_stephens(excess.clamp_min(1e-300)), torch.nan)


def _zhang_stephens(excess: Tensor) -> Tensor:
    """Shape k (...) of ascending values (..., n) > 0, as the mean over a profile likelihood."""
    n = excess.shape[-1]
    n_point = 30 + int(n**0.5)
    step = torch.arange(1, n_point + 1, dtype=excess.dtype)
    quartile = excess[..., int(n / 4 + 0.5) - 1, None]
    theta = 1.0 / excess[..., -1:] + (1.0 - (n_point / (step - 0.5)).sqrt()) / (3.0 * quartile)
    shape = torch.log1p(-theta[..., None] * excess[..., None, :]).mean(dim=-1)
    log_like = n * (torch.log(-theta / shape) - shape - 1.0)
    weight = torch.softmax(log_like.nan_to_num(-torch.inf), dim=-1)
    theta_mean = (weight * theta).sum(dim=-1, keepdim=True)
    return torch.log1p(-theta_mean * excess).mean(dim=-1)


def split_tables(tables: TrustTables) -> dict[str, Tensor]:
    """Flat arrays of the tables, to be stored."""
    groups = {"emulator": tables.emulator._asdict(), "noise": tables.noise._asdict()}
    flat = {f"{group}.{key}": t for group, part in groups.items() for key, t in part.items()}
    return {**flat, "prior_width": tables.prior_width}


def join_tables(arrays: dict[str, Tensor]) -> TrustTables | None:
    """The tables of flat arrays; None where there are none."""
    if not arrays:
        return None
    emulator = EmulatorTables(*(arrays[f"emulator.{key}"] for key in EmulatorTables._fields))
    noise = NoiseModel(*(arrays[f"noise.{key}"] for key in NoiseModel._fields))
    return TrustTables(emulator, noise, arrays["prior_width"])
