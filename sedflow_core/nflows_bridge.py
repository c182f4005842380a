"""The paper's network built through sbi, and its conversion to our flow.

sbi's "maf" is a stack of nflows MADE blocks and permutations. The conversion is exact: hidden units
are only reordered by degree, masked weights dropped, and batch norm folded into the linear layer
behind it.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sedflow_core.errors import MissingExtraError
from sedflow_core.flow import FlowConfig, MaskedAutoregressiveFlow
from sedflow_core.made import MADE, FirstLayerContext


class SbiFlow(nn.Module):
    """sbi's `posterior_nn("maf")`, with the call of our flow: (u, context) -> ln q (n,).

    Args:
        config: the size; activation must be "tanh", which sbi fixes, without embedding or
            whitening.
        use_batch_norm: batch norm inside the blocks, as the paper's parameter count has.

    Raises:
        MissingExtraError: sbi is not installed.
        ValueError: sbi has no such network.
    """

    def __init__(self, config: FlowConfig, *, use_batch_norm: bool = False) -> None:
        super().__init__()
        if config.activation != "tanh" or config.n_embedding or config.is_whitened:
            raise ValueError(
                f"config: expected tanh, no embedding, no whitening for sbi's maf, got {config}"
            )
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


def degree_order(n_hidden: int, n_u: int) -> Tensor:
    """Our hidden unit i is nflows' unit order[i]."""
    return (torch.arange(n_hidden) % max(1, n_u - 1) + 1).argsort(stable=True)


@torch.no_grad()
def from_nflows(transform: Any, config: FlowConfig) -> MaskedAutoregressiveFlow:
    """Our flow from an nflows composite of MADE transforms, each followed by a permutation.

    The last permutation goes: it only renames dimensions of the standard normal.
    """
    flow = MaskedAutoregressiveFlow(config)
    steps = list(transform._transforms)
    order = degree_order(config.n_hidden, config.n_u)
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
    set_layer(block.context_layer.linear, context.weight[order], context.bias[order])
    initial, final = net.initial_layer, net.final_layer
    set_layer(block.input_layer, (initial.weight * initial.mask)[order], initial.bias[order])
    for layer, hidden in zip((block.hidden_layer_1, block.hidden_layer_2), net.blocks, strict=True):
        weight, bias = _fold_batch_norm(hidden)
        set_layer(layer, weight[order][:, order], bias[order])
    set_layer(block.output_layer, (final.weight * final.mask)[:, order], final.bias)


def _fold_batch_norm(hidden: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a masked layer with the batch norm before it folded in (evaluation)."""
    weight, bias = hidden.linear.weight * hidden.linear.mask, hidden.linear.bias
    norm = hidden.batch_norm
    if norm is None:
        return weight, bias
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * gain, bias + weight @ (norm.bias - gain * norm.running_mean)


def set_layer(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give a layer its weight and bias."""
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
