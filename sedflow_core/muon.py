"""The Muon optimiser: momentum whose matrices are made orthogonal before each step.

Jordan et al. (2024), https://kellerjordan.github.io/posts/muon. torch has one of its own, which
iterates in bfloat16 and one matrix at a time: on a CPU without bfloat16 units that costs more than
the gradient. This one iterates in the weights' precision over all matrices of one shape at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
WEIGHT_DECAY = 0.1
"""Per unit of learning rate. Without it steps of fixed size let the matrices grow without end."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic polynomial that drives singular values to about 1; Jordan et al. (2024)."""
_N_ITERATION = 5
_RMS = 0.2
"""Root mean square of an update for a learning rate of 1, as Adam's; Liu et al. (2025)."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices of hidden layers.

    Args:
        params: matrices (n_out, n_in).
        lr: learning rate; the update's root mean square is 0.2 lr.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        params = list(params)
        for param in params:
            if param.ndim != 2:
                raise ValueError(f"params: expected matrices, got the shape {tuple(param.shape)}")
        super().__init__(params, {"lr": lr})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the orthogonal factor of each matrix's momentum."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for params in _by_shape(group["params"]).values():
                directions = orthogonal_factor(torch.stack([self._direction(p) for p in params]))
                rate = group["lr"] * _RMS * max(params[0].shape) ** 0.5
                for param, direction in zip(params, directions, strict=True):
                    param.mul_(1.0 - group["lr"] * WEIGHT_DECAY).add_(direction, alpha=-rate)
        return loss

    def _direction(self, param: Tensor) -> Tensor:
        gradient = param.grad if param.grad is not None else torch.zeros_like(param)
        momentum: Tensor = self.state[param].setdefault("momentum", torch.zeros_like(param))
        momentum.lerp_(gradient, 1.0 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def _by_shape(params: Iterable[Tensor]) -> dict[torch.Size, list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for param in params:
        groups[param.shape].append(param)
    return groups


def orthogonal_factor(matrices: Tensor) -> Tensor:
    """U V^T of the singular value decompositions U S V^T, to about 30 %; (n, n_out, n_in)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
    a, b, c = _COEFFICIENTS
    for _ in range(_N_ITERATION):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def split_params(
    params: Iterable[nn.Parameter],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The square matrices, which are those between hidden layers, and all the rest."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for param in params:
        is_square = param.ndim == 2 and param.shape[0] == param.shape[1]
        (hidden if is_square else rest).append(param)
    return hidden, rest
