"""Observations and their encoding."""

import dataclasses

import numpy as np
import pytest
import torch

from sedflow_core import Observation
from sedflow_core.batches import asinh_softening
from sedflow_core.errors import ObservationError
from sedflow_core.noise import load_noise
from sedflow_core.observation import fit_context_scale, raw_context, to_context
from sedflow_core.simulation import ForwardModel, NoisySimulations, simulate_noisy

FLUX = np.ones((3, 5))


@pytest.fixture(scope="module")
def rows(forward: ForwardModel) -> NoisySimulations:
    return simulate_noisy(forward, 2_000, seed=12)


@pytest.fixture(scope="module")
def softening() -> torch.Tensor:
    return asinh_softening(load_noise(tuple("ugriz")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FLUX[0], FLUX[0], 0.1), r"flux: expected shape \(n, n_band\), got \(5,\)"),
        ((FLUX, FLUX[:2], [0.1] * 3), r"flux_err: expected shape \(3, 5\), got \(2, 5\)"),
        ((FLUX, FLUX, 0.1), r"redshift: expected shape \(3,\), got \(\)"),
        ((FLUX, FLUX, [[0.1]] * 3), r"redshift: expected shape \(3,\), got \(3, 1\)"),
    ],
)
def test_wrong_shapes_are_refused_with_both_shapes(arguments, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Observation(*arguments)


def test_values_are_not_judged_and_lists_become_float64() -> None:
    observation = Observation([[np.nan, -1, np.inf]], [[0, -2, 1]], [-5])
    assert observation.flux.dtype == observation.redshift.dtype == np.float64
    assert len(observation) == 1


def test_an_observation_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Observation(FLUX, FLUX, [0.1] * 3).redshift = np.zeros(3)


@pytest.mark.parametrize(
    "index", [slice(1, 3), np.array([2, 0]), np.array([True, False, True])], ids=str
)
def test_rows_select_galaxies(index) -> None:
    flux = np.arange(15.0).reshape(3, 5)
    part = Observation(flux, flux + 1, np.arange(3.0)).rows(index)
    np.testing.assert_array_equal(part.flux, flux[index])
    np.testing.assert_array_equal(part.flux_err, flux[index] + 1)
    np.testing.assert_array_equal(part.redshift, np.arange(3.0)[index])


def test_asinh_magnitude_is_the_ab_magnitude_above_signal_to_noise_5(
    rows: NoisySimulations, softening: torch.Tensor
) -> None:
    raw = raw_context(rows.flux, rows.flux_err, rows.redshift, softening)
    good = rows.flux > 5 * rows.flux_err
    mag = 22.5 - 2.5 * torch.log10(rows.flux)
    mag_err = 2.5 / np.log(10) * rows.flux_err / rows.flux
    assert good.double().mean() > 0.9
    assert (raw[:, :5] - mag)[good].abs().max() < 0.01
    assert (raw[:, 5:10].exp() / mag_err)[good].sub(1).abs().max() < 0.02
    torch.testing.assert_close(raw[:, 10].exp(), rows.redshift)


def test_encoding_is_finite_and_monotonic_through_zero_flux(
    rows: NoisySimulations, softening: torch.Tensor
) -> None:
    scale = fit_context_scale(rows.flux, rows.flux_err, rows.redshift, softening)
    flux = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64)[:, None].expand(-1, 5)
    flux_err, redshift = torch.ones_like(flux), torch.full((61,), 0.1, dtype=torch.float64)
    assert to_context(flux, flux_err, redshift, scale).isfinite().all()
    assert (raw_context(flux, flux_err, redshift, softening)[:, :5].diff(dim=0) < 0).all()


def test_training_context_has_zero_mean_and_unit_covariance(
    rows: NoisySimulations, softening: torch.Tensor
) -> None:
    scale = fit_context_scale(rows.flux, rows.flux_err, rows.redshift, softening)
    context = to_context(rows.flux, rows.flux_err, rows.redshift, scale)
    assert context.mean(dim=0).abs().max() < 1e-3
    torch.testing.assert_close(torch.cov(context.T), torch.eye(11), rtol=0, atol=2e-3)


def test_a_rows_context_does_not_depend_on_its_batch(
    rows: NoisySimulations, softening: torch.Tensor
) -> None:
    photometry = (rows.flux[:300], rows.flux_err[:300], rows.redshift[:300])
    scale = fit_context_scale(*photometry, softening)
    together = to_context(*photometry, scale)
    for size in (1, 7, 256):
        parts = zip(*(t.split(size) for t in photometry), strict=True)
        assert torch.equal(torch.cat([to_context(*part, scale) for part in parts]), together)


@pytest.mark.parametrize("bands", ["griz", "r"])
def test_any_number_of_bands_is_encoded(rows: NoisySimulations, bands: str) -> None:
    index = ["ugriz".index(b) for b in bands]
    softening = asinh_softening(load_noise(tuple(bands)))
    photometry = (rows.flux[:, index], rows.flux_err[:, index], rows.redshift)
    scale = fit_context_scale(*photometry, softening)
    assert to_context(*photometry, scale).shape == (2_000, 2 * len(bands) + 1)
    all_bands = asinh_softening(load_noise(tuple("ugriz")))
    of_all = raw_context(rows.flux, rows.flux_err, rows.redshift, all_bands)
    own = [*index, *(5 + i for i in index), 10]
    torch.testing.assert_close(raw_context(*photometry, softening), of_all[:, own])


def test_what_lies_under_a_mask_is_no_measurement() -> None:
    masked = np.ma.array(FLUX, mask=[[False] * 5, [True] * 5, [False] * 5])
    observation = Observation(masked, masked, np.ma.array([0.1, 0.1, 0.1], mask=[0, 1, 0]))
    for values in (observation.flux, observation.flux_err, observation.redshift):
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[[0, 2]]).all()


def test_bands_may_be_a_reversed_view() -> None:
    flux = np.arange(1.0, 16.0).reshape(3, 5)
    reversed_flux = flux[:, ::-1]
    seen, _, _ = Observation(reversed_flux, reversed_flux, [0.1] * 3).tensors()
    np.testing.assert_array_equal(seen.numpy(), reversed_flux)
