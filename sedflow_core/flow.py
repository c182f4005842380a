"""The masked autoregressive flow p(u | context), and its exact cached inverse.

Each block is a MADE (Germain et al. 2015) with three hidden layers and the affine transform
z_d = scale_d u_d + shift_d, where scale and shift depend on u_1..u_{d-1} and the context
(Papamakarios et al. 2017); a fixed permutation precedes each block. The first block takes the
parameters from last to first, and each next block in the reverse order: given all else, the mass is
little but the amplitude of the fluxes, so it is easiest taken last. Networks of sbi keep orders of
their own. Before the first block u may be whitened (`sedflow_core.whitening`).

The context enters each block as a `Modulation`: what it adds to the layers and by how much it
scales them. It is computed once per galaxy, so its network may be as large as training affords. For
one galaxy the arithmetic is that of nflows, layer by layer, so networks convert
(`sedflow_core.nflows_bridge`).

Hidden units are sorted by their MADE degree. A unit of degree d sees u_1..u_d only, so the inverse
computes every unit once, degree by degree, as products of contiguous row blocks: one pass in all
where the usual inverse makes one pass per dimension.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sedflow_core.made import (
    ACTIVATIONS,
    MADE,
    EveryLayerContext,
    FirstLayerContext,
    Modulation,
    hidden_ends,
)
from sedflow_core.whitening import Whitening
from sedflow_core.workspace import PANEL, make_workspace

EMBEDDING_WIDTH = 256
EMBEDDING_DEPTH = 2
LIMIT = 1e6
"""Of what a block's inverse gives: far outside the training set it may grow past all numbers."""
N_TOGETHER = 8
"""Galaxies that go together, in arrays of this many rows whatever their number."""


class FlowConfig(NamedTuple):
    """Size of a flow.

    Attributes:
        n_block, n_hidden: number of MADE blocks and width of their three hidden layers, of which
            nflows and the paper count the last two.
        activation: "relu", "hardswish", "silu" or "tanh".
        n_embedding: features that a network adds to the context; they modulate every layer. 0: no
            such network, and the context enters the first layer alone, as in nflows.
        n_u, n_context: dimensions of u and of the context.
        seed: of the initial weights.
        is_whitened: a line in the context is taken out of u first, see `sedflow_core.whitening`.
    """

    n_block: int
    n_hidden: int
    activation: str
    n_embedding: int = 0
    n_u: int = 11
    n_context: int = 11
    seed: int = 0
    is_whitened: bool = False


class Embedding(nn.Module):
    """The context, and features of it from a residual network: (n, n_context + n_embedding)."""

    def __init__(self, n_context: int, n_embedding: int) -> None:
        super().__init__()
        self.input_layer = nn.Linear(n_context, EMBEDDING_WIDTH)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(EMBEDDING_WIDTH, EMBEDDING_WIDTH) for _ in range(EMBEDDING_DEPTH)
        )
        self.output_layer = nn.Linear(EMBEDDING_WIDTH, n_embedding)

    def forward(self, context: Tensor) -> Tensor:
        """Embed context (n, n_context)."""
        h = self.input_layer(context)
        for layer in self.hidden_layers:
            h = h + functional.silu(layer(h))
        return torch.cat([context, self.output_layer(h)], dim=1)


def _context_layer(config: FlowConfig) -> nn.Module:
    if config.n_embedding:
        n_features = config.n_context + config.n_embedding
        return EveryLayerContext(n_features, config.n_hidden, config.n_u)
    return FirstLayerContext(config.n_context, config.n_hidden, config.n_u, config.activation)


class MaskedAutoregressiveFlow(nn.Module):
    """p(u | context): log density forward, exact cached samples backward.

    Raises:
        ValueError: the activation is not known.
    """

    n_u: int
    n_together: int
    ends: list[int]
    panel: int
    permutations: Tensor

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        if config.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {config.activation!r}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.embedding: nn.Module = (
                Embedding(config.n_context, config.n_embedding)
                if config.n_embedding
                else nn.Identity()
            )
            self.blocks = nn.ModuleList(
                MADE(config.n_u, config.n_hidden, _context_layer(config), config.activation)
                for _ in range(config.n_block)
            )
        self.whitening = Whitening(config.n_u, config.n_context) if config.is_whitened else None
        self.n_u = config.n_u
        self.n_together = N_TOGETHER
        self.ends = hidden_ends(config.n_hidden, config.n_u)
        self.panel = PANEL
        self.limit = LIMIT
        self.log_norm = 0.5 * config.n_u * math.log(2.0 * math.pi)
        reverse = torch.arange(config.n_u).flip(0)
        self.register_buffer("permutations", reverse.repeat(config.n_block, 1))

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero the masked weights for good, as `sample_u` assumes."""
        for module in self.modules():
            if isinstance(module, MADE):
                module.apply_masks()

    def forward(self, u: Tensor, context: Tensor) -> Tensor:
        """ln p(u | context), (n,), for u (n, n_u) and context (n, n_context) or (1, n_context)."""
        z, log_det = self.to_base(u, context)
        return log_det - 0.5 * z.square().sum(dim=1) - self.log_norm

    @torch.jit.export
    def to_base(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The base points z (n, n_u) of u, and ln |dz/du| (n,). Posterior samples have normal z."""
        features = self.embedding(context)
        z, log_det = u, torch.zeros_like(u[:, 0])
        if self.whitening is not None:
            z, log_det = self.whitening(u, context.expand(len(u), -1))
        for k, block in enumerate(self.blocks):
            z, block_log_det = block(z[:, self.permutations[k]], features)
            log_det = log_det + block_log_det
        return z, log_det

    @torch.jit.export
    def sample_u(self, base: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Samples u (n, n_u, n_sample) for context (n, n_context), and their ln p (n, n_sample).

        Needs `apply_masks` to have been called.

        Args:
            base: (n_u, n_sample) standard-normal points, shared by all galaxies, or
                (n, n_u, n_sample) points of their own.
            context: galaxies are sampled one at a time, and modulated in arrays of fixed shape, so
                that a galaxy's samples do not depend on its batch.
        """
        n, n_sample = context.shape[0], base.shape[-1]
        samples = base.new_empty((n, self.n_u, n_sample))
        log_prob = base.new_empty((n, n_sample))
        workspace = make_workspace(base[0] if base.dim() == 3 else base, self.ends, self.panel)
        orders = [permutation.argsort() for permutation in self.permutations]
        modulations: list[Modulation] = []
        for i in range(n):
            row = i % self.n_together
            if row == 0:
                modulations = self._modulate(context[i : i + self.n_together])
            workspace.z.copy_(base if base.dim() == 2 else base[i])
            log_prob[i] = -0.5 * workspace.z.square().sum(dim=0) - self.log_norm
            k = len(self.blocks)
            for block in self.blocks[::-1]:
                k -= 1
                block.enter(modulations[k], row, workspace)  # type: ignore[operator]
                block.invert(workspace)  # type: ignore[operator]
                log_prob[i] += workspace.scale.log().sum(dim=0)
                torch.index_select(workspace.u, 0, orders[k], out=workspace.z)
                workspace.z.clamp_(-self.limit, self.limit)
            samples[i] = workspace.z
        if self.whitening is not None:
            return self.whitening.undo(samples, log_prob, context)
        return samples, log_prob

    def _modulate(self, context: Tensor) -> list[Modulation]:
        """Of every block, for at most n_together galaxies, of which the last may repeat."""
        rows = torch.arange(self.n_together, device=context.device).clamp_max(len(context) - 1)
        features = self.embedding(context[rows])
        modulations: list[Modulation] = []
        for block in self.blocks:
            modulations.append(block.context_layer(features))  # type: ignore[operator]
        return modulations
