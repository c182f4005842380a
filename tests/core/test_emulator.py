"""The emulator against the galaxy model that its tables come from."""

import numpy as np
import pytest
import torch

from sedflow_core import Artifact, sample, simulate
from sedflow_core.emulator import emulate, fix_redshift
from sedflow_core.emulator_tables import build_emulator
from sedflow_core.galaxy import GalaxyModel, calc_band_flux
from sedflow_core.prior import PARAM_NAMES, draw_u, from_u


def difference_mag(model: GalaxyModel, theta: torch.Tensor, redshift: torch.Tensor) -> np.ndarray:
    """Emulator minus model (n, n_sample, n_band) for theta (n, n_sample, 12)."""
    emulator, n_band = build_emulator(model), len(model.bands.names)
    differences = []
    for t, z in zip(theta.float(), redshift, strict=True):
        fixed = fix_redshift(emulator, model.tables, z[None])
        truth = calc_band_flux(model, t, z.expand(len(t)))
        flux = emulate(fixed, model.tables, t[None], n_band)[0].double()
        differences.append(-2.5 * torch.log10(flux / truth))
    return torch.stack(differences).numpy()


def test_posterior_draws_of_the_shipped_model_are_emulated_to_millimagnitudes(
    shipped: Artifact, bc03_100myr: GalaxyModel
) -> None:
    observation = simulate(shipped, 300, seed=31).observation
    theta = torch.tensor(sample(shipped, observation, 250, independent=True)).transpose(0, 1)
    change = difference_mag(bc03_100myr, theta, torch.tensor(observation.redshift))
    assert (np.sqrt((change**2).mean(axis=(0, 1))) <= 0.003).all()
    assert (np.quantile(np.abs(change), 0.999, axis=(0, 1)) <= 0.015).all()


@pytest.mark.parametrize("redshift", [0.0011, 0.035, 0.2])
def test_galaxies_without_dust_or_burst_are_emulated_at_any_redshift(
    bc03_100myr: GalaxyModel, redshift: float
) -> None:
    theta = from_u(draw_u(200, torch.Generator().manual_seed(5)))
    for name in ("fburst", "tau_bc", "tau_ism"):
        theta[:, PARAM_NAMES.index(name)] = 0.0
    z = torch.tensor([redshift], dtype=torch.float64)
    assert np.abs(difference_mag(bc03_100myr, theta[None], z)).max() <= 0.005


def test_flux_is_proportional_to_the_mass_formed(bc03_100myr: GalaxyModel) -> None:
    theta = from_u(draw_u(2, torch.Generator().manual_seed(6))).float()
    theta[1] = theta[0]
    theta[:, 0] = torch.tensor([9.0, 11.0])
    z = torch.tensor([0.1], dtype=torch.float64)
    fixed = fix_redshift(build_emulator(bc03_100myr), bc03_100myr.tables, z)
    flux = emulate(fixed, bc03_100myr.tables, theta[None], 5)[0]
    torch.testing.assert_close(flux[1] / flux[0], torch.full((5,), 100.0), rtol=1e-4, atol=0)
