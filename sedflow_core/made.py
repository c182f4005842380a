"""One block of the flow: a MADE with two hidden layers, its modulation, and its inverse."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALE_FLOOR = 1e-3
_SCALE_ONE = 0.5403
"""softplus(0.5403) + 1e-3 = 1: blocks start near the identity."""


def activate_(x: Tensor, activation: str) -> Tensor:
    """Apply an activation by name, in place."""
    if activation == "relu":
        return x.relu_()
    if activation == "hardswish":
        return functional.hardswish(x, inplace=True)
    if activation == "silu":
        return functional.silu(x, inplace=True)
    return x.tanh_()


def hidden_degrees(n_hidden: int, n_u: int) -> Tensor:
    """Ascending MADE degrees 1..n_u - 1 of the hidden units, as evenly as nflows deals them."""
    return (torch.arange(n_hidden) % max(1, n_u - 1) + 1).sort().values


def hidden_ends(n_hidden: int, n_u: int) -> list[int]:
    """Hidden units of degree <= d fill the rows before ends[d], d = 0..n_u - 1."""
    degrees = hidden_degrees(n_hidden, n_u)
    return [int((degrees <= d).sum()) for d in range(n_u)]


class Modulation(NamedTuple):
    """What the context does to a block's layers: gain * (weight @ h) + bias + shift.

    Attributes:
        shift_0, shift_1, shift_2: (n, n_hidden) of the three hidden layers.
        gain_1, gain_2: (n, n_hidden) of the second and third.
        shift_out: (n, 2 n_u) of the output layer.
    """

    shift_0: Tensor
    shift_1: Tensor
    shift_2: Tensor
    gain_1: Tensor
    gain_2: Tensor
    shift_out: Tensor


class FirstLayerContext(nn.Module):
    """The context of nflows: an activated linear layer added to the first hidden layer."""

    def __init__(self, n_context: int, n_hidden: int, n_u: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.n_out = 2 * n_u
        self.linear = nn.Linear(n_context, n_hidden)

    def forward(self, context: Tensor) -> Modulation:
        """The modulation of n galaxies; context (n, n_context)."""
        shift = activate_(self.linear(context), self.activation)
        zero, one = torch.zeros_like(shift), torch.ones_like(shift)
        return Modulation(shift, zero, zero, one, one, shift.new_zeros((len(shift), self.n_out)))


class EveryLayerContext(nn.Module):
    """A linear layer from the context's features to the shifts and gains of all layers."""

    def __init__(self, n_context: int, n_hidden: int, n_u: int) -> None:
        super().__init__()
        self.sizes = [n_hidden] * 5 + [2 * n_u]
        self.linear = nn.Linear(n_context, sum(self.sizes))
        with torch.no_grad():
            self.linear.weight[n_hidden:].mul_(0.3)
            self.linear.bias[n_hidden:].zero_()

    def forward(self, context: Tensor) -> Modulation:
        """The modulation of n galaxies; context (n, n_context)."""
        shift_0, shift_1, shift_2, gain_1, gain_2, shift_out = self.linear(context).split(
            self.sizes, dim=1
        )
        return Modulation(shift_0, shift_1, shift_2, gain_1 + 1.0, gain_2 + 1.0, shift_out)


class WeightBlocks(NamedTuple):
    """The weights of a MADE that its masks leave, by degree.

    Attributes:
        first, second, third: of each hidden layer, for the units of degree d + 1:
            (n_unit, d + 1) and twice (n_unit, n_unit_up_to_that_degree).
        out: for dimension d: (2, n_unit_up_to_degree_d).
    """

    first: list[Tensor]
    second: list[Tensor]
    third: list[Tensor]
    out: list[Tensor]


class Buffers(NamedTuple):
    """Where the inverse keeps u and the hidden layers of one block, and the views it works on.

    Attributes:
        u: (n_u, n_sample); u_rows: its rows; known_u: its first 1, 2, .. rows.
        scale: (n_u, n_sample) scales of dz = scale du; scale_rows: its rows.
        out: (2, n_sample) of the output layer, for one dimension of u.
        new_0, new_1, new_2: of each hidden layer, the rows of the units of each degree.
        known_0, known_1, known_2: the rows of the units up to each degree, from degree 0 on.
    """

    u: Tensor
    u_rows: list[Tensor]
    known_u: list[Tensor]
    scale: Tensor
    scale_rows: list[Tensor]
    out: Tensor
    new_0: list[Tensor]
    new_1: list[Tensor]
    new_2: list[Tensor]
    known_0: list[Tensor]
    known_1: list[Tensor]
    known_2: list[Tensor]


def make_buffers(like: Tensor, ends: list[int]) -> Buffers:
    """Buffers for base points `like` (n_u, n_sample); `ends` as `hidden_ends` gives them."""
    n_u, n_sample = like.shape
    u, scale = torch.empty_like(like), torch.empty_like(like)
    hidden = like.new_empty((3, ends[-1], n_sample))
    sizes = [ends[d + 1] - ends[d] for d in range(n_u - 1)]
    return Buffers(
        u,
        list(u.unbind()),
        [u[: d + 1] for d in range(n_u)],
        scale,
        list(scale.unbind()),
        like.new_empty((2, n_sample)),
        list(hidden[0].split(sizes)),
        list(hidden[1].split(sizes)),
        list(hidden[2].split(sizes)),
        [hidden[0, :end] for end in ends],
        [hidden[1, :end] for end in ends],
        [hidden[2, :end] for end in ends],
    )


class MADE(nn.Module):
    """One block: u (n, n_u) -> z = scale * u + shift, and ln det, for n galaxies' contexts.

    Args:
        n_u, n_hidden: dimensions of u, and width of the hidden layers.
        context_layer: context (n, n_context) -> `Modulation`.
        activation: by name, see `FlowConfig`.
    """

    n_u: int
    activation: str
    scale_floor: float
    ends: list[int]
    sizes: list[int]
    input_mask: Tensor
    hidden_mask: Tensor
    output_mask: Tensor

    def __init__(self, n_u: int, n_hidden: int, context_layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.n_u = n_u
        self.activation = activation
        self.scale_floor = SCALE_FLOOR  # TorchScript reads attributes, not globals
        degrees = hidden_degrees(n_hidden, n_u)
        inputs = torch.arange(1, n_u + 1)
        self.ends = hidden_ends(n_hidden, n_u)
        self.sizes = [end - start for start, end in itertools.pairwise(self.ends)]
        self.context_layer = context_layer
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

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, n_u) and ln |det dz/du| (n,)."""
        m: Modulation = self.context_layer(context)
        layer = self.input_layer
        h = functional.linear(u, layer.weight * self.input_mask, layer.bias) + m.shift_0
        h = activate_(h, self.activation)
        layer = self.hidden_layer_1
        h = functional.linear(h, layer.weight * self.hidden_mask)
        h = activate_(torch.addcmul(m.shift_1 + layer.bias, m.gain_1, h), self.activation)
        layer = self.hidden_layer_2
        h = functional.linear(h, layer.weight * self.hidden_mask)
        h = activate_(torch.addcmul(m.shift_2 + layer.bias, m.gain_2, h), self.activation)
        layer = self.output_layer
        out = functional.linear(h, layer.weight * self.output_mask, layer.bias) + m.shift_out
        out = out.view(u.shape[0], self.n_u, 2)
        scale = functional.softplus(out[:, :, 0]) + self.scale_floor
        return scale * u + out[:, :, 1], scale.log().sum(dim=1)

    @torch.jit.export
    def weight_blocks(self) -> WeightBlocks:
        """The parts of the masked weights that are not zero.

        Needs `apply_masks` to have been called.
        """
        first = self.input_layer.weight.split(self.sizes)
        second = self.hidden_layer_1.weight.split(self.sizes)
        third = self.hidden_layer_2.weight.split(self.sizes)
        last = self.output_layer.weight.split(2)
        return WeightBlocks(
            [rows[:, : d + 1] for d, rows in enumerate(first)],
            [rows[:, : self.ends[d + 1]] for d, rows in enumerate(second)],
            [rows[:, : self.ends[d + 1]] for d, rows in enumerate(third)],
            [rows[:, : self.ends[d]] for d, rows in enumerate(last)],
        )

    @torch.jit.export
    def invert(self, z: Tensor, context: Tensor, weights: WeightBlocks, buffers: Buffers) -> Tensor:
        """u (n_u, n_sample) from z (n_u, n_sample), for one galaxy's context (1, n_context).

        The result lies in the buffers, and so do the scales.
        """
        m: Modulation = self.context_layer(context)
        bias_0 = (self.input_layer.bias + m.shift_0).t().split(self.sizes)
        bias_1 = (self.hidden_layer_1.bias + m.shift_1).t().split(self.sizes)
        bias_2 = (self.hidden_layer_2.bias + m.shift_2).t().split(self.sizes)
        bias_out = (self.output_layer.bias + m.shift_out).t().split(2)
        gain_1, gain_2 = m.gain_1.t().split(self.sizes), m.gain_2.t().split(self.sizes)
        z_rows, out = z.unbind(), buffers.out
        raw_scale, shift = out.unbind()
        floor = z.new_full((), self.scale_floor)  # TorchScript would make one at every addition
        for d in range(self.n_u):
            torch.addmm(bias_out[d], weights.out[d], buffers.known_2[d], out=out)
            scale = torch.add(functional.softplus(raw_scale), floor, out=buffers.scale_rows[d])
            torch.div(z_rows[d] - shift, scale, out=buffers.u_rows[d])
            if d + 1 < self.n_u:
                h_0, h_1, h_2 = buffers.new_0[d], buffers.new_1[d], buffers.new_2[d]
                torch.addmm(bias_0[d], weights.first[d], buffers.known_u[d], out=h_0)
                activate_(h_0, self.activation)
                weight = weights.second[d] * gain_1[d]
                torch.addmm(bias_1[d], weight, buffers.known_0[d + 1], out=h_1)
                activate_(h_1, self.activation)
                weight = weights.third[d] * gain_2[d]
                torch.addmm(bias_2[d], weight, buffers.known_1[d + 1], out=h_2)
                activate_(h_2, self.activation)
        return buffers.u
