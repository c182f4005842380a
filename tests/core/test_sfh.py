"""Histories and derived quantities: analytic cases, brute-force integration, astropy."""

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck13

from sedflow_core.galaxy import GalaxyModel, build_population_tables
from sedflow_core.nmf import load_nmf
from sedflow_core.prior import PARAM_NAMES, column, draw_u, from_u
from sedflow_core.sfh import (
    BIN_EDGES_GYR,
    DERIVED_NAMES,
    LG_SSFR_FLOOR,
    History,
    PopulationTables,
    TimeBins,
    calc_derived,
    calc_history,
    calc_time_bins,
    half_mass_time,
    recent_mass,
)
from sedflow_core.simulation import ForwardModel
from sedflow_core.ssp import load_ssp

LG_AGE = torch.linspace(-4.0, 1.3, 54, dtype=torch.float64)
DEFAULT = {
    "log_mstar": 10.0, "beta1": 0.25, "beta2": 0.25, "beta3": 0.25, "beta4": 0.25,
    "fburst": 0.0, "tburst": 1.0, "gamma1": 0.004, "gamma2": 0.006,
    "tau_bc": 0.0, "tau_ism": 0.0, "n_dust": 0.0,
}  # fmt: skip


def theta_of(**values: float) -> torch.Tensor:
    """One galaxy's parameters (1, 1, n_theta)."""
    return torch.tensor([[[(DEFAULT | values)[name] for name in PARAM_NAMES]]])


@pytest.fixture(scope="module")
def constant() -> PopulationTables:
    """Constant star formation and metallicity; surviving mass falls linearly with log age."""
    lookback = torch.linspace(0.0, 13.8, 139, dtype=torch.float64)
    redshift = torch.linspace(0.0, 0.2, 3, dtype=torch.float64)
    return PopulationTables(
        redshift=redshift,
        t_age_gyr=13.0 - 10.0 * redshift,
        luminosity_distance_mpc=4400.0 * redshift,
        lookback_gyr=lookback,
        sfh_cumulative=lookback.expand(4, -1).contiguous(),
        zh=torch.ones(2, 139, dtype=torch.float64),
        ssp_lg_age_gyr=LG_AGE,
        ssp_lgmet=torch.tensor([-3.0, -2.0, -1.0], dtype=torch.float64),
        surviving=torch.stack([0.6 - 0.1 * LG_AGE] * 3) + torch.tensor([[0.0], [0.05], [0.1]]),
    )


@pytest.fixture(scope="module")
def real(forward: ForwardModel) -> PopulationTables:
    """The shipped histories and Planck13."""
    return forward.galaxy.tables


def derived(tables: PopulationTables, redshift: float, **values: float) -> dict[str, float]:
    table = calc_derived(theta_of(**values), torch.tensor([redshift]), tables, DERIVED_NAMES)
    return dict(zip(DERIVED_NAMES, table[0, 0].tolist(), strict=True))


def prior_histories(tables: PopulationTables, n: int) -> tuple[torch.Tensor, TimeBins, History]:
    """Histories of n prior draws at redshift 0.1."""
    theta = from_u(draw_u(n, torch.Generator().manual_seed(8))).float()[None]
    bins = calc_time_bins(torch.tensor([0.1]), tables)
    return theta, bins, calc_history(theta, bins, tables)


def test_ages_and_distances_follow_planck13(real: PopulationTables) -> None:
    redshift = np.random.default_rng(0).uniform(1e-3, 0.2, 500)
    age = calc_time_bins(torch.tensor(redshift), real).t_age
    np.testing.assert_allclose(age.numpy(), Planck13.age(redshift).value, rtol=1e-6)
    distance = np.interp(redshift, real.redshift, real.luminosity_distance_mpc)
    expected = Planck13.luminosity_distance(redshift).to_value("Mpc")
    np.testing.assert_allclose(distance, expected, rtol=2e-5)


@pytest.mark.parametrize("redshift", [0.0, 0.1, 0.2])
def test_constant_star_formation(constant: PopulationTables, redshift: float) -> None:
    t_age = 13.0 - 10.0 * redshift
    values = derived(constant, redshift)
    assert values["t_age_mw"] == pytest.approx(t_age / 2, rel=1e-5)
    assert values["t50"] == pytest.approx(t_age / 2, rel=1e-5)
    assert values["z_mw"] == pytest.approx(0.01, rel=1e-5)
    rate = 10.0 - np.log10(t_age * 1e9)
    assert values["log_sfr_1gyr"] == pytest.approx(rate, abs=1e-5)
    assert values["log_sfr_100myr"] == pytest.approx(rate, abs=1e-5)
    assert values["log_ssfr_1gyr"] == pytest.approx(
        values["log_sfr_1gyr"] - values["log_mstar_surviving"]
    )


def test_one_burst_alone(constant: PopulationTables) -> None:
    values = derived(constant, 0.1, fburst=1.0, tburst=0.5)
    assert values["t_age_mw"] == pytest.approx(0.5)
    assert values["t50"] == pytest.approx(0.5)
    assert values["z_mw"] == pytest.approx(0.01)
    assert values["log_sfr_1gyr"] == pytest.approx(1.0)
    assert values["log_sfr_100myr"] == pytest.approx(10.0 + LG_SSFR_FLOOR)
    surviving = 0.6 - 0.1 * np.log10(0.5) + 0.05
    assert values["log_mstar_surviving"] == pytest.approx(10.0 + np.log10(surviving), abs=1e-5)


def test_burst_adds_to_constant_star_formation(constant: PopulationTables) -> None:
    values = derived(constant, 0.1, fburst=0.3, tburst=0.05)
    assert 10 ** (values["log_sfr_100myr"] - 1.0) == pytest.approx(3.0 + 0.7 / 12.0, rel=1e-4)
    assert values["t_age_mw"] == pytest.approx(0.7 * 6.0 + 0.3 * 0.05, rel=1e-5)
    assert values["t50"] == pytest.approx(0.2 / 0.7 * 12.0, rel=1e-5)


def test_burst_before_the_universe_has_not_happened(real: PopulationTables) -> None:
    without = derived(real, 0.1, fburst=0.0)
    assert derived(real, 0.1, fburst=0.7, tburst=12.6) == without
    assert derived(real, 0.1, fburst=0.7, tburst=12.3) != without


def test_nothing_formed_gives_the_stated_floor(real: PopulationTables) -> None:
    values = derived(real, 0.05, fburst=1.0, tburst=5.0, log_mstar=11.0)
    assert values["log_sfr_1gyr"] == values["log_sfr_100myr"] == 11.0 + LG_SSFR_FLOOR
    assert values["log_ssfr_1gyr"] == pytest.approx(-3.0 - values["log_mstar_surviving"])


def test_mass_in_the_bins_and_the_burst_sum_to_one(real: PopulationTables) -> None:
    theta, bins, history = prior_histories(real, 2_000)
    torch.testing.assert_close(history.mass.sum(dim=-1) + history.burst, torch.ones(1, 2_000))
    assert (history.mass >= 0).all()
    happened = column(theta, "tburst") <= bins.t_age
    torch.testing.assert_close(history.burst, column(theta, "fburst") * happened)


def test_bins_fill_the_age_of_the_universe_and_no_more(real: PopulationTables) -> None:
    redshift = torch.tensor([0.001, 0.1, 0.2])
    bins = calc_time_bins(redshift, real)
    width = bins.high - bins.low
    torch.testing.assert_close(width.sum(dim=-1), bins.t_age)
    edges = torch.tensor(BIN_EDGES_GYR)
    whole = edges[1:] <= bins.t_age[:, None]
    assert torch.equal(width * whole, edges.diff() * whole)
    assert (bins.basis_mass.sum(dim=1)[width == 0] == 0).all()


def test_bins_that_straddle_a_window_are_split(real: PopulationTables) -> None:
    _, bins, history = prior_histories(real, 200)
    edges = np.append(bins.low[0].numpy(), bins.high[0, -1])
    for window in (0.1, 1.0, 2.0):
        for i in range(200):
            formed = np.append(0.0, np.cumsum(history.mass[0, i].double().numpy()))
            burst = float(history.burst[0, i]) * (float(history.burst_age[0, i]) <= window)
            expected = np.interp(window, edges, formed) + burst
            recent = float(recent_mass(history, window)[0, i])
            assert recent == pytest.approx(expected, abs=1e-6)


def test_half_mass_time_against_brute_force(real: PopulationTables) -> None:
    _, bins, history = prior_histories(real, 500)
    t50 = half_mass_time(history)[0].numpy()
    edges = np.append(bins.low[0].numpy(), bins.high[0, -1])
    times = np.linspace(0.0, edges[-1], 200_001)
    for i in range(500):
        formed = np.append(0.0, np.cumsum(history.mass[0, i].double().numpy()))
        burst, age = float(history.burst[0, i]), float(history.burst_age[0, i])
        total = np.interp(times, edges, formed) + burst * (times >= age)
        assert t50[i] == pytest.approx(times[np.searchsorted(total, 0.5)], abs=2e-4)


@pytest.mark.parametrize("log_met", [-3.0, -2.4, -2.0, -1.5])
@pytest.mark.parametrize("age", [0.01, 0.4, 11.0])
def test_surviving_mass_of_a_burst_is_that_of_its_stars(
    constant: PopulationTables, age: float, log_met: float
) -> None:
    gamma = 10**log_met / 2
    values = derived(constant, 0.0, fburst=1.0, tburst=age, gamma1=gamma, gamma2=gamma)
    surviving = 0.6 - 0.1 * np.log10(age) + 0.05 * (max(log_met, np.log10(4.49e-5)) + 3.0)
    expected = 10.0 + np.log10(surviving)
    assert values["log_mstar_surviving"] == pytest.approx(expected, abs=1e-5)


def test_surviving_mass_of_constant_star_formation_is_the_mean(constant: PopulationTables) -> None:
    """Mean of 0.65 - 0.1 lg t over 0..13 Gyr is 0.65 - 0.1 (lg 13 - 1 / ln 10)."""
    value = derived(constant, 0.0)["log_mstar_surviving"]
    expected = 0.65 - 0.1 * (np.log10(13.0) - 1 / np.log(10.0))
    assert value == pytest.approx(10.0 + np.log10(expected), abs=1e-3)


def test_surviving_mass_lies_within_the_grid(bc03_10myr: GalaxyModel) -> None:
    tables = bc03_10myr.tables
    theta = from_u(draw_u(2_000, torch.Generator().manual_seed(9))).float()[None]
    names = ("log_mstar_surviving",)
    log_surviving = calc_derived(theta, torch.tensor([0.1]), tables, names)[..., 0]
    fraction = 10 ** (log_surviving - column(theta, "log_mstar"))
    assert float(tables.surviving.min()) < fraction.min() < fraction.max() <= 1.0
    assert 0.5 < fraction.median() < 0.7


def test_grid_without_surviving_masses_gives_nan_and_the_rest(real: PopulationTables) -> None:
    values = derived(real._replace(surviving=real.surviving * torch.nan), 0.1)
    missing = {name for name, value in values.items() if np.isnan(value)}
    assert missing == {"log_mstar_surviving", "log_ssfr_1gyr"}


def test_names_may_come_in_any_order(real: PopulationTables) -> None:
    theta, redshift = theta_of(), torch.tensor([0.1])
    forward_order = calc_derived(theta, redshift, real, DERIVED_NAMES)
    reverse_order = calc_derived(theta, redshift, real, DERIVED_NAMES[::-1])
    assert torch.equal(forward_order, reverse_order.flip(-1))


def test_attenuation_is_that_of_the_diffuse_dust(real: PopulationTables) -> None:
    values = derived(real, 0.1, tau_ism=1.0, tau_bc=2.0, n_dust=0.0)
    assert values["a_v"] == pytest.approx(1.086 * (1.0 + 0.85 / 4.05 * 0.0057), rel=3e-3)
    assert derived(real, 0.1, tau_bc=2.0)["a_v"] == 0.0


def test_tables_integrate_the_histories(real: PopulationTables) -> None:
    nmf = load_nmf()
    again = build_population_tables(load_ssp("synthetic"), nmf, 0.2)
    assert torch.equal(again.sfh_cumulative, real.sfh_cumulative)
    total = np.trapezoid(nmf.sfh, nmf.lookback_gyr, axis=1)
    np.testing.assert_allclose(real.sfh_cumulative[:, -1].numpy(), total, rtol=1e-4)
