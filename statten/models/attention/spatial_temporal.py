"""Block-wise spatial-temporal attention (Lee et al., CVPR 2025): a pure function, and the core that puts a neuron behind it.

Counts are returned unscaled, and the scale goes into the threshold of the neuron that follows. Shapes: see core.py.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from statten.config import ModelConfig
from statten.models.attention.core import AttentionCore, exact, full_precision
from statten.models.operations import Operation
from statten.neurons import LIF
from statten.neurons.dynamics import dense_strides


def statten(
    q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, heads: int, block_size: int, pairs_T: Tensor | None = None
) -> Tensor:
    """Block-wise spatial-temporal attention without softmax (Lee et al., CVPR 2025): o = Q (K^T V) inside each block.

    The b N tokens of the b timesteps of a block attend together; a last block is shorter when b does not divide T.

    Args:
        pairs_T: the additions of K^T V are added to it: pairs of a k and a v that spike at the same token of a head.

    Returns:
        Counts [T, B, D, H, W] in float32 (float64 for float64), unscaled, in the layout of q.
    """
    T = len(q_TBDHW)
    whole = T // block_size * block_size
    with full_precision(q_TBDHW.device):  # bfloat16 would lose counts above 256
        if pairs_T is not None:
            k_TBhHW, v_TBhHW = (_of_heads(x.detach(), heads) for x in (k_TBDHW, v_TBDHW))
            pairs_T += (k_TBhHW * v_TBhHW).sum((-1, -2)).flatten(1).sum(1, dtype=torch.float64)  # exact in float32 for one head
        if whole in (0, T):
            return _attend(q_TBDHW, k_TBDHW, v_TBDHW, heads, block_size if whole else T)
        parts = (slice(None, whole), block_size), (slice(whole, None), T - whole)
        return torch.cat([_attend(q_TBDHW[at], k_TBDHW[at], v_TBDHW[at], heads, b) for at, b in parts])


def _of_heads(x_TBDHW: Tensor, heads: int) -> Tensor:
    """Spikes of each head at each token."""
    return x_TBDHW.unflatten(2, (heads, -1)).sum(3, dtype=exact(x_TBDHW))


def _attend(q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, heads: int, block_size: int) -> Tensor:
    # n = b N tokens of a block
    q_gBhnd, k_gBhnd, v_gBhnd = (_ToBlocks.apply(x, heads, block_size) for x in (q_TBDHW, k_TBDHW, v_TBDHW))
    o_gBhnd = q_gBhnd @ (k_gBhnd.transpose(-1, -2) @ v_gBhnd)
    return _FromBlocks.apply(o_gBhnd, q_TBDHW.shape, dense_strides(q_TBDHW), block_size)


def _by_blocks(x_TBDHW: Tensor, heads: int, block_size: int) -> Tensor:
    """A view [T/b, B, h, b, H, W, d] of any layout."""
    return x_TBDHW.unflatten(2, (heads, -1)).unflatten(0, (-1, block_size)).permute(0, 2, 3, 1, 5, 6, 4)


class _ToBlocks(torch.autograd.Function):
    """Spikes to [T/b, B, h, b N, d] in full precision: type and layout change in one copy, those of the gradient in one.

    Products copy what lies otherwise in memory, as maps in channels-last do, and give gradients in the default layout.
    """

    @staticmethod
    def forward(ctx: Any, x_TBDHW: Tensor, heads: int, block_size: int) -> Tensor:
        ctx.layout, ctx.sizes, ctx.dtype = (x_TBDHW.shape, dense_strides(x_TBDHW)), (heads, block_size), x_TBDHW.dtype
        view = _by_blocks(x_TBDHW, heads, block_size)
        return torch.empty(view.shape, dtype=exact(x_TBDHW), device=view.device).copy_(view).flatten(3, 5)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_TBDHW = torch.empty_strided(*ctx.layout, dtype=ctx.dtype, device=grads[0].device)
        view = _by_blocks(grad_TBDHW, *ctx.sizes)
        view.copy_(grads[0].reshape(view.shape))
        return grad_TBDHW, None, None


class _FromBlocks(torch.autograd.Function):
    """The way back, to a map of given shape and strides."""

    @staticmethod
    def forward(ctx: Any, o_gBhnd: Tensor, shape: torch.Size, strides: tuple[int, ...], block_size: int) -> Tensor:
        ctx.sizes = heads, _ = o_gBhnd.shape[2], block_size
        o_TBDHW = torch.empty_strided(shape, strides, dtype=o_gBhnd.dtype, device=o_gBhnd.device)
        view = _by_blocks(o_TBDHW, heads, block_size)
        view.copy_(o_gBhnd.reshape(view.shape))
        return o_TBDHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        view = _by_blocks(grads[0], *ctx.sizes)
        return torch.empty(view.shape, dtype=view.dtype, device=view.device).copy_(view).flatten(3, 5), None, None, None


class STAttenCore(AttentionCore):
    """Counts of `statten` through a neuron; masked by the block's own pooled input spikes where there is a mask.

    The scale, which in event mode is divided by b, divides the threshold here instead of multiplying the counts, so that the
    neuron compares whole numbers.
    """

    def __init__(self, config: ModelConfig, neuron: type[LIF], backend: str):
        super().__init__(config)
        # Whole numbers, since torch.compile does not trace a Fraction; their quotient is rounded once, as the fraction's is.
        self.inverse_scale = config.inverse_scale.as_integer_ratio()
        self.threshold, self.alpha = config.attention_threshold, config.surrogate_alpha
        self.lif = neuron(tau=config.tau, backend=backend)
        self.set_block_size(config.block_size)

    def set_block_size(self, block_size: int) -> None:
        """Change b, which owns no weights."""
        self.block_size = block_size

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, mask_TBDHW: Tensor | None) -> Tensor:
        """Spikes [T, B, D, H, W]; 0, 1 or 2 where there is a mask."""
        counts = statten(q_TBDHW, k_TBDHW, v_TBDHW, self.heads, self.block_size, self.pairs)
        b, (above, below) = min(self.block_size, len(counts)), self.inverse_scale
        if self.events:
            tail = len(counts) % b or b
            # The last, shorter block has the scale of its own length: both scales are brought to a common multiple of the
            # lengths, so that the neuron compares whole numbers still.
            common = math.lcm(b, tail)
            above *= common
            if tail != b:
                counts = torch.cat([counts[:-tail] * (common // b), counts[-tail:] * (common // tail)])
        unit = above / below
        self.lif.v_threshold, self.lif.alpha = self.threshold * unit, self.alpha / unit
        spikes = self.lif(counts).to(q_TBDHW.dtype)
        return spikes if mask_TBDHW is None else spikes * mask_TBDHW + mask_TBDHW

    @staticmethod
    def operations(config: ModelConfig, block: str, tokens: int, width: int) -> Iterator[Operation]:
        """K^T V adds where k and v both spike, Q (K^T V) where q spikes."""
        N, D, d = tokens, width, width // config.num_heads
        yield Operation(f"{block}.attn.kv", "product", f"{block}.attn.pairs", N * D * d, 0, 2 * N * D, D * d)
        yield Operation(f"{block}.attn.qkv_product", "product", f"{block}.attn.query", N * D * d, 0, N * D + D * d, N * D)

    @staticmethod
    def mixes(config: ModelConfig) -> bool:
        """Where the mask is added."""
        return config.masked

    @staticmethod
    def levels(config: ModelConfig) -> int:
        """0, 1 or 2 where the mask is added."""
        return 2 if config.masked else 1

    @staticmethod
    def operators(config: ModelConfig) -> list[str]:
        """Products of signals, and sums over the timesteps of a block."""
        needs = ["the matrix product of two signals (attention's K^T V and Q (K^T V))"]
        if config.block_size > 1 and config.attention == "statten":
            needs.append(f"a sum over timesteps (of K^T V over a block of {config.block_size})")
        return needs + ["the elementwise product of two signals (attention's mask)"] * config.masked


class SSACore(STAttenCore):
    """Spiking self-attention (Zhou et al., ICLR 2023): every timestep by itself, STAtten with b = 1."""

    def set_block_size(self, block_size: int) -> None:
        """Nothing: timesteps do not meet."""
        self.block_size = 1
