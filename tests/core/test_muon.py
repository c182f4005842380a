"""Muon against the singular value decomposition, and against torch's own."""

import pytest
import torch
from torch import nn

from sedflow_core.muon import Muon, orthogonal_factor


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (20, 48)], ids=str)
def test_orthogonal_factor_keeps_the_singular_vectors_and_levels_the_values(
    shape: tuple[int, int],
) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double()
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.einsum("nij,nik,nkj->nk", orthogonal_factor(matrices), u, vh.mT.mT)
    levels = torch.linalg.svdvals(orthogonal_factor(matrices))
    assert ((levels > 0.6) & (levels < 1.3)).float().mean() > 0.95
    torch.testing.assert_close(values.sort(descending=True).values, levels, rtol=0, atol=1e-6)


def test_steps_agree_with_torchs_muon() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(16, 16, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        ours.grad = torch.randn(16, 16, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved  # theirs rounds to bfloat16


def test_only_matrices_are_accepted() -> None:
    with pytest.raises(ValueError, match=r"params: expected matrices, got the shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
