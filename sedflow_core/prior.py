"""The parameter table, the prior it defines, and the standard-normal space `u` of the flow.

The one table `PARAMETERS` names every parameter with its bounds, prior, unit and label. The flow
works in u = Phi^-1(CDF_prior(parameter)): the prior there is a standard normal, and no sample can
leave the prior's bounds. The four SFH fractions follow a flat Dirichlet prior and enter as three
sticks, s_k = beta_k / (1 - sum of earlier betas), with CDF 1 - (1 - s_k)^(4 - k).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


class Parameter(NamedTuple):
    """One physical parameter: prior bounds, kind of prior, unit and meaning."""

    name: str
    low: float
    high: float
    kind: Literal["uniform", "log_uniform", "flat_dirichlet"]
    unit: str
    meaning: str


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("log_mstar", 7.0, 12.5, "uniform", "log10(Msun)", "stellar mass formed"),
    Parameter("beta1", 0.0, 1.0, "flat_dirichlet", "", "SFH fraction of NMF basis 1"),
    Parameter("beta2", 0.0, 1.0, "flat_dirichlet", "", "SFH fraction of NMF basis 2"),
    Parameter("beta3", 0.0, 1.0, "flat_dirichlet", "", "SFH fraction of NMF basis 3"),
    Parameter("beta4", 0.0, 1.0, "flat_dirichlet", "", "SFH fraction of NMF basis 4"),
    Parameter("fburst", 0.0, 1.0, "uniform", "", "mass fraction formed in the burst"),
    Parameter("tburst", 0.01, 13.27, "uniform", "Gyr", "lookback time of the burst"),
    Parameter("gamma1", 4.5e-5, 1.5e-2, "log_uniform", "", "metallicity history basis 1"),
    Parameter("gamma2", 4.5e-5, 1.5e-2, "log_uniform", "", "metallicity history basis 2"),
    Parameter("tau_bc", 0.0, 3.0, "uniform", "", "birth-cloud optical depth at 5500 A"),
    Parameter("tau_ism", 0.0, 3.0, "uniform", "", "diffuse-dust optical depth at 5500 A"),
    Parameter("n_dust", -2.0, 1.0, "uniform", "", "slope offset of the dust curve"),
)

PARAM_NAMES: tuple[str, ...] = tuple(p.name for p in PARAMETERS)
N_THETA = len(PARAMETERS)
_INDEX = {name: i for i, name in enumerate(PARAM_NAMES)}
_BETA = [i for i, p in enumerate(PARAMETERS) if p.kind == "flat_dirichlet"]
_SCALAR = [i for i, p in enumerate(PARAMETERS) if p.kind != "flat_dirichlet"]
_N_STICK = len(_BETA) - 1

# u holds one dimension per parameter, in table order, less the last SFH fraction.
U_NAMES: tuple[str, ...] = tuple(name for name in PARAM_NAMES if name != PARAM_NAMES[_BETA[-1]])
N_U = len(U_NAMES)
_U_STICK = [U_NAMES.index(PARAM_NAMES[i]) for i in _BETA[:-1]]
_U_SCALAR = [U_NAMES.index(PARAM_NAMES[i]) for i in _SCALAR]


def column(theta: Tensor, name: str) -> Tensor:
    """The parameter `name` of theta (..., n_theta); shape (...)."""
    return theta[..., _INDEX[name]]


def columns(theta: Tensor, *names: str) -> Tensor:
    """Several parameters of theta (..., n_theta); shape (..., len(names))."""
    return torch.stack([column(theta, name) for name in names]).movedim(0, -1)


def _scalar_bounds(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low, high (in log for log-uniform) and the log-uniform mask of the scalar parameters."""
    scalars = [PARAMETERS[i] for i in _SCALAR]
    is_log = torch.tensor([p.kind == "log_uniform" for p in scalars], device=like.device)
    low = [math.log(p.low) if p.kind == "log_uniform" else p.low for p in scalars]
    high = [math.log(p.high) if p.kind == "log_uniform" else p.high for p in scalars]
    return like.new_tensor(low), like.new_tensor(high), is_log


def _stick_powers(like: Tensor) -> Tensor:
    """The exponents 4 - k of the stick CDFs, k = 1..3."""
    return like.new_tensor([float(_N_STICK + 1 - k) for k in range(1, _N_STICK + 1)])


def from_u(u: Tensor) -> Tensor:
    """Physical parameters (..., n_theta) of points (..., n_u) in standard-normal space.

    In memory the values of a parameter lie side by side.
    """
    of_u = dict(zip(U_NAMES, u.unbind(dim=-1), strict=True))
    cdf = dict(zip(U_NAMES, torch.special.ndtr(u).unbind(dim=-1), strict=True))
    theta = {PARAM_NAMES[i]: _from_cdf(PARAMETERS[i], cdf[PARAM_NAMES[i]]) for i in _SCALAR}
    left = torch.ones_like(u[..., 0])
    for k, i in enumerate(_BETA[:-1]):
        # Not 1 - cdf, which would lose the digits of small rests.
        rest = torch.special.ndtr(-of_u[PARAM_NAMES[i]]) ** (1.0 / (_N_STICK - k))
        theta[PARAM_NAMES[i]] = left * (1.0 - rest)
        left = left * rest
    theta[PARAM_NAMES[_BETA[-1]]] = left
    return torch.stack([theta[name] for name in PARAM_NAMES]).movedim(0, -1)


def _from_cdf(parameter: Parameter, cdf: Tensor) -> Tensor:
    low, high = parameter.low, parameter.high
    if parameter.kind == "log_uniform":
        return (math.log(low) + math.log(high / low) * cdf).exp_()
    return low + (high - low) * cdf


def to_u(theta: Tensor) -> Tensor:
    """Standard-normal image (..., n_u) of physical parameters (..., n_theta).

    Values on or beyond a bound map to the largest finite |u| of the precision, so log densities
    stay finite.
    """
    low, high, is_log = _scalar_bounds(theta)
    scalar = theta[..., _SCALAR]
    scalar = torch.where(is_log, scalar.clamp_min(torch.finfo(theta.dtype).tiny).log(), scalar)
    beta = theta[..., _BETA]
    left = torch.flip(torch.cumsum(torch.flip(beta, [-1]), dim=-1), [-1])
    rest = left[..., 1:] / left[..., :-1].clamp_min(torch.finfo(theta.dtype).tiny)
    u = theta.new_empty((*theta.shape[:-1], N_U))
    u[..., _U_SCALAR] = _ndtri((scalar - low) / (high - low))
    u[..., _U_STICK] = -_ndtri(rest ** _stick_powers(theta))
    return u


def _ndtri(cdf: Tensor) -> Tensor:
    edge = torch.finfo(cdf.dtype).eps / 2
    quantile: Tensor = torch.special.ndtri(cdf.clamp(edge, 1.0 - edge))
    return quantile


def draw_u(n: int, generator: torch.Generator) -> Tensor:
    """n independent draws (n, n_u) from the prior in standard-normal space, float64."""
    return torch.randn((n, N_U), generator=generator, dtype=torch.float64)


def prior_table() -> list[dict[str, str | float]]:
    """The parameter table as the artifact's manifest holds it."""
    return [
        {
            "name": p.name,
            "low": p.low,
            "high": p.high,
            "prior": p.kind,
            "unit": p.unit,
            "meaning": p.meaning,
        }
        for p in PARAMETERS
    ]


def prior_digest(departures: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """sha256 of the parameter table and of what departs from it: quantity -> distribution."""
    document = [prior_table(), departures] if departures else prior_table()
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
