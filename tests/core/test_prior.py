"""The prior against scipy's distributions, and the standard-normal space against calculus."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from scipy import stats

from sedflow_core.prior import (
    N_THETA,
    N_U,
    PARAM_NAMES,
    PARAMETERS,
    U_NAMES,
    column,
    columns,
    draw_u,
    from_u,
    prior_table,
    to_u,
)

N = 100_000
BETAS = ("beta1", "beta2", "beta3", "beta4")
ANALYTIC = {
    "log_mstar": stats.uniform(7.0, 5.5),
    **{name: stats.beta(1, 3) for name in BETAS},
    "fburst": stats.uniform(0.0, 1.0),
    "tburst": stats.uniform(0.01, 13.26),
    "gamma1": stats.loguniform(4.5e-5, 1.5e-2),
    "gamma2": stats.loguniform(4.5e-5, 1.5e-2),
    "tau_bc": stats.uniform(0.0, 3.0),
    "tau_ism": stats.uniform(0.0, 3.0),
    "n_dust": stats.uniform(-2.0, 3.0),
}
"""The bounds of Hahn & Melchior (2022), Sec. 3.1; mass and metallicities log-uniform, as PROVABGS's
code draws them."""
points = strategies.lists(strategies.floats(allow_nan=False, width=32), min_size=N_U, max_size=N_U)


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    return from_u(draw_u(N, torch.Generator().manual_seed(1)))


def independent_draws(n: int) -> torch.Tensor:
    """Prior draws made by numpy alone."""
    rng = np.random.default_rng(2)
    betas = dict(zip(BETAS, rng.dirichlet(np.ones(4), n).T, strict=True))
    theta = [
        betas[p.name] if p.name in betas else ANALYTIC[p.name].rvs(n, random_state=rng)
        for p in PARAMETERS
    ]
    return torch.tensor(np.stack(theta, axis=1))


def test_parameters_are_the_published_ones_in_order() -> None:
    published = (
        "log_mstar, beta1, beta2, beta3, beta4, fburst, tburst, gamma1, gamma2, tau_bc, tau_ism, "
        "n_dust"
    )
    assert ", ".join(PARAM_NAMES) == published
    assert ", ".join(U_NAMES) == published.replace("beta4, ", "")
    assert [row["name"] for row in prior_table()] == list(PARAM_NAMES)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
def test_marginals_follow_the_stated_prior(draws: torch.Tensor, parameter) -> None:
    values = column(draws, parameter.name).numpy()
    assert stats.kstest(values, ANALYTIC[parameter.name].cdf).pvalue > 1e-3
    assert ANALYTIC[parameter.name].support() == (parameter.low, pytest.approx(parameter.high))


def test_fractions_of_the_dirichlet_are_equally_correlated(draws: torch.Tensor) -> None:
    covariance = np.cov(columns(draws, *BETAS).numpy().T)
    expected = np.where(np.eye(4, dtype=bool), 3 / 80, -1 / 80)
    np.testing.assert_allclose(covariance, expected, atol=1e-3)


def test_prior_draws_are_standard_normal_in_u() -> None:
    u = to_u(independent_draws(N)).numpy()
    assert min(stats.kstest(column, "norm").pvalue for column in u.T) > 1e-3
    np.testing.assert_allclose(np.cov(u.T), np.eye(N_U), atol=0.02)


def test_round_trips() -> None:
    u = draw_u(N, torch.Generator().manual_seed(3)).clamp(-6.0, 6.0)
    torch.testing.assert_close(to_u(from_u(u)), u, rtol=0, atol=2e-6)
    theta = independent_draws(N)
    torch.testing.assert_close(from_u(to_u(theta)), theta, rtol=1e-9, atol=1e-12)


@given(u=points)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_no_point_leaves_the_prior(dtype: torch.dtype, u: list[float]) -> None:
    theta = from_u(torch.tensor(u, dtype=dtype))
    rounding = 4 * torch.finfo(dtype).eps
    for parameter in PARAMETERS:
        value = float(column(theta, parameter.name))
        slack = rounding * abs(value)
        assert parameter.low - slack <= value <= parameter.high + slack, parameter.name
    assert math.isclose(float(columns(theta, *BETAS).sum()), 1.0, abs_tol=1e-6)


@given(u=points)
def test_every_point_of_the_prior_has_a_finite_image(u: list[float]) -> None:
    theta = from_u(torch.tensor(u, dtype=torch.float64))
    assert to_u(theta).isfinite().all()
    assert to_u(theta.float()).isfinite().all()


def test_jacobian_turns_the_normal_density_into_the_prior_density() -> None:
    free = [i for i, name in enumerate(PARAM_NAMES) if name != "beta4"]

    def image(free_theta: torch.Tensor) -> torch.Tensor:
        theta = free_theta.new_zeros(N_THETA)
        theta[free] = free_theta
        betas = columns(theta, *BETAS[:3])
        theta = torch.cat([theta[:4], 1.0 - betas.sum()[None], theta[5:]])
        return to_u(theta)

    for theta in independent_draws(20):
        u = image(theta[free])
        jacobian = torch.autograd.functional.jacobian(image, theta[free])
        density = stats.norm.logpdf(u.numpy()).sum() + torch.linalg.slogdet(jacobian).logabsdet
        flat_dirichlet = math.lgamma(4.0)
        expected = flat_dirichlet + sum(
            ANALYTIC[p.name].logpdf(float(column(theta, p.name)))
            for p in PARAMETERS
            if p.kind != "flat_dirichlet"
        )
        assert math.isclose(float(density), expected, rel_tol=1e-9)
