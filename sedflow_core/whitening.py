"""A linear regression of u on the context, taken out before the blocks of the flow see it.

The photometry fixes some directions of u to a hundredth of the prior's width, most of all the mass,
and a network that has to find them learns as slowly as the steepest of them demands. So u is fitted
by a line, and what is left of it is divided by a triangular factor of its covariance, the mass,
which is the first parameter, given all others. The log mass is linear in magnitudes and log
redshift and its prior is uniform: of the mass it is not u that is fitted but its CDF under the
prior. All of it is fitted once and then stands.
"""

import math

import torch
from torch import Tensor, nn

from sedflow_core.errors import TrainingError
from sedflow_core.observation import multiply_rows

EDGE = 0.02
"""Least distance of the fitted CDF from 0 and 1."""
LARGEST = 7.0
"""Of u, which is standard normal under the prior."""


class Whitening(nn.Module):
    """y = inverse @ ((u - center) / spread), with center and spread from the context.

    Attributes:
        weight: (n_u, n_context), bias: (n_u,) of the lines for u, and for the CDF of the first.
        inverse: (n_u, n_u) of a triangular factor of the covariance; itself upper triangular.
    """

    weight: Tensor
    bias: Tensor
    inverse: Tensor
    edge: float

    def __init__(self, n_u: int, n_context: int) -> None:
        super().__init__()
        self.edge = EDGE  # TorchScript reads attributes, not globals
        self.root = math.sqrt(2.0 * math.pi)
        self.register_buffer("weight", torch.zeros(n_u, n_context))
        self.register_buffer("bias", torch.cat([torch.full((1,), 0.5), torch.zeros(n_u - 1)]))
        self.register_buffer("inverse", torch.eye(n_u))

    @torch.no_grad()
    def fit(self, u: Tensor, context: Tensor) -> None:
        """Fit to u (n, n_u) and context (n, n_context) of a training set.

        Rows that no prior draws are left out: one of them would move the lines.

        Raises:
            TrainingError: there are too few rows.
        """
        likely = (u.abs() < LARGEST).all(dim=1)
        u, context = u[likely], context[likely]
        least = context.shape[1] + u.shape[1] + 1
        if len(u) < least:
            raise TrainingError(f"training set: expected at least {least} rows, got {len(u)}")
        u, ones = u.double(), context.new_ones((len(context), 1))
        design = torch.cat([context, ones], dim=1).double()
        fitted = torch.cat([torch.special.ndtr(u[:, :1]), u[:, 1:]], dim=1)
        line = torch.linalg.lstsq(design, fitted).solution.T
        self.weight.copy_(line[:, :-1])
        self.bias.copy_(line[:, -1])
        center, spread = self.locate(context)
        covariance = torch.cov(((u - center) / spread).double().T)
        # Flipped twice, Cholesky's lower factor is an upper one.
        factor = torch.linalg.cholesky(covariance.flip(0, 1)).flip(0, 1)
        self.inverse.copy_(torch.linalg.inv(factor))

    @torch.jit.export
    def locate(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Where u lies by the lines, and what it changes by with what they fit; (n, n_u) each."""
        line = multiply_rows(context, self.weight) + self.bias
        mass = torch.special.ndtri(line[:, :1].clamp(self.edge, 1.0 - self.edge))
        spread = torch.ones_like(line)
        spread[:, :1] = self.root * torch.exp(0.5 * mass.square())
        return torch.cat([mass, line[:, 1:]], dim=1), spread

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """y (n, n_u) of u (n, n_u), and ln |det dy/du| (n,)."""
        center, spread = self.locate(context)
        return multiply_rows((u - center) / spread, self.inverse), self._log_det(spread)

    @torch.jit.export
    def undo(self, y: Tensor, log_prob: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, n_u, n_sample) of y (n, n_u, n_sample), and ln p(u) of ln p(y) (n, n_sample)."""
        center, spread = self.locate(context)
        one = torch.eye(len(self.inverse), dtype=y.dtype, device=y.device)
        factor = torch.linalg.solve_triangular(self.inverse, one, upper=True)
        u = torch.baddbmm(center.unsqueeze(-1), spread.unsqueeze(-1) * factor, y)
        return u, log_prob + self._log_det(spread).unsqueeze(-1)

    def _log_det(self, spread: Tensor) -> Tensor:
        return self.inverse.diagonal().log().sum() - spread.log().sum(dim=1)
