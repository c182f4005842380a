"""The inverse of the flow for many galaxies at once, in the large products that GPUs ask for.

The same arithmetic as `MaskedAutoregressiveFlow.sample_u`, degree by degree, for all galaxies in
one batched product. Each galaxy has weights of its own, its context's gains multiplied in; its
shifts are a first column of them, which a row of ones in every layer's input picks up.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sedflow_core.made import Modulation, activate_


class Layer(NamedTuple):
    """A layer of n galaxies: weight @ known.

    Attributes:
        weight: (n, n_out, 1 + n_known), masked and modulated; the shift comes first.
        known: (n, 1 + n_known, n_sample); ones, then what the layer sees.
    """

    weight: Tensor
    known: Tensor

    def product(self, rows: slice, n_known: int, out: Tensor | None = None) -> Tensor:
        """Some rows of the product with the first n_known inputs, (n, n_row, n_sample)."""
        return torch.bmm(self.weight[:, rows, : n_known + 1], self.known[:, : n_known + 1], out=out)


def sample_together(flow: Any, base: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Samples u (n, n_u, n_sample) and their ln p (n, n_sample).

    Args:
        flow: a `MaskedAutoregressiveFlow` with its masks applied, compiled or not.
        base: (n, n_u, n_sample) standard-normal points.
        context: (n, n_context).
    """
    n, n_u, n_sample = base.shape
    features = flow.embedding(context)
    log_prob = -0.5 * base.square().sum(dim=1) - flow.log_norm
    inputs = base.new_ones((n, 1 + n_u, n_sample))
    hidden = base.new_ones((3, n, 1 + flow.ends[-1], n_sample))
    z = base
    for k in reversed(range(len(flow.blocks))):
        block = flow.blocks[k]
        layers = _make_layers(block, block.context_layer(features), (inputs, *hidden))
        log_prob += _invert(block, layers, flow.ends, z)
        z = inputs[:, 1:][:, flow.permutations[k].argsort()].clamp(-flow.limit, flow.limit)
    if flow.whitening is not None:
        z, log_prob = flow.whitening.undo(z, log_prob, context)
    return z, log_prob


def _make_layers(block: Any, modulation: Modulation, known: tuple[Tensor, ...]) -> list[Layer]:
    """The three hidden layers and the output layer, for what each sees."""
    modules = (block.input_layer, block.hidden_layer_1, block.hidden_layer_2, block.output_layer)
    m, one = modulation, torch.ones_like(modulation.gain_1[:, :1])
    gains = (one, m.gain_1, m.gain_2, one)
    shifts = (m.shift_0, m.shift_1, m.shift_2, m.shift_out)
    layers = []
    for module, gain, shift, seen in zip(modules, gains, shifts, known, strict=True):
        weight = gain.unsqueeze(-1) * module.weight
        layers.append(Layer(torch.cat([(module.bias + shift).unsqueeze(-1), weight], dim=-1), seen))
    return layers


def _invert(block: Any, layers: list[Layer], ends: list[int], z: Tensor) -> Tensor:
    """Put u into the first layer's input; ln of the product of the scales (n, n_sample)."""
    log_det = torch.zeros_like(z[:, 0])
    *hidden, last = layers
    for d in range(block.n_u):
        log_scale, shift = last.product(slice(2 * d, 2 * d + 2), ends[d]).unbind(dim=1)
        scale = functional.softplus(log_scale) + block.scale_floor
        torch.div(z[:, d] - shift, scale, out=hidden[0].known[:, 1 + d])
        log_det += scale.log()
        if d + 1 < block.n_u:
            rows, seen = slice(ends[d], ends[d + 1]), (d + 1, ends[d + 1], ends[d + 1])
            for layer, above, n_known in zip(hidden, layers[1:], seen, strict=True):
                new = above.known[:, 1 + ends[d] : 1 + ends[d + 1]]
                activate_(layer.product(rows, n_known, out=new), block.activation)
    return log_det
