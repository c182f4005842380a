"""The inverse of the flow for many galaxies at once, in the large products that GPUs ask for.

The same arithmetic as `MaskedAutoregressiveFlow.sample_u`, degree by degree. There each galaxy
multiplies its own gains into the weights; here all galaxies share the weights, their samples lie
side by side in one matrix, and gains and shifts are applied to what the product gives.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sedflow_core.made import Modulation, activate_


class HiddenLayer(NamedTuple):
    """A hidden layer: values (n_hidden, n * n_sample) = activation(gain * weight @ known + shift).

    Attributes:
        weight: (n_hidden, n_known), masked.
        gain, shift: (n_hidden, n, 1); gain is None where all are one.
        known: (n_known, n * n_sample) what the layer sees.
        values: (n_hidden, n * n_sample), filled degree by degree.
    """

    weight: Tensor
    gain: Tensor | None
    shift: Tensor
    known: Tensor
    values: Tensor


def sample_together(flow: Any, base: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Samples u (n, n_u, n_sample) and their ln p (n, n_sample).

    Args:
        flow: a `MaskedAutoregressiveFlow` with its masks applied, compiled or not.
        base: (n, n_u, n_sample) standard-normal points.
        context: (n, n_context).
    """
    features = flow.embedding(context)
    z = base.transpose(0, 1).contiguous()
    log_prob = -0.5 * z.square().sum(dim=0) - flow.log_norm
    hidden = z.new_empty((3, flow.ends[-1], z[0].numel()))
    for k in reversed(range(len(flow.blocks))):
        z = z[flow.permutations[k].argsort()]
        z, log_det = _invert(flow.blocks[k], flow.ends, z, features, hidden)
        log_prob += log_det
    return z.transpose(0, 1), log_prob


def _invert(
    block: Any, ends: list[int], z: Tensor, features: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """u (n_u, n, n_sample) of a block's z, and ln of the product of its scales (n, n_sample)."""
    modulation = block.context_layer(features)
    u, log_det = torch.empty_like(z), torch.zeros_like(z[0])
    layers = _hidden_layers(block, modulation, u.flatten(1), hidden)
    last = block.output_layer
    shift_out = (last.bias + modulation.shift_out).T.unsqueeze(-1)
    for d in range(block.n_u):
        of_d = slice(2 * d, 2 * d + 2)
        out = last.weight[of_d, : ends[d]] @ layers[-1].values[: ends[d]]
        log_scale, shift = out.view(2, *z.shape[1:]) + shift_out[of_d]
        scale = functional.softplus(log_scale) + block.scale_floor
        torch.div(z[d] - shift, scale, out=u[d])
        log_det += scale.log()
        if d + 1 < block.n_u:
            new = slice(ends[d], ends[d + 1])
            for layer, n_known in zip(layers, (d + 1, ends[d + 1], ends[d + 1]), strict=True):
                _fill(layer, new, n_known, block.activation)
    return u, log_det


def _hidden_layers(
    block: Any, modulation: Modulation, u: Tensor, hidden: Tensor
) -> list[HiddenLayer]:
    modules = (block.input_layer, block.hidden_layer_1, block.hidden_layer_2)
    gains = (None, modulation.gain_1, modulation.gain_2)
    shifts = (modulation.shift_0, modulation.shift_1, modulation.shift_2)
    return [
        HiddenLayer(
            module.weight,
            None if gain is None else gain.T.unsqueeze(-1),
            (module.bias + shift).T.unsqueeze(-1),
            known,
            values,
        )
        for module, gain, shift, known, values in zip(
            modules, gains, shifts, (u, *hidden[:2]), hidden, strict=True
        )
    ]


def _fill(layer: HiddenLayer, new: slice, n_known: int, activation: str) -> None:
    values = layer.values[new]
    torch.mm(layer.weight[new, :n_known], layer.known[:n_known], out=values)
    by_galaxy = values.view(len(values), layer.shift.shape[1], -1)
    if layer.gain is None:
        by_galaxy += layer.shift[new]
    else:
        torch.addcmul(layer.shift[new], layer.gain[new], by_galaxy, out=by_galaxy)
    activate_(by_galaxy, activation)
