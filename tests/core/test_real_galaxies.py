"""The shipped artifact on real galaxies whose masses others have published.

The table each test prints has the conversions of the comparison as columns of their own; run with
`pytest -s tests/core/test_real_galaxies.py` to read it; the bounds lie close to the README's
figures, to guard them. The galaxies are those of the NASA-Sloan
Atlas v0_1_2 in the public tables of the repositories rfinn/LCS (clusters) and rfinn/Virgo, as one
file `galaxies_dev.csv.gz` with columns flux_[ugriz] and flux_err_[ugriz] (nanomaggies, with error
floor and AB factors), z, logmass, logsfr, logmass_kcorrect5_h70 (by kcorrect 5),
clean (S/N above 3 in all bands, 0.003 < z < 0.2) and source.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy import stats

from sedflow_core import Artifact, Observation, Summary, estimate, sample
from sedflow_core.estimation import find_flags
from sedflow_core.fresh_simulations import forward_model
from sedflow_core.importance import weigh, weighted_quantile
from sedflow_core.new_prior import log_prior_weight
from sedflow_core.prior import PARAM_NAMES, from_u
from sedflow_core.sfh import calc_derived
from sedflow_core.simulation import simulate_noisy
from sedflow_core.units import mag_from_nanomaggy

H0_SHIFT = 2.0 * np.log10(67.8 / 70.0)
"""Mass scales with distance squared: Planck13 -> H0 = 70, -0.028 dex."""
KROUPA_TO_CHABRIER = -0.03
BOUNDS = {"nsa_v0_1_2_lcs": (0.10, 0.11), "nsa_v0_1_2_virgo": (0.17, 0.085)}
"""Source -> largest accepted |median| and 68 % half-width of the mass differences [dex]."""
MIN_EFFICIENCY = {"nsa_v0_1_2_lcs": 0.6, "nsa_v0_1_2_virgo": 0.45}
"""Source -> smallest accepted median importance efficiency."""
MAX_FLAGGED = {"nsa_v0_1_2_lcs": 0.08, "nsa_v0_1_2_virgo": 0.20}
"""Largest accepted share outside the support; Virgo is rich in blue dwarfs."""

MIN_LOG_SSFR = -11.0
"""Published log SFR / M above which a galaxy counts as star-forming [1/yr]."""

SLOPES = (-1.0, 0.4)
"""Slopes of the dust curve that Prospector-alpha allows (Leja et al. 2019)."""
SLOPE_MASS = (SLOPES[1] - SLOPES[0]) / 3.0
"""Their mass under the prior of the table, uniform from -2 to 1."""


class Galaxies(NamedTuple):
    source: str
    observation: Observation
    published: np.ndarray
    log_sfr: np.ndarray
    kcorrect: np.ndarray


@pytest.fixture(scope="module")
def catalog(shared_data: Path) -> Table:
    return Table.read(shared_data / "galaxies_dev.csv.gz", format="ascii.csv")


def select(catalog: Table, source: str) -> Galaxies:
    clean = np.array([str(value) == "True" for value in catalog["clean"]])
    rows = catalog[(catalog["source"] == source) & clean]
    masses = np.ma.filled(np.ma.asarray(rows["logmass"], dtype=float), np.nan)
    rows, masses = rows[np.isfinite(masses)], masses[np.isfinite(masses)]
    log_sfr, kcorrect = (
        np.ma.filled(np.ma.asarray(rows[name], dtype=float), np.nan)
        for name in ("logsfr", "logmass_kcorrect5_h70")
    )
    return Galaxies(source, photometry(rows), masses, log_sfr, kcorrect)


def photometry(rows: Table) -> Observation:
    flux, flux_err = (
        np.stack([np.asarray(rows[f"{kind}_{band}"], dtype=float) for band in "ugriz"], axis=1)
        for kind in ("flux", "flux_err")
    )
    return Observation(flux, flux_err, np.asarray(rows["z"], dtype=float))


@pytest.fixture(scope="module", params=sorted(BOUNDS))
def galaxies(request: pytest.FixtureRequest, catalog: Table) -> Galaxies:
    return select(catalog, request.param)


@pytest.fixture(scope="module")
def summary(shipped: Artifact, galaxies: Galaxies) -> Summary:
    return estimate(shipped, galaxies.observation)


def g_minus_i(observation: Observation) -> np.ndarray:
    mag = mag_from_nanomaggy(observation.flux)
    return mag[:, 1] - mag[:, 3]


def taylor_mass(artifact: Artifact, observation: Observation) -> np.ndarray:
    """log M of Taylor et al. (2011), Eq. 8, H0 = 70, Chabrier; observed-frame colours."""
    i = mag_from_nanomaggy(observation.flux)[:, 3]
    distance = artifact.luminosity_distance_mpc(observation.redshift) * 67.8 / 70.0
    absolute_i = i - 5.0 * np.log10(distance) - 25.0
    return -0.68 + 0.70 * g_minus_i(observation) - 0.4 * (absolute_i - 4.58)


def half_width(values: np.ndarray) -> float:
    low, high = np.nanquantile(values, [0.16, 0.84])
    return 0.5 * float(high - low)


def test_masses_agree_with_the_published_ones(
    shipped: Artifact, galaxies: Galaxies, summary: Summary
) -> None:
    formed = summary.quantile("log_mstar", 0.5)
    surviving = summary.quantile("log_mstar_surviving", 0.5)
    converted = surviving + H0_SHIFT + KROUPA_TO_CHABRIER
    inside = summary.flags == 0
    columns = {
        "formed": formed,
        "surviving": surviving,
        "surviving, H0=70": surviving + H0_SHIFT,
        "surviving, H0=70, Chabrier": converted,
        "Taylor et al. 2011": np.where(inside, taylor_mass(shipped, galaxies.observation), np.nan),
    }
    print(f"\n{galaxies.source}: {inside.sum()} galaxies; log M minus published [dex]")
    for name, mass in columns.items():
        change = mass - galaxies.published
        print(
            f"  {name:28s} median {np.nanmedian(change):+.3f}  half-width {half_width(change):.3f}"
        )
    median_bound, _ = BOUNDS[galaxies.source]
    assert abs(np.nanmedian(converted - galaxies.published)) <= median_bound


def test_masses_scatter_little_about_the_published_ones(
    galaxies: Galaxies, summary: Summary
) -> None:
    _, width_bound = BOUNDS[galaxies.source]
    change = summary.quantile("log_mstar_surviving", 0.5) - galaxies.published
    assert half_width(change) <= width_bound


def test_differences_of_mass_hardly_grow_with_mass(galaxies: Galaxies, summary: Summary) -> None:
    inside = summary.flags == 0
    low, mass, high = (
        summary.quantile("log_mstar_surviving", level)[inside] for level in (0.16, 0.5, 0.84)
    )
    published = galaxies.published[inside]
    change = mass - published
    pull = (change - np.median(change)) / (0.5 * (high - low))
    by_mass = stats.linregress(published, change)
    print(
        f"\n{galaxies.source}: slope against published log M {by_mass.slope:+.3f} +- "
        f"{by_mass.stderr:.3f}; sigma {0.5 * np.median(high - low):.3f} dex; "
        f"median-free differences over sigma: half-width {half_width(pull):.2f}, "
        f"{(np.abs(pull) < 1).mean():.1%} within 1, {(np.abs(pull) < 2).mean():.1%} within 2"
    )
    assert abs(by_mass.slope) <= 0.1


def test_differences_of_mass_hardly_depend_on_color(
    shipped: Artifact, galaxies: Galaxies, summary: Summary
) -> None:
    """Against iSEDfit in Virgo they do, and kcorrect's too, by galaxies redder than g-i = 1.1."""
    inside = summary.flags == 0
    color = g_minus_i(galaxies.observation)
    ours = summary.quantile("log_mstar_surviving", 0.5)
    published, kcorrect = galaxies.published, galaxies.kcorrect
    differences = {
        "ours less the published": ours - published,
        "Taylor et al. 2011 less the published": (
            taylor_mass(shipped, galaxies.observation) - published
        ),
        "kcorrect 5 less the published": kcorrect - published,
        "ours less kcorrect 5": ours - kcorrect,
    }
    print(f"\n{galaxies.source}: slopes against g-i, of all and of those bluer than 1.1")
    slopes = {}
    for name, change in differences.items():
        of_all, of_blue = (
            stats.linregress(color[rows], change[rows]) for rows in (inside, inside & (color < 1.1))
        )
        slopes[name] = of_all.slope
        print(
            f"  {name:38s} {of_all.slope:+.3f} +- {of_all.stderr:.3f}, "
            f"{of_blue.slope:+.3f} +- {of_blue.stderr:.3f}"
        )
    assert abs(slopes["ours less kcorrect 5"]) <= 0.1
    if galaxies.source == "nsa_v0_1_2_lcs":
        assert abs(slopes["ours less the published"]) <= 0.1


def test_other_priors_of_dust(shipped: Artifact, galaxies: Galaxies, summary: Summary) -> None:
    """The same draws, weighted to other priors; the weights' mean is the ratio of evidences.

    These galaxies are there because they are bright enough and inside the support: under a prior
    that makes more such galaxies, each of them is the less likely.
    """
    inside = summary.flags == 0
    observation = galaxies.observation.rows(inside)
    theta = sample(shipped, observation)
    draws, redshift = torch.tensor(theta).transpose(0, 1), torch.tensor(observation.redshift)
    mass = calc_derived(draws, redshift, shipped.tables, ("log_mstar_surviving",))[..., 0].T.numpy()
    published, color = galaxies.published[inside], g_minus_i(observation)
    priors = over_artifact(shipped, theta, observation.redshift)
    selection = over_artifact(shipped, *select_simulations(shipped, observation.redshift))
    log_evidence, width = {}, {}
    print(f"\n{galaxies.source}")
    for prior, weights in priors.items():
        reached = weights.any(axis=0)
        known = weights[:, reached]
        change = weighted_quantile(mass[:, reached], known / known.sum(axis=0), 0.5)
        change -= published[reached]
        log_selection = np.log(selection[prior].mean())
        log_evidence[prior] = np.log(known.mean(axis=0)).mean() - log_selection
        width[prior] = half_width(change)
        print(
            f"  {prior:44s} {reached.mean():.2%}, ln evidence {log_evidence[prior]:+.2f} "
            f"(of selection {log_selection:+.2f}), median "
            f"{np.median(change) + H0_SHIFT + KROUPA_TO_CHABRIER:+.3f}, half-width "
            f"{width[prior]:.3f} dex, slope against g-i "
            f"{stats.linregress(color[reached], change).slope:+.3f}"
        )
        assert reached.mean() > 0.98
    ours, table, narrow_table, narrow_ours = priors
    assert max(log_evidence.values()) == log_evidence[ours] == 0.0
    assert width[narrow_ours] < width[ours] < width[table]
    assert max(width[narrow_ours], width[narrow_table]) <= BOUNDS[galaxies.source][1]


def select_simulations(artifact: Artifact, redshift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (1, n, n_theta) and redshifts (n,) of simulations inside the support, as far away
    as most of the galaxies."""
    low, high = np.quantile(redshift, [0.05, 0.95])
    model = forward_model(artifact)._replace(redshift_range=(float(low), float(high)))
    rows = simulate_noisy(model, 40_000, seed=41)
    seen = Observation(rows.flux.numpy(), rows.flux_err.numpy(), rows.redshift.numpy())
    selected = find_flags(artifact, seen) == 0
    return from_u(rows.u).numpy()[None, selected], seen.redshift[selected]


def over_artifact(
    artifact: Artifact, theta: np.ndarray, redshift: np.ndarray
) -> dict[str, np.ndarray]:
    """Other priors over that of the artifact for draws (n_sample, n, n_theta)."""
    to_table = over_table(artifact, theta, redshift)
    slope = theta[..., PARAM_NAMES.index("n_dust")]
    narrow = ((slope > SLOPES[0]) & (slope < SLOPES[1])) / SLOPE_MASS
    return {
        "of the artifact": np.ones_like(to_table),
        "of the table": to_table,
        "of the table, slopes of Prospector-alpha": to_table * narrow,
        "of the artifact, slopes of Prospector-alpha": narrow,
    }


def over_table(artifact: Artifact, theta: np.ndarray, redshift: np.ndarray) -> np.ndarray:
    """The prior of the table over that of the artifact for draws (n_sample, n, n_theta)."""
    flat = torch.tensor(theta).flatten(0, 1)
    of_each = torch.tensor(redshift).repeat(len(theta))
    log_weight = log_prior_weight(artifact.prior, flat, of_each, artifact.tables)
    return np.exp(-log_weight.numpy()).reshape(theta.shape[:2])


def test_star_formation_ranks_as_published(galaxies: Galaxies, summary: Summary) -> None:
    forms = galaxies.log_sfr - galaxies.published > MIN_LOG_SSFR
    if not forms.any():
        pytest.skip(f"{galaxies.source} has no published star formation")
    forms &= summary.flags == 0
    published = galaxies.log_sfr[forms]
    rank = {
        name: stats.spearmanr(summary.quantile(name, 0.5)[forms], published).statistic
        for name in ("log_sfr_100myr", "log_sfr_1gyr")
    }
    print(f"\n{galaxies.source}: {forms.sum()} star-forming galaxies; Spearman {rank}")
    assert min(rank.values()) >= 0.85


def test_few_cluster_galaxies_are_flagged(
    shipped: Artifact, galaxies: Galaxies, summary: Summary
) -> None:
    flagged = summary.flags != 0
    print(f"\n{galaxies.source}: {flagged.mean():.2%} of {len(flagged)} flagged")
    for i, name in enumerate(shipped.flag_names):
        share = (summary.flags >> i & 1).mean()
        if share:
            print(f"  {name:24s} {share:.2%}")
    assert flagged.mean() <= MAX_FLAGGED[galaxies.source]


def test_importance_weights_move_the_masses_of_real_galaxies_little(
    shipped: Artifact, galaxies: Galaxies, summary: Summary
) -> None:
    inside = np.flatnonzero(summary.flags == 0)
    chosen = np.random.default_rng(0).choice(inside, 50, replace=False)
    observation = galaxies.observation.rows(chosen)
    weighted = weigh(shipped, forward_model(shipped), observation)
    theta = torch.tensor(weighted.theta).transpose(0, 1)
    redshift = torch.tensor(observation.redshift)
    mass = calc_derived(theta, redshift, shipped.tables, ("log_mstar_surviving",))[..., 0].T.numpy()
    flow_median = np.median(mass, axis=0)
    exact_median = weighted_quantile(mass, weighted.weights, 0.5)
    gaussian_median = weighted_quantile(mass, weighted.gaussian_weights, 0.5)
    efficiency = np.median(weighted.efficiency())
    shift = np.median(flow_median - exact_median)
    print(
        f"\n{galaxies.source}: importance efficiency median {efficiency:.1%}; log M surviving, "
        f"flow minus exact {shift:+.4f}, "
        f"Gaussian minus exact likelihood {np.median(gaussian_median - exact_median):+.4f} dex"
    )
    assert abs(shift) <= 0.006
    assert efficiency >= MIN_EFFICIENCY[galaxies.source]


@pytest.mark.parametrize(("row", "seed"), [(5029, 54), (1084, 65)])
def test_a_draw_on_a_bound_of_the_prior_has_no_great_weight(
    shipped: Artifact, catalog: Table, row: int, seed: int
) -> None:
    weighted = weigh(shipped, forward_model(shipped), photometry(catalog[[row]]), seed=seed)
    assert weighted.efficiency()[0] > 0.1
