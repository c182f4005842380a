"""The traced graph against the functions that it was traced from."""

import pytest
import torch

from sedflow_core import Artifact, simulate
from sedflow_core.consequences import find_consequences
from sedflow_core.emulator import emulate, fix_redshift
from sedflow_core.prior import draw_u, from_u
from sedflow_core.sfh import calc_derived
from sedflow_core.trust import CLEAR_EFFICIENCY, N_DRAWS, judge

N_GALAXY = 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_samples_of_any_galaxies_lead_to_what_the_functions_say(
    tiny: Artifact, seed: int
) -> None:
    assert tiny.trust is not None
    seen = simulate(tiny, N_GALAXY, seed=seed).observation
    photometry = tuple(torch.tensor(t) for t in (seen.flux, seen.flux_err, seen.redshift))
    u = draw_u(N_GALAXY * 300, torch.Generator().manual_seed(seed)).float().view(N_GALAXY, 300, -1)
    log_q = -0.5 * u.square().sum(dim=-1)
    values, *judgement = find_consequences(tiny, u, log_q, photometry)
    theta = from_u(u)
    derived = calc_derived(theta, photometry[2], tiny.tables, tiny.derived_names)
    torch.testing.assert_close(values, torch.cat([theta, derived], dim=-1).mT)
    fixed = fix_redshift(tiny.trust.emulator, tiny.tables, photometry[2])
    model_flux = emulate(fixed, tiny.tables, theta, photometry[0].shape[1])
    by_first, by_all = (
        judge(photometry, u[:, :n], log_q[:, :n], model_flux[:, :n], tiny.trust.noise)
        for n in (N_DRAWS, u.shape[1])
    )
    is_open = by_first.efficiency < CLEAR_EFFICIENCY
    assert is_open.any()
    for found, first, all_ in zip(judgement, by_first, by_all, strict=True):
        torch.testing.assert_close(found, torch.where(is_open, all_, first), equal_nan=True)
