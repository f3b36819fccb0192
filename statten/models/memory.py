"""What keeps less for the backward pass than PyTorch's own layers, at the cost of computing it again."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statten.neurons.packing import is_marked, mark


class _MaxPool(torch.autograd.Function):
    """Saves its input, which the layer before it holds anyway, and not the 64-bit index of every output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stride = stride
        return nn.functional.max_pool2d(x, 3, stride, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        window = ([3, 3], [ctx.stride] * 2, [1, 1], [1, 1], False)
        _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
        return torch.ops.aten.max_pool2d_with_indices_backward(grads[0], x, *window, indices), None


class MaxPool(nn.Module):
    """3 x 3 max-pool with padding 1 over maps [..., C, H, W]; the pooled spikes are spikes."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        backend = is_marked(x)
        pooled = _MaxPool.apply(x, self.stride)
        return pooled if backend is None else mark(pooled, backend)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """A block that keeps its input alone and runs again in the backward pass, without counting a batch twice."""
    norms = [norm for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_of(norms, before)))


@contextmanager
def _statistics_of(norms: list[nn.BatchNorm2d], before: list[dict[str, Tensor]]) -> Iterator[None]:
    """With the running statistics of before the first run, as some layers read them; those of after it come back."""
    after = [dict(norm.named_buffers()) for norm in norms]
    _set_buffers(norms, before)
    try:
        yield
    finally:
        _set_buffers(norms, after)


def _set_buffers(norms: list[nn.BatchNorm2d], buffers: list[dict[str, Tensor]]) -> None:
    for norm, named in zip(norms, buffers, strict=True):
        for name, buffer in named.items():
            setattr(norm, name, buffer)
