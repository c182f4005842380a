"""The noise model against scipy's truncated normal, and its likelihood against integrals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sedflow_core.errors import BandError, SimulationError
from sedflow_core.noise import (
    NoiseModel,
    draw_noise,
    gaussian_log_likelihood,
    in_mag_range,
    load_noise,
    log_likelihood,
    mag_error_model,
    mag_from_flux,
)

UGRIZ = tuple("ugriz")
N = 100_000
POGSON = 2.5 / np.log(10.0)
MAGS = torch.tensor([19.3, 18.1, 17.4, 17.0, 16.8], dtype=torch.float64)


@pytest.fixture(params=["nsa", "nsa-wide"], scope="module")
def noise(request: pytest.FixtureRequest) -> NoiseModel:
    return load_noise(UGRIZ, request.param)


def flux_of(mag: torch.Tensor) -> torch.Tensor:
    return 10 ** (0.4 * (22.5 - mag))


def truncated(noise: NoiseModel, mag: torch.Tensor, band: int):
    """scipy's distribution of the magnitude error of one band."""
    mean, width = (float(t[band]) for t in mag_error_model(mag, noise))
    return stats.truncnorm((float(noise.floor[band]) - mean) / width, np.inf, mean, width)


@pytest.fixture(scope="module")
def drawn(noise: NoiseModel) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_noise(flux_of(MAGS).expand(N, -1), noise, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("band", range(5), ids="ugriz")
def test_magnitude_errors_are_a_truncated_normal(noise, drawn, band: int) -> None:
    sigma_mag = POGSON * (drawn[1] / flux_of(MAGS))[:, band].numpy()
    expected = truncated(noise, MAGS, band)
    assert sigma_mag.min() >= float(noise.floor[band]) * (1 - 1e-12)
    assert stats.kstest(sigma_mag, expected.cdf).pvalue > 1e-3
    assert sigma_mag.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / N**0.5)
    assert sigma_mag.std() == pytest.approx(expected.std(), rel=0.02)


def test_flux_scatters_normally_by_its_error(drawn) -> None:
    flux, flux_err = drawn
    pull = ((flux - flux_of(MAGS)) / flux_err).numpy()
    assert min(stats.kstest(column, "norm").pvalue for column in pull.T) > 1e-3
    np.testing.assert_allclose(np.corrcoef(pull.T), np.eye(5), atol=0.02)


def test_noise_conserves_the_mean_flux(drawn) -> None:
    flux, flux_err = drawn
    standard_error = flux_err.square().mean(dim=0).sqrt() / N**0.5
    assert ((flux.mean(dim=0) - flux_of(MAGS)).abs() < 4 * standard_error).all()


def test_model_is_linear_between_nodes_and_constant_beyond(noise: NoiseModel) -> None:
    for band in range(5):
        nodes = noise.mag[band].numpy()
        mag = np.concatenate([[nodes[0] - 5.0], np.linspace(nodes[0], nodes[-1], 99), [40.0]])
        model = mag_error_model(torch.tensor(mag)[:, None].expand(-1, 5), noise)
        for ours, table in ((model.mean, noise.mean), (model.width, noise.width)):
            expected = np.interp(mag, nodes, table[band].numpy())
            np.testing.assert_allclose(ours[:, band].numpy(), expected, rtol=1e-12)


def test_likelihood_is_scipys_up_to_a_constant(noise: NoiseModel) -> None:
    rng = np.random.default_rng(2)
    truth = flux_of(MAGS + torch.tensor(rng.normal(0.0, 0.3, (200, 5))))
    flux, flux_err = draw_noise(truth, noise, torch.Generator().manual_seed(3))
    model_flux = truth * torch.tensor(rng.normal(1.0, 0.002, (200, 5)))
    expected = np.zeros(200)
    for i in range(200):
        for b in range(5):
            f, e, m = (float(t[i, b]) for t in (flux, flux_err, model_flux))
            error = truncated(noise, mag_from_flux(model_flux[i]), b)
            expected[i] += stats.norm(m, e).logpdf(f) + error.logpdf(POGSON * e / m)
            expected[i] += np.log(POGSON / m)
    constant = 5 * (np.log(POGSON) - np.log(2 * np.pi))
    ours = log_likelihood(flux, flux_err, model_flux, noise).numpy() + constant
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_likelihood_integrates_to_one_over_the_data() -> None:
    noise = load_noise(("u",))
    mag = torch.tensor([20.5], dtype=torch.float64)
    truth = float(flux_of(mag))
    flux = torch.linspace(0.0, 2.0, 801, dtype=torch.float64) * truth
    sigma_mag = torch.linspace(float(noise.floor[0]), 0.9, 800, dtype=torch.float64)
    flux_err = sigma_mag * truth / POGSON * (1 + 1e-12)
    grid = torch.cartesian_prod(flux, flux_err)
    model_flux = torch.full((len(grid), 1), truth, dtype=torch.float64)
    density = log_likelihood(grid[:, :1], grid[:, 1:], model_flux, noise).exp()
    table = density.view(801, 800).numpy() * POGSON / (2 * np.pi)
    mass = np.trapezoid(np.trapezoid(table, flux_err.numpy(), axis=1), flux.numpy())
    assert mass == pytest.approx(1.0, abs=2e-3)


def test_errors_below_the_floor_are_impossible(noise: NoiseModel) -> None:
    truth = flux_of(MAGS)
    flux_err = 0.9 * noise.floor * truth / POGSON
    assert log_likelihood(truth, flux_err, truth, noise) == -torch.inf


def test_plain_likelihood_is_chi_square(noise: NoiseModel, drawn) -> None:
    flux, flux_err = (t[:50] for t in drawn)
    chi = ((flux - flux_of(MAGS)) / flux_err).numpy()
    ours = gaussian_log_likelihood(flux, flux_err, flux_of(MAGS)).numpy()
    np.testing.assert_allclose(ours, -0.5 * (chi**2).sum(axis=1))


def test_magnitude_range_needs_every_band_inside(noise: NoiseModel) -> None:
    middle = noise.mag_range.mean(dim=1)
    assert in_mag_range(flux_of(middle)[None], noise).item()
    for band in range(5):
        for edge, sign in ((0, -1), (1, 1)):
            mag = middle.clone()
            mag[band] = noise.mag_range[band, edge] + sign * 1e-6
            assert not in_mag_range(flux_of(mag)[None], noise).item()
    assert not in_mag_range(torch.tensor([[1.0, 1.0, 0.0, 1.0, -1.0]]), noise).item()


def test_shipped_figures_are_those_of_the_nsa_galaxies(shared_data: Path) -> None:
    noise = load_noise(UGRIZ, "nsa")
    document = json.loads((shared_data / "nsa_noise.json").read_text())
    figures, floor = document["bands"], document["error_floor_mag"]
    for b, name in enumerate("ugriz"):
        assert noise.floor[b] == floor[name]
        assert noise.mag_range[b].tolist() == pytest.approx(figures[name]["mag_range_p01_p999"])
        bins = figures[name]["bins"]
        n = len(bins)
        for ours, key in (
            (noise.mag, "mag_median"),
            (noise.mean, "sig_median"),
            (noise.width, "sig_std"),
        ):
            expected = [row[key] for row in bins]
            np.testing.assert_allclose(ours[b, :n].numpy(), expected, rtol=1e-3)


def test_widened_errors_spread_by_a_fifth_of_their_mean_and_are_else_the_surveys() -> None:
    atlas, wide = load_noise(UGRIZ, "nsa"), load_noise(UGRIZ, "nsa-wide")
    narrow = atlas.width < 0.2 * atlas.mean
    assert 0.2 < narrow.double().mean() < 0.8
    assert torch.equal(wide.width[~narrow], atlas.width[~narrow])
    torch.testing.assert_close(wide.width[narrow], 0.2 * atlas.mean[narrow])
    torch.testing.assert_close(wide.floor, 0.5 * atlas.floor)
    for name in ("mag", "mean", "mag_range"):
        assert torch.equal(getattr(wide, name), getattr(atlas, name))


def test_a_bright_galaxy_with_the_floor_for_its_error_lies_at_no_edge() -> None:
    """Catalogues have such galaxies. By the atlas, none can be brighter than it is observed."""
    atlas, wide = load_noise(UGRIZ, "nsa"), load_noise(UGRIZ, "nsa-wide")
    flux = flux_of(wide.mag_range[:, 0] + 1.0)
    flux_err = atlas.floor * flux / POGSON
    brighter, fainter = (
        [float(log_likelihood(flux, flux_err, factor * flux, noise)) for noise in (atlas, wide)]
        for factor in (1.01, 0.99)
    )
    assert brighter[0] == -np.inf
    assert np.isfinite(fainter[0])
    assert abs(brighter[1] - fainter[1]) < 1.0


def test_bands_without_figures_are_named() -> None:
    with pytest.raises(BandError, match=r"got \['y'\]"):
        load_noise(("u", "y"))


def test_surveys_without_figures_are_named() -> None:
    with pytest.raises(SimulationError, match="got 'sdss-wide'"):
        load_noise(UGRIZ, "sdss-wide")
