"""The paper's network built through sbi, and conversion between nflows and our flow.

sbi's "maf" is a stack of nflows MADE blocks and permutations. Both directions are exact: hidden
units are only reordered by degree, masked weights dropped, and batch norm folded into the linear
layer behind it.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sedflow_core.errors import MissingExtraError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.made import MADE, FirstLayerContext, Modulation
from sedflow_core.whitening import Whitening


class SbiFlow(nn.Module):
    """sbi's `posterior_nn("maf")`, with the call of our flow: (u, context) -> ln q (n,).

    Args:
        config: the size; activation must be "tanh", which sbi fixes, and n_embedding 0.
        use_batch_norm: batch norm inside the blocks, as the paper's parameter count has.

    Raises:
        MissingExtraError: sbi is not installed.
    """

    def __init__(self, config: FlowConfig, *, use_batch_norm: bool = False) -> None:
        super().__init__()
        if config.activation != "tanh" or config.n_embedding:
            raise ValueError(f"config: expected tanh and no embedding for sbi's maf, got {config}")
        self.config = config
        self.estimator = _build_maf(config, use_batch_norm)

    def forward(self, u: Tensor, context: Tensor) -> Tensor:
        """ln q(u | context), (n,)."""
        log_prob: Tensor = self.estimator.log_prob(u[None], context)
        return log_prob[0]

    def to_flow(self) -> MaskedAutoregressiveFlow:
        """The same density as our flow, for the artifact."""
        return from_nflows(self.estimator.net._transform, self.config)


def _build_maf(config: FlowConfig, use_batch_norm: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sbi's imports warn about their own dependencies
            from sbi.neural_nets import posterior_nn
    except ImportError as error:
        raise MissingExtraError("sbi", "train") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        build = posterior_nn(
            "maf",
            z_score_theta="none",
            z_score_x="none",
            hidden_features=config.n_hidden,
            num_transforms=config.n_block,
            use_batch_norm=use_batch_norm,
        )
        return build(torch.zeros(2, config.n_u), torch.zeros(2, config.n_context))


def _degree_order(n_hidden: int, n_u: int) -> Tensor:
    """Our hidden unit i is nflows' unit order[i]."""
    return (torch.arange(n_hidden) % max(1, n_u - 1) + 1).argsort(stable=True)


@torch.no_grad()
def from_nflows(transform: Any, config: FlowConfig) -> MaskedAutoregressiveFlow:
    """Our flow from an nflows composite of MADE transforms, each followed by a permutation.

    The last permutation goes: it only renames dimensions of the standard normal.
    """
    flow = MaskedAutoregressiveFlow(config._replace(n_embedding=0))
    steps = list(transform._transforms)
    order = _degree_order(config.n_hidden, config.n_u)
    for step, block in zip(steps[::2], flow.blocks, strict=True):
        _copy_made(step.autoregressive_net, block, order)
    before = [torch.arange(config.n_u), *(step._permutation for step in steps[1:-1:2])]
    flow.permutations.copy_(torch.stack(before))
    flow.apply_masks()
    return flow.eval()


def _copy_made(net: Any, block: nn.Module, order: Tensor) -> None:
    assert isinstance(block, MADE)
    assert isinstance(block.context_layer, FirstLayerContext)
    context = net.context_layer
    _set(block.context_layer.linear, context.weight[order], context.bias[order])
    initial, final = net.initial_layer, net.final_layer
    _set(block.input_layer, (initial.weight * initial.mask)[order], initial.bias[order])
    for layer, hidden in zip((block.hidden_layer_1, block.hidden_layer_2), net.blocks, strict=True):
        weight, bias = _fold_batch_norm(hidden)
        _set(layer, weight[order][:, order], bias[order])
    _set(block.output_layer, (final.weight * final.mask)[:, order], final.bias)


def _fold_batch_norm(hidden: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a masked layer with the batch norm before it folded in (evaluation)."""
    weight, bias = hidden.linear.weight * hidden.linear.mask, hidden.linear.bias
    norm = hidden.batch_norm
    if norm is None:
        return weight, bias
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * gain, bias + weight @ (norm.bias - gain * norm.running_mean)


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


@torch.no_grad()
def to_nflows(flow: MaskedAutoregressiveFlow, config: FlowConfig, context: Tensor) -> Any:
    """An nflows transform with the arithmetic of our flow for one galaxy's context (1, n_context).

    Used to check the cached inverse against an independent implementation.
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
    inverse = _degree_order(config.n_hidden, config.n_u).argsort()
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
    _set(net.initial_layer, first[0][inverse], first[1][inverse])
    for block, (weight, bias) in zip(net.blocks, hidden, strict=True):
        _set(block.linear, weight[inverse][:, inverse], bias[inverse])
    _set(net.final_layer, last[0][:, inverse], last[1])
