"""The gradients of a batch's mean loss, by a thread for each part of the batch.

Threads that share each matrix product instead wait for each other in each of them.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from sedflow_core.batches import Batch


class Gradients:
    """Sets the gradients of a flow's parameters.

    Args:
        flow: maps (u, context) to ln q.
        device: where it lies; on a CPU there are as many threads as torch has.
    """

    def __init__(self, flow: nn.Module, device: torch.device) -> None:
        self._flow = flow
        self._params = list(flow.parameters())
        self._device = device.type
        self._n_thread = torch.get_num_threads() if self._device == "cpu" else 1
        self._threads = ThreadPoolExecutor(
            self._n_thread, initializer=torch.set_num_threads, initargs=(1,)
        )

    def precision(self, is_coarse: bool) -> torch.autocast:
        """Products in bfloat16, or as they are."""
        return torch.autocast(self._device, torch.bfloat16, enabled=is_coarse)

    def set_for(self, batch: Batch, is_coarse: bool) -> Tensor:
        """Set the gradients of the batch's mean loss -ln q, which is returned."""

        def differentiate(part: tuple[Tensor, Tensor]) -> list[Tensor]:
            with self.precision(is_coarse):
                loss = -self._flow(*part).sum() / len(batch.u)
            return [loss.detach(), *torch.autograd.grad(loss, self._params)]

        n_part = min(self._n_thread, len(batch.u))
        parts = zip(*(t.tensor_split(n_part) for t in batch), strict=True)
        terms = zip(*self._threads.map(differentiate, parts), strict=True)
        loss: Tensor
        loss, *grads = (functools.reduce(torch.add, term) for term in terms)
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        return loss
