"""The function in the middle: order, batches, determinism, densities, and what goes wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core import Artifact, Observation, estimate, log_prob, sample, simulate
from sedflow_core.errors import ObservationError
from sedflow_core.estimation import N_SETS, _groups, choose_base, sobol_normal
from sedflow_core.prior import N_U, from_u, to_u
from sedflow_core.sfh import calc_derived
from sedflow_core.summary import LEVELS, Summary, quantiles
from sedflow_core.threads import torch_threads

N = 300


@pytest.fixture(scope="module")
def observation(tiny: Artifact) -> Observation:
    """Simulations, some of them broken in every way."""
    rows = simulate(tiny, N, seed=21).observation
    flux, flux_err, redshift = rows.flux.copy(), rows.flux_err.copy(), rows.redshift.copy()
    flux[3, 1], flux[10, 0], flux[11, 2] = np.nan, -1.0, 1e12
    flux_err[20, 4], flux_err[21, 0] = 0.0, np.inf
    redshift[30], redshift[31] = 0.5, np.nan
    return Observation(flux, flux_err, redshift)


@pytest.fixture(scope="module")
def summary(tiny: Artifact, observation: Observation) -> Summary:
    return estimate(tiny, observation)


@pytest.fixture(scope="module")
def clean(observation: Observation, summary: Summary) -> Observation:
    """The supported galaxies."""
    return observation.rows(summary.flags == 0)


def assert_same(first: Summary, second: Summary) -> None:
    """Equal to the last bit, NaN included."""
    for name in ("quantiles", "mean", "std", "covariance", "flags"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for ours, others in ((first.probabilities, second.probabilities), (first.trust, second.trust)):
        assert ours.keys() == others.keys()
        for name, values in ours.items():
            np.testing.assert_array_equal(values, others[name])


def rows_of(summary: Summary, index: object) -> tuple[np.ndarray, ...]:
    trust, probabilities = summary.trust.values(), summary.probabilities.values()
    values = (summary.quantiles, summary.mean, summary.std, summary.covariance, summary.flags)
    return tuple(value[index] for value in (*values, *trust, *probabilities))


def test_shapes_and_names(tiny: Artifact, summary: Summary) -> None:
    n_name = 12 + len(tiny.derived_names)
    assert summary.names == tiny.param_names + tiny.derived_names
    assert summary.levels == LEVELS
    assert summary.quantiles.shape == (N, n_name, 5)
    assert summary.mean.shape == summary.std.shape == (N, n_name)
    assert summary.covariance.shape == (N, 12, 12)
    assert summary.flags.shape == (N,)
    assert len(summary) == N
    assert (summary.n_samples, summary.seed) == (64, 0)


def test_rows_outside_the_support_are_nan_with_reasons(summary: Summary) -> None:
    outside = summary.flags != 0
    assert np.array_equal(np.isnan(summary.mean).all(axis=1), outside)
    assert np.array_equal(np.isnan(summary.quantiles).any(axis=(1, 2)), outside)
    assert np.array_equal(np.isnan(summary.covariance).any(axis=(1, 2)), outside)
    assert [bool(summary.reasons(i)) for i in range(N)] == outside.tolist()
    assert "non_finite_g" in summary.reasons(3)
    assert "non_positive_flux_u" in summary.reasons(10)
    assert "mag_range_r" in summary.reasons(11)
    assert "non_positive_error_z" in summary.reasons(20)
    assert "non_finite_u" in summary.reasons(21)
    assert "redshift_range" in summary.reasons(30)
    assert "non_finite_redshift" in summary.reasons(31)
    assert outside.mean() < 0.2


def assert_parts_make_the_whole(parts: list[Summary], whole: Summary) -> None:
    joined = zip(*(rows_of(part, slice(None)) for part in parts), strict=True)
    for ours, expected in zip(joined, rows_of(whole, slice(None)), strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), expected)


@pytest.mark.parametrize("size", [1, 2, 7, 256])
@pytest.mark.parametrize("n_samples", [50, 64])
def test_batches_change_no_bit(tiny, observation, size: int, n_samples: int) -> None:
    whole = estimate(tiny, observation, n_samples)
    rows = [observation.rows(slice(i, i + size)) for i in range(0, N, size)]
    assert_parts_make_the_whole([estimate(tiny, few, n_samples) for few in rows], whole)


@pytest.mark.parametrize("size", [1, 3, 31])
def test_batches_change_no_bit_of_the_shipped_artifact(shipped, size: int) -> None:
    n = 124
    galaxies = simulate(shipped, n, seed=5).observation
    rows = [galaxies.rows(slice(i, i + size)) for i in range(0, n, size)]
    parts = [estimate(shipped, few) for few in rows]
    assert_parts_make_the_whole(parts, estimate(shipped, galaxies))


@pytest.mark.parametrize("n", [0, 1, 47, 600])
@pytest.mark.parametrize(("device", "n_samples"), [("cpu", 64), ("cpu", 50), ("cuda", 1024)])
def test_groups_hold_every_galaxy_once_but_for_repetitions_of_the_last(
    n: int, device: str, n_samples: int
) -> None:
    rows = 2 * torch.arange(n)
    groups = _groups(SimpleNamespace(device=device), rows, n_samples)
    joined = torch.cat([rows[:0], *groups])
    assert joined[:n].tolist() == rows.tolist()
    assert set(joined[n:].tolist()) <= set(rows[-1:].tolist())
    sizes = {len(group) for group in groups}
    assert len(sizes) <= 1 if device == "cuda" else all(s & (s - 1) == 0 for s in sizes)


def test_threads_change_no_bit(tiny, observation, summary) -> None:
    with torch_threads(3):
        assert_same(estimate(tiny, observation), summary)
        assert torch.get_num_threads() == 3


def test_results_come_in_the_order_of_the_galaxies(tiny, observation, summary) -> None:
    order = np.random.default_rng(0).permutation(N)
    shuffled = estimate(tiny, observation.rows(order))
    for ours, expected in zip(rows_of(shuffled, slice(None)), rows_of(summary, order), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_the_same_call_gives_the_same_bits_and_another_seed_others(tiny, clean) -> None:
    few = clean.rows(slice(0, 10))
    assert_same(estimate(tiny, few), estimate(tiny, few))
    assert not np.array_equal(estimate(tiny, few).mean, estimate(tiny, few, seed=1).mean)
    for independent in (False, True):
        first, second = (sample(tiny, few, 32, 5, independent) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_summaries_are_those_of_the_samples(tiny: Artifact, clean: Observation) -> None:
    few = clean.rows(slice(0, 5))
    theta = sample(tiny, few, n_samples=200, seed=3)
    summary = estimate(tiny, few, n_samples=200, seed=3)
    derived = calc_derived(
        torch.tensor(theta).transpose(0, 1),
        torch.tensor(few.redshift),
        tiny.tables,
        tiny.derived_names,
    )
    samples = np.concatenate([theta.transpose(1, 0, 2), derived.numpy()], axis=2).astype(float)
    expected = quantiles(torch.tensor(np.sort(samples, axis=1)).mT, LEVELS)
    np.testing.assert_allclose(summary.quantiles, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(summary.mean, samples.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_unsupported_rows_can_be_included_where_they_can_be_encoded(tiny, observation) -> None:
    summary = estimate(tiny, observation, include_unsupported=True)
    missing = np.flatnonzero(np.isnan(summary.mean).all(axis=1))
    assert missing.tolist() == [3, 20, 21, 30, 31]
    assert observation.redshift[30] > tiny.redshift_max
    assert summary.flags[11] != 0


def test_no_galaxies_give_an_empty_summary(tiny: Artifact, observation: Observation) -> None:
    assert len(estimate(tiny, observation.rows(slice(0, 0)))) == 0


def test_base_points_are_standard_normal_and_more_even_than_chance() -> None:
    base = sobol_normal(1024, 0).numpy()
    assert base.shape == (N_U, 1024)
    distances = [stats.kstest(row, "norm").statistic for row in base]
    assert max(distances) < 0.01  # independent draws: 0.027 on average
    assert np.abs(np.corrcoef(base) - np.eye(N_U)).max() < 0.05


def test_sobol_points_are_shared_and_independent_draws_are_not(tiny, clean) -> None:
    twins = Observation(*(np.repeat(t[:1], 2, axis=0) for t in photometry_of(clean)))
    shared = sample(tiny, twins, 50)
    np.testing.assert_array_equal(shared[:, 0], shared[:, 1])
    own = sample(tiny, twins, 50, independent=True)
    assert not np.isin(own[:, 0], own[:, 1]).any()


def test_galaxies_spread_over_the_sets_of_base_points(clean: Observation) -> None:
    sets = {id(choose_base(clean, i, 16, seed=0)) for i in range(len(clean))}
    assert len(sets) > 0.9 * N_SETS  # all but 1 % of the sets, were the choice random
    again = clean.rows(np.array([5]))
    assert choose_base(again, 0, 16, seed=0) is choose_base(clean, 5, 16, seed=0)
    assert choose_base(again, 0, 16, seed=1) is not choose_base(clean, 5, 16, seed=0)


def photometry_of(observation: Observation) -> tuple[np.ndarray, ...]:
    return observation.flux, observation.flux_err, observation.redshift


def test_sobol_and_independent_samples_have_one_distribution(tiny, clean) -> None:
    one = clean.rows(slice(0, 1))
    sobol = to_u(torch.tensor(sample(tiny, one, 4096)[:, 0]).double()).numpy()
    drawn = to_u(torch.tensor(sample(tiny, one, 4096, independent=True)[:, 0]).double()).numpy()
    for ours, other in zip(sobol.T, drawn.T, strict=True):
        assert stats.ks_2samp(ours, other).pvalue > 1e-3


def test_density_over_the_prior_integrates_to_one(tiny: Artifact, clean: Observation) -> None:
    """mean q(u) / N(u) over the prior is the integral of q."""
    u = torch.randn(40_000, 1, N_U, generator=torch.Generator().manual_seed(2)).double()
    log_q = log_prob(tiny, from_u(u).numpy(), clean.rows(slice(0, 1)))[:, 0]
    ratio = np.exp(log_q - stats.norm.logpdf(u[:, 0].numpy()).sum(axis=1))
    assert ratio.mean() == pytest.approx(1.0, abs=4 * ratio.std() / 200)
    assert ratio.std() / 200 < 0.05


def test_samples_follow_the_density(tiny: Artifact, clean: Observation) -> None:
    """mean N(u) / q(u) over the samples is the integral of the prior, if they follow q."""
    one = clean.rows(slice(1, 2))
    theta = sample(tiny, one, 40_000, independent=True)
    log_q = log_prob(tiny, theta, one)[:, 0]
    u = to_u(torch.tensor(theta[:, 0]).double()).numpy()
    ratio = np.exp(stats.norm.logpdf(u).sum(axis=1) - log_q)
    assert ratio.mean() == pytest.approx(1.0, abs=4 * ratio.std() / 200)
    assert ratio.std() / 200 < 0.05


def test_samples_and_densities_of_unencodable_rows_are_nan(tiny, observation) -> None:
    some = observation.rows(np.array([0, 3, 31]))
    theta = sample(tiny, some, 20)
    assert theta.shape == (20, 3, 12)
    assert np.isnan(theta).all(axis=(0, 2)).tolist() == [False, True, True]
    density = log_prob(tiny, np.repeat(theta[:, :1], 3, axis=1), some)
    assert density.shape == (20, 3)
    assert np.isnan(density).all(axis=0).tolist() == [False, True, True]
    assert np.isfinite(density[:, 0]).all()


def test_wrong_numbers_of_bands_and_galaxies_are_refused(tiny: Artifact) -> None:
    four = Observation(np.ones((2, 4)), np.ones((2, 4)), np.full(2, 0.1))
    five = Observation(np.ones((2, 5)), np.ones((2, 5)), np.full(2, 0.1))
    for call in (estimate, sample):
        with pytest.raises(ObservationError, match="expected 5 bands ugriz, got 4"):
            call(tiny, four)
    for call in (estimate, sample):
        with pytest.raises(ObservationError, match="n_samples: expected 1 or more, got 0"):
            call(tiny, five, n_samples=0)
    for shape in ((3, 12), (7, 3, 12), (7, 2, 11)):
        with pytest.raises(ObservationError, match=r"expected shape \(n_samples, 2, 12\), got"):
            log_prob(tiny, np.ones(shape, dtype=np.float32), five)
