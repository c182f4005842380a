"""One block of the flow: a MADE with three hidden layers, its modulation, and its inverse."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sedflow_core.workspace import PANEL, Workspace

SCALE_FLOOR = 1e-3
_SCALE_ONE = 0.5403
"""softplus(0.5403) + 1e-3 = 1: blocks start near the identity."""


ACTIVATIONS = ("relu", "hardswish", "silu", "tanh")


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

    Feature-wise linear modulation (Perez et al. 2018).

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
    panel: int
    ends: list[int]
    input_mask: Tensor
    hidden_mask: Tensor
    output_mask: Tensor

    def __init__(self, n_u: int, n_hidden: int, context_layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.n_u = n_u
        self.activation = activation
        self.scale_floor = SCALE_FLOOR  # TorchScript reads attributes, not globals
        self.panel = PANEL
        degrees = hidden_degrees(n_hidden, n_u)
        inputs = torch.arange(1, n_u + 1)
        self.ends = hidden_ends(n_hidden, n_u)
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
    def enter(self, modulation: Modulation, row: int, workspace: Workspace) -> None:
        """Put the weights and biases for one row of the modulation into the workspace.

        Needs `apply_masks` to have been called.
        """
        m = modulation
        first, second = self.input_layer, self.hidden_layer_1
        third, last = self.hidden_layer_2, self.output_layer
        weights, biases = workspace.weights, workspace.biases
        weights[0].copy_(first.weight)
        torch.mul(second.weight, m.gain_1[row].unsqueeze(1), out=weights[1])
        torch.mul(third.weight, m.gain_2[row].unsqueeze(1), out=weights[2])
        weights[3].copy_(last.weight)
        torch.add(first.bias, m.shift_0[row], out=biases[0])
        torch.add(second.bias, m.shift_1[row], out=biases[1])
        torch.add(third.bias, m.shift_2[row], out=biases[2])
        torch.add(last.bias, m.shift_out[row], out=biases[3])

    @torch.jit.export
    def invert(self, workspace: Workspace) -> None:
        """u and scales from the workspace's z, with the weights that `enter` put there."""
        z, u, scale = workspace.z_rows, workspace.u_rows, workspace.scale_rows
        first, recent = workspace.first, workspace.recent
        floor = workspace.z.new_full((), self.scale_floor)  # TorchScript would make one every time
        beta = 0  # the first panel adds to nothing
        for d in range(self.n_u):
            if d > 0 and d % self.panel == 0:
                beta = 1
                for layer in workspace.early:
                    p = d // self.panel - 1
                    torch.mm(layer.weight[p], layer.known[p], out=layer.new[p])
            recent[2].new[d].addmm_(recent[2].weight[d], recent[2].known[d], beta=beta)
            torch.add(functional.softplus(workspace.raw_scale[d]), floor, out=scale[d])
            torch.sub(z[d], workspace.shift[d], out=u[d])
            u[d].div_(scale[d])
            if d + 1 < self.n_u:
                h = first.new[d]
                torch.mm(first.weight[d], first.known[d], out=h)
                activate_(h, self.activation)
                for layer in recent[:2]:
                    h = layer.new[d].addmm_(layer.weight[d], layer.known[d], beta=beta)
                    activate_(h, self.activation)
