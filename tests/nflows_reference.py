"""Our flow as an nflows transform, for one galaxy: an implementation that is not ours."""

from typing import Any

import torch
from torch import Tensor

from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.made import MADE, Modulation
from sedflow_core.nflows_bridge import degree_order, set_layer
from sedflow_core.whitening import Whitening


@torch.no_grad()
def to_nflows(flow: MaskedAutoregressiveFlow, config: FlowConfig, context: Tensor) -> Any:
    """An nflows transform with the arithmetic of our flow for one galaxy's context (1, n_context).

    Against it the cached inverse is checked and timed.
    """
    from nflows import transforms
    from torch.nn import functional

    activation = {
        "tanh": torch.tanh,
        "relu": functional.relu,
        "silu": functional.silu,
        "hardswish": functional.hardswish,
    }
    # In an array of the inverse's shape: another shape would round otherwise.
    features = flow.embedding(context.expand(flow.n_together, -1))
    steps = [] if flow.whitening is None else [_whitening_step(flow.whitening, context)]
    inverse = degree_order(config.n_hidden, config.n_u).argsort()
    for k, block in enumerate(flow.blocks):
        assert isinstance(block, MADE)
        step = transforms.MaskedAffineAutoregressiveTransform(
            features=config.n_u,
            hidden_features=config.n_hidden,
            num_blocks=2,
            use_residual_blocks=False,
            activation=activation[config.activation],
        ).to(context)
        _fill_nflows(step.autoregressive_net, _layers(block, features), inverse)
        steps += [transforms.Permutation(flow.permutations[k]), step]
    return transforms.CompositeTransform(steps).to(flow.permutations.device)


def _whitening_step(whitening: Whitening, context: Tensor) -> Any:
    """The whitening for one galaxy, which is linear."""
    from nflows import transforms

    center, spread = whitening.locate(context)
    weight = whitening.inverse / spread
    step = transforms.NaiveLinear(len(weight), False, using_cache=True).to(context).eval()
    step.bias.copy_(-weight @ center[0])
    # nflows would fill its cache by solvers that torch no longer has.
    step.cache.weight, step.cache.inverse = weight, torch.linalg.inv(weight)
    step.cache.logabsdet = torch.linalg.slogdet(weight).logabsdet
    return step


def _layers(block: MADE, features: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the four layers, with one galaxy's modulation folded in."""
    m = Modulation(*(values[:1] for values in block.context_layer(features)))
    first, second = block.input_layer, block.hidden_layer_1
    third, last = block.hidden_layer_2, block.output_layer
    return [
        (first.weight, first.bias + m.shift_0[0]),
        (m.gain_1.T * second.weight, second.bias + m.shift_1[0]),
        (m.gain_2.T * third.weight, third.bias + m.shift_2[0]),
        (last.weight, last.bias + m.shift_out[0]),
    ]


def _fill_nflows(net: Any, layers: list[tuple[Tensor, Tensor]], inverse: Tensor) -> None:
    first, *hidden, last = layers
    set_layer(net.initial_layer, first[0][inverse], first[1][inverse])
    for block, (weight, bias) in zip(net.blocks, hidden, strict=True):
        set_layer(block.linear, weight[inverse][:, inverse], bias[inverse])
    set_layer(net.final_layer, last[0][:, inverse], last[1])
