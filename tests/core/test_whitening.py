"""The whitening: what it leaves is white, its density is right, and the mass comes out narrow."""

import pytest
import torch

from sedflow_core.batches import fit_scale, noisy_batches
from sedflow_core.errors import TrainingError
from sedflow_core.observation import to_context
from sedflow_core.prior import U_NAMES
from sedflow_core.simulation import ForwardModel, TrainingSet
from sedflow_core.whitening import Whitening

Rows = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def rows(training_set: TrainingSet, forward: ForwardModel) -> Rows:
    """u and contexts of noisy simulations."""
    scale, _ = fit_scale(training_set, forward.noise, seed=0)
    generator = torch.Generator().manual_seed(1)

    def encode(flux: torch.Tensor, flux_err: torch.Tensor, redshift: torch.Tensor) -> torch.Tensor:
        return to_context(flux, flux_err, redshift, scale)

    batch = next(noisy_batches(training_set, forward.noise, generator, encode, 1 << 20))
    return batch.u, batch.context


@pytest.fixture(scope="module")
def whitening(rows: Rows) -> Whitening:
    u, context = rows
    module = Whitening(u.shape[1], context.shape[1])
    module.fit(u, context)
    return module


def test_rows_it_was_fitted_to_come_out_white(whitening: Whitening, rows: Rows) -> None:
    y, _ = whitening(*rows)
    torch.testing.assert_close(torch.cov(y.T), torch.eye(y.shape[1]), rtol=0, atol=1e-3)
    assert y.mean(dim=0).abs().max() < 0.25


def test_the_mass_given_all_else_is_a_tenth_as_wide_as_its_prior(whitening: Whitening) -> None:
    _, spread = whitening.locate(torch.zeros(1, whitening.weight.shape[1]))
    mass = U_NAMES.index("log_mstar")
    assert torch.equal(whitening.inverse, whitening.inverse.triu())
    assert whitening.inverse[mass, mass] / spread[0, mass] > 10.0


def test_log_determinant_is_that_of_the_jacobian(whitening: Whitening, rows: Rows) -> None:
    u, context = (t[:5].double() for t in rows)
    double = Whitening(*whitening.weight.shape).double()
    double.load_state_dict(whitening.state_dict())
    _, log_det = double(u, context)
    jacobian = torch.autograd.functional.jacobian(lambda x: double(x, context)[0], u)
    of_each = torch.linalg.slogdet(torch.stack([jacobian[i, :, i] for i in range(5)]))
    torch.testing.assert_close(of_each.logabsdet, log_det)


def test_a_galaxy_beyond_every_line_still_has_a_place(whitening: Whitening) -> None:
    center, spread = whitening.locate(torch.full((1, whitening.weight.shape[1]), 1e6))
    assert center.isfinite().all()
    assert spread.isfinite().all()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TrainingError, match="expected at least 23 rows, got 12"):
        Whitening(11, 11).fit(torch.randn(12, 11), torch.randn(12, 11))
