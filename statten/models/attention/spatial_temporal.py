"""Block-wise spatial-temporal attention (Lee et al., CVPR 2025): a pure function, and the core that puts a neuron behind it.

Counts are returned unscaled, and the scale goes into the threshold of the neuron that follows. Shapes: see core.py.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from statten.config import ModelConfig
from statten.models.attention.core import AttentionCore, exact, full_precision
from statten.models.operations import Operation
from statten.neurons import LIF


def statten(
    q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, heads: int, block_size: int, pairs_T: Tensor | None = None
) -> Tensor:
    """Block-wise spatial-temporal attention without softmax (Lee et al., CVPR 2025): o = Q (K^T V) inside each block.

    The b N tokens of the b timesteps of a block attend together; a last block is shorter when b does not divide T.

    Args:
        pairs_T: the additions of K^T V are added to it: pairs of a k and a v that spike at the same token of a head.

    Returns:
        Counts [T, B, D, H, W] in float32 (float64 for float64), unscaled.
    """
    whole = len(q_TBDHW) // block_size * block_size
    with full_precision(q_TBDHW.device):  # bfloat16 would lose counts above 256
        q, k, v = (_heads(x, heads) for x in (q_TBDHW, k_TBDHW, v_TBDHW))
        kv_TBhdd = k @ v.transpose(-1, -2)  # of each timestep; a block's is their sum
        if pairs_T is not None:
            pairs_T += kv_TBhdd.detach().sum(-1).flatten(1).sum(1, dtype=torch.float64)  # rows of one head are exact in float32
        parts = [_blocks(q[:whole], kv_TBhdd[:whole], block_size)] if whole else []
        if whole < len(q):
            parts.append(_blocks(q[whole:], kv_TBhdd[whole:], len(q) - whole))
        o_TBhdN = parts[0] if len(parts) == 1 else torch.cat(parts)
    return o_TBhdN.reshape(q_TBDHW.shape)


def _heads(x_TBDHW: Tensor, heads: int) -> Tensor:
    return x_TBDHW.to(exact(x_TBDHW)).flatten(3).unflatten(2, (heads, -1))


def _blocks(q_TBhdN: Tensor, kv_TBhdd: Tensor, block_size: int) -> Tensor:
    kv_block = kv_TBhdd.unflatten(0, (-1, block_size)).sum(1, keepdim=True)
    o = kv_block.transpose(-1, -2) @ q_TBhdN.unflatten(0, (-1, block_size))
    return o.flatten(0, 1)


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
