"""How far to trust one posterior: does it fit the photometry, and is it the exact posterior?

Some of the published samples go through the emulator of the galaxy model. Their chi-square and
posterior-predictive p-value (Gelman et al. 1996) tell whether the model explains the photometry;
their importance weights against the exact posterior, with efficiency and the shape k of the
weights' Pareto tail (Vehtari et al. 2024), whether the flow found it. Needs torch alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sedflow_core.emulator import EmulatorTables
from sedflow_core.noise import NoiseModel, log_likelihood

N_DRAWS = 256
"""Samples behind a verdict, unless they leave it open."""
CLEAR_EFFICIENCY = 0.15
"""Where they find a smaller efficiency, all samples judge."""
MIN_EFFICIENCY = 0.04
MIN_P_VALUE = 1e-3
MIN_DRAWS = 100
"""Fewer cannot tell: the efficiency of n draws is 1 / n at least."""
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
    """The judgement of n posteriors, in single precision.

    Attributes:
        chi_square: (n,) of the photometry against the best of the samples.
        p_value: (n,) posterior-predictive probability of a larger chi-square.
        efficiency: (n,) importance efficiency against the exact posterior, 0 to 1; NaN for fewer
            than `MIN_DRAWS` samples.
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
    photometry: tuple[Tensor, ...], u: Tensor, log_q: Tensor, model_flux: Tensor, noise: NoiseModel
) -> Trust:
    """Judge the posteriors of n galaxies by some samples of each.

    Args:
        photometry: flux (n, n_band) and flux_err (n, n_band) [nanomaggies], float64.
        u, log_q: samples (n, n_sample, n_u) and their ln q(u), (n, n_sample), less ln of the prior
            over that of the table where it is another.
        model_flux: (n, n_sample, n_band) noiseless flux of the samples [nanomaggies].
        noise: the noise model, for the exact likelihood.
    """
    flux, flux_err, model_flux = photometry[0][:, None], photometry[1][:, None], model_flux.double()
    chi_square = ((flux - model_flux) / flux_err).square().sum(dim=-1)
    exact = log_likelihood(flux, flux_err, model_flux, noise)
    log_weight = exact - 0.5 * u.double().square().sum(dim=-1) - log_q.double()
    smoothed = smooth_weights(log_weight)
    efficiency = smoothed.efficiency().float()
    if u.shape[1] < MIN_DRAWS:
        efficiency = torch.full_like(efficiency, torch.nan)
    return Trust(
        chi_square=chi_square.min(dim=-1).values.float(),
        p_value=chi_square_tail(chi_square, flux.shape[-1]).mean(dim=-1).float(),
        efficiency=efficiency,
        pareto_k=smoothed.pareto_k.float(),
    )


def chi_square_tail(chi_square: Tensor, n_band: int) -> Tensor:
    """Probability (...) of a larger chi-square with n_band degrees of freedom."""
    half = torch.full_like(chi_square, 0.5 * n_band)
    tail: Tensor = torch.special.gammaincc(half, 0.5 * chi_square)
    return tail


class Smoothed(NamedTuple):
    """Importance weights whose largest were replaced by what their tail leads one to expect.

    Attributes:
        weights: (..., n) ascending, relative to the largest.
        pareto_k: (...) shape of the tail; NaN where hardly any weight is above zero.
    """

    weights: Tensor
    pareto_k: Tensor

    def efficiency(self) -> Tensor:
        """Importance efficiency (...)."""
        return calc_efficiency(self.weights)


def calc_efficiency(weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2) of weights (..., n): (...); 0 where none is above zero."""
    efficiency = weights.sum(dim=-1).square() / weights.square().sum(dim=-1)
    return (efficiency / weights.shape[-1]).nan_to_num(0.0)


def smooth_weights(log_weight: Tensor) -> Smoothed:
    """Pareto-smoothed importance weights (Vehtari et al. 2024) of ln w (..., n), float64.

    The min(n / 5, 3 sqrt(n)) largest weights become the expected order statistics of a generalised
    Pareto distribution fitted to them. Without that the efficiency tells whether the draws met the
    few largest weights: two sets of 10,000 draws rank galaxies differently.
    """
    n = log_weight.shape[-1]
    n_tail = int(min(0.2 * n, 3.0 * n**0.5))
    ordered = log_weight.sort(dim=-1).values
    weights = torch.exp(ordered - ordered[..., -1:]).nan_to_num(0.0)
    if n_tail < _MIN_TAIL:
        return Smoothed(weights, torch.full_like(weights[..., 0], torch.nan))
    cut = weights[..., -n_tail - 1, None]
    excess = weights[..., -n_tail:] - cut
    is_tail = (cut[..., 0] > 0) & (excess[..., -1] > 0)
    tail = fit_pareto(excess)
    level = (torch.arange(n_tail, dtype=weights.dtype, device=weights.device) + 0.5) / n_tail
    expected = (cut + tail.quantile(level)).clamp_max(1.0)
    smoothed = torch.cat([weights[..., :-n_tail], expected], dim=-1)
    return Smoothed(
        torch.where(is_tail[..., None], smoothed, weights),
        torch.where(is_tail, tail.k, torch.nan),
    )


def fit_pareto_k(log_weight: Tensor) -> Tensor:
    """Shape (...) of the tail of the weights ln w (..., n), see `smooth_weights`."""
    return smooth_weights(log_weight).pareto_k


class Pareto(NamedTuple):
    """Generalised Pareto distributions of excesses: shape k and scale, (...) each."""

    k: Tensor
    scale: Tensor

    def quantile(self, level: Tensor) -> Tensor:
        """Values (..., n) below which a fraction level (n,) lies."""
        k, scale = self.k[..., None], self.scale[..., None]
        return scale * torch.expm1(-k * torch.log1p(-level)) / k


def fit_pareto(excess: Tensor) -> Pareto:
    """Fit ascending excesses (..., n), the last above zero, by Zhang & Stephens (2009).

    The shape is a mean over a profile likelihood, drawn towards 1/2 with the weight of ten values
    as Vehtari et al. (2024) do.
    """
    n = excess.shape[-1]
    n_point = 30 + int(n**0.5)
    step = torch.arange(1, n_point + 1, dtype=excess.dtype, device=excess.device)
    largest, quartile = excess[..., -1:], excess[..., int(n / 4 + 0.5) - 1, None]
    quartile = torch.maximum(quartile, 1e-12 * largest)
    theta = 1.0 / largest + (1.0 - (n_point / (step - 0.5)).sqrt()) / (3.0 * quartile)
    shape = torch.log1p(-theta[..., None] * excess[..., None, :]).mean(dim=-1)
    log_like = n * (torch.log(-theta / shape) - shape - 1.0)
    weight = torch.softmax(log_like.nan_to_num(-torch.inf, neginf=-torch.inf), dim=-1)
    best = (weight * theta).sum(dim=-1)
    k = torch.log1p(-best[..., None] * excess).mean(dim=-1)
    return Pareto((n * k + 5.0) / (n + 10.0), -k / best)


def flatten_tables(tables: TrustTables) -> dict[str, Tensor]:
    """Flat arrays of the tables, to be stored."""
    groups = {"emulator": tables.emulator._asdict(), "noise": tables.noise._asdict()}
    flat = {f"{group}.{key}": t for group, part in groups.items() for key, t in part.items()}
    return {**flat, "prior_width": tables.prior_width}


def unflatten_tables(arrays: dict[str, Tensor]) -> TrustTables | None:
    """The tables of flat arrays; None where there are none."""
    if not arrays:
        return None
    emulator = EmulatorTables(*(arrays[f"emulator.{key}"] for key in EmulatorTables._fields))
    noise = NoiseModel(*(arrays[f"noise.{key}"] for key in NoiseModel._fields))
    return TrustTables(emulator, noise, arrays["prior_width"])
