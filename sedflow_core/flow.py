"""The masked autoregressive flow p(u | context), and its exact cached inverse.

Each block is a MADE (Germain et al. 2015) with two hidden layers and the affine transform
z_d = scale_d u_d + shift_d, where scale and shift depend on u_1..u_{d-1} and the context
(Papamakarios et al. 2017); a fixed permutation follows each block. Layer by layer the arithmetic is
that of nflows, so networks convert both ways (`sedflow_core.nflows_bridge`).

Hidden units are sorted by their MADE degree. A unit of degree d sees u_1..u_d only, so the inverse
computes every unit once, degree by degree, as products of contiguous row blocks: one pass in all
where the usual inverse makes one pass per dimension.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE_FLOOR = 1e-3
_SCALE_ONE = 0.5403
"""softplus(0.5403) + 1e-3 = 1: blocks start near the identity."""


class FlowConfig(NamedTuple):
    """Size of a flow.

    Attributes:
        n_block, n_hidden: number of MADE blocks and width of their two hidden layers.
        activation: "relu", "silu" or "tanh".
        n_embedding: features that a small network adds to the context, once per galaxy; 0: none.
        n_u, n_context: dimensions of u and of the context.
        seed: of the permutations and the initial weights.
    """

    n_block: int
    n_hidden: int
    activation: str
    n_embedding: int = 0
    n_u: int = 11
    n_context: int = 11
    seed: int = 0


def activate_(x: Tensor, activation: str) -> Tensor:
    """Apply an activation by name, in place."""
    if activation == "relu":
        return x.relu_()
    if activation == "silu":
        return functional.silu(x, inplace=True)
    return x.tanh_()


def hidden_degrees(n_hidden: int, n_u: int) -> Tensor:
    """Ascending MADE degrees 1..n_u - 1 of the hidden units, as evenly as nflows deals them."""
    return (torch.arange(n_hidden) % max(1, n_u - 1) + 1).sort().values


class MADE(nn.Module):
    """One block: u (n, n_u), context (n, n_context) -> z = scale * u + shift, and ln det."""

    n_u: int
    activation: str
    scale_floor: float
    ends: list[int]
    input_mask: Tensor
    hidden_mask: Tensor
    output_mask: Tensor

    def __init__(self, n_u: int, n_hidden: int, n_context: int, activation: str) -> None:
        super().__init__()
        self.n_u = n_u
        self.activation = activation
        self.scale_floor = SCALE_FLOOR  # TorchScript reads attributes, not globals
        degrees = hidden_degrees(n_hidden, n_u)
        inputs = torch.arange(1, n_u + 1)
        # Units with degree <= d fill the rows before ends[d].
        self.ends = [int((degrees <= d).sum()) for d in range(n_u)]
        self.context_layer = nn.Linear(n_context, n_hidden)
        self.input_layer = nn.Linear(n_u, n_hidden)
        self.hidden_layer_1 = nn.Linear(n_hidden, n_hidden)
        self.hidden_layer_2 = nn.Linear(n_hidden, n_hidden)
        self.output_layer = nn.Linear(n_hidden, 2 * n_u)
        self.register_buffer("input_mask", (degrees[:, None] >= inputs).float(), persistent=False)
        self.register_buffer("hidden_mask", (degrees[:, None] >= degrees).float(), persistent=False)
        self.register_buffer(
            "output_mask",
            (inputs.repeat_interleave(2)[:, None] > degrees).float(),
            persistent=False,
        )
        with torch.no_grad():
            self.output_layer.weight.mul_(0.1)
            self.output_layer.bias.copy_(torch.tensor([_SCALE_ONE, 0.0]).repeat(n_u))

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero the masked weights for good, as the inverse assumes."""
        self.input_layer.weight.mul_(self.input_mask)
        self.hidden_layer_1.weight.mul_(self.hidden_mask)
        self.hidden_layer_2.weight.mul_(self.hidden_mask)
        self.output_layer.weight.mul_(self.output_mask)

    def context_bias(self, context: Tensor) -> Tensor:
        """What the context adds to the first hidden layer: (n, n_hidden)."""
        return activate_(self.context_layer(context), self.activation)

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, n_u) and ln |det dz/du| (n,)."""
        inputs = self.input_layer
        h = functional.linear(u, inputs.weight * self.input_mask, inputs.bias)
        h = activate_(h + self.context_bias(context), self.activation)
        layer = self.hidden_layer_1
        h = functional.linear(h, layer.weight * self.hidden_mask, layer.bias)
        h = activate_(h, self.activation)
        layer = self.hidden_layer_2
        h = functional.linear(h, layer.weight * self.hidden_mask, layer.bias)
        h = activate_(h, self.activation)
        layer = self.output_layer
        out = functional.linear(h, layer.weight * self.output_mask, layer.bias)
        out = out.view(u.shape[0], self.n_u, 2)
        scale = functional.softplus(out[:, :, 0]) + self.scale_floor
        return scale * u + out[:, :, 1], scale.log().sum(dim=1)

    @torch.jit.export
    def invert(self, z: Tensor, context: Tensor) -> Tensor:
        """u (n_u, n_sample) from z (n_u, n_sample), for one galaxy's context (1, n_context).

        Needs `apply_masks` to have been called.
        """
        n_sample = z.shape[1]
        n_hidden = self.ends[-1]
        bias_0 = (self.input_layer.bias + self.context_bias(context)[0])[:, None]
        bias_1 = self.hidden_layer_1.bias[:, None]
        bias_2 = self.hidden_layer_2.bias[:, None]
        bias_out = self.output_layer.bias[:, None]
        w_0, w_1 = self.input_layer.weight, self.hidden_layer_1.weight
        w_2, w_out = self.hidden_layer_2.weight, self.output_layer.weight
        u = torch.empty_like(z)
        h_0 = z.new_empty((n_hidden, n_sample))
        h_1, h_2 = torch.empty_like(h_0), torch.empty_like(h_0)
        for d in range(self.n_u):
            known = self.ends[d]
            rows = slice(2 * d, 2 * d + 2)
            out = torch.addmm(bias_out[rows], w_out[rows, :known], h_2[:known])
            scale = functional.softplus(out[0]) + self.scale_floor
            torch.div(z[d] - out[1], scale, out=u[d])
            if d + 1 < self.n_u:
                new = slice(known, self.ends[d + 1])
                end = self.ends[d + 1]
                torch.addmm(bias_0[new], w_0[new, : d + 1], u[: d + 1], out=h_0[new])
                activate_(h_0[new], self.activation)
                torch.addmm(bias_1[new], w_1[new, :end], h_0[:end], out=h_1[new])
                activate_(h_1[new], self.activation)
                torch.addmm(bias_2[new], w_2[new, :end], h_1[:end], out=h_2[new])
                activate_(h_2[new], self.activation)
        return u


class Embedding(nn.Module):
    """The context, and features of it from a small network: (n, n_context + n_embedding)."""

    def __init__(self, n_context: int, n_embedding: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(n_context, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, n_embedding),
        )

    def forward(self, context: Tensor) -> Tensor:
        """Embed context (n, n_context)."""
        return torch.cat([context, self.network(context)], dim=1)


class MaskedAutoregressiveFlow(nn.Module):
    """p(u | context): log density forward, exact cached samples backward."""

    n_u: int
    permutations: Tensor

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            n_features = config.n_context + config.n_embedding
            self.embedding: nn.Module = (
                Embedding(config.n_context, config.n_embedding)
                if config.n_embedding
                else nn.Identity()
            )
            self.blocks = nn.ModuleList(
                MADE(config.n_u, config.n_hidden, n_features, config.activation)
                for _ in range(config.n_block)
            )
            permutations = [torch.randperm(config.n_u) for _ in range(config.n_block)]
        self.n_u = config.n_u
        self.log_norm = 0.5 * config.n_u * math.log(2.0 * math.pi)
        self.register_buffer("permutations", torch.stack(permutations))

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero the masked weights for good, as `sample_u` assumes."""
        for module in self.modules():
            if isinstance(module, MADE):
                module.apply_masks()

    def forward(self, u: Tensor, context: Tensor) -> Tensor:
        """ln p(u | context), (n,), for u (n, n_u) and context (n, n_context)."""
        features = self.embedding(context)
        log_det = torch.zeros_like(u[:, 0])
        for k, block in enumerate(self.blocks):
            u, block_log_det = block(u, features)
            u = u[:, self.permutations[k]]
            log_det = log_det + block_log_det
        return log_det - 0.5 * u.square().sum(dim=1) - self.log_norm

    @torch.jit.export
    def sample_u(self, base: Tensor, context: Tensor) -> Tensor:
        """Samples u (n, n_u, n_sample) for context (n, n_context).

        Args:
            base: (n_u, n_sample) standard-normal points, shared by all galaxies, or
                (n, n_u, n_sample) points of their own.
            context: galaxies are treated one at a time, in arrays of fixed shape, so that a
                galaxy's samples do not depend on its batch.
        """
        n = context.shape[0]
        samples = base.new_empty((n, self.n_u, base.shape[-1]))
        for i in range(n):
            features = self.embedding(context[i : i + 1].clone())
            z = base if base.dim() == 2 else base[i]
            k = len(self.blocks)
            for block in self.blocks[::-1]:
                k -= 1
                z = z[self.permutations[k].argsort()]
                z = block.invert(z, features)  # type: ignore[operator]
            samples[i] = z
        return samples


def count_parameters(flow: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in flow.parameters() if p.requires_grad)
