"""Attention between spikes: pure functions, and the small modules that put neurons around them. Shapes:

    T timesteps   b block size   B batch   D embedding   h heads   d = D/h   H, W token grid   N = H W tokens

q, k and v are spikes [T, B, D, H, W]: in [T, B, h, d, N], which is a view of that, every product below is a plain matrix
product, so nothing is permuted or copied. Products of spikes are whole numbers, and sums of them are exact in float32 up to
2^24, whatever the order: they are returned unscaled, and the scale goes into the threshold of the neuron that follows.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.models.memory import MaxPool
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
    with _full_precision(q_TBDHW.device):  # bfloat16 would lose counts above 256
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
    return x_TBDHW.to(_exact(x_TBDHW)).flatten(3).unflatten(2, (heads, -1))


def _blocks(q_TBhdN: Tensor, kv_TBhdd: Tensor, block_size: int) -> Tensor:
    kv_block = kv_TBhdd.unflatten(0, (-1, block_size)).sum(1, keepdim=True)
    o = kv_block.transpose(-1, -2) @ q_TBhdN.unflatten(0, (-1, block_size))
    return o.flatten(0, 1)


def shared_spikes(k_TBDHW: Tensor, v_TBDHW: Tensor) -> Tensor:
    """Spike-driven self-attention (Yao et al., NeurIPS 2023), first half: where k and v spike together, [T, B, D, H, W]."""
    return k_TBDHW * v_TBDHW


def pool_tokens_and_channels(x_TBDHW: Tensor, heads: int) -> Tensor:
    """3 x 3 max-pool, stride 1, over the plane of tokens and channels of each head.

    In event mode the published SDSA pools its products in their [N, d] layout: a spike spreads to the tokens next to it in
    reading order and to its neighbours among the head's channels, not to the tokens above and below.
    """
    x_TBhNd = x_TBDHW.flatten(3).unflatten(2, (heads, -1)).transpose(-1, -2)
    # In this layout and no other: among equal spikes the gradient goes to the first, and the layout says which that is.
    pooled = nn.functional.max_pool2d(x_TBhNd.flatten(0, 2), 3, stride=1, padding=1)
    return pooled.unflatten(0, x_TBhNd.shape[:3]).transpose(-1, -2).reshape(x_TBDHW.shape)


def _full_precision(device: torch.device) -> Any:
    # The meta device, on which memory is estimated, knows no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class FramePool(MaxPool):
    """3 x 3 max-pool, stride 1, over each frame of [T, B, D, H, W]: event mode spreads spikes to their neighbours."""

    def __init__(self) -> None:
        super().__init__(stride=1)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        return super().forward(x_TBDHW.flatten(0, 1)).unflatten(0, x_TBDHW.shape[:2])


class STAttenCore(nn.Module):
    """Counts of `statten` through a neuron; in event mode masked by the block's own pooled input spikes.

    The published scale is 1/H of the token grid, or 1/(H^2 b) in event mode. It multiplies the threshold here instead of the
    counts, so that the neuron compares whole numbers.
    """

    neuron_name = "out"

    def __init__(self, config: ModelConfig, neuron: type[LIF], backend: str):
        super().__init__()
        self.heads, self.events, self.side = config.num_heads, config.events, config.tokens_per_side
        self.threshold, self.alpha = config.attention_threshold, config.surrogate_alpha
        self.lif = neuron(tau=config.tau, backend=backend)
        self.pairs: Tensor | None = None
        """A float64 tensor [T] that every forward adds the additions of K^T V to, or None."""
        self.set_block_size(config.block_size)

    def set_block_size(self, block_size: int) -> None:
        """Change b, which owns no weights."""
        self.block_size = block_size

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, mask_TBDHW: Tensor | None) -> Tensor:
        """Spikes [T, B, D, H, W]; 0, 1 or 2 in event mode."""
        counts = statten(q_TBDHW, k_TBDHW, v_TBDHW, self.heads, self.block_size, self.pairs)
        b, unit = min(self.block_size, len(counts)), self.side
        if self.events:
            tail = len(counts) % b or b
            # The last, shorter block has the scale of its own length: both scales are brought to a common multiple of the
            # lengths, so that the neuron compares whole numbers still.
            common = math.lcm(b, tail)
            unit = self.side**2 * common
            if tail != b:
                counts = torch.cat([counts[:-tail] * (common // b), counts[-tail:] * (common // tail)])
        self.lif.v_threshold, self.lif.alpha = self.threshold * unit, self.alpha / unit
        spikes = self.lif(counts).to(q_TBDHW.dtype)
        return spikes if mask_TBDHW is None else spikes * mask_TBDHW + mask_TBDHW


class SDSACore(nn.Module):
    """Spike-driven self-attention (Yao et al., NeurIPS 2023): a channel of q passes where k and v agree often enough."""

    neuron_name = "kv"

    def __init__(self, config: ModelConfig, neuron: type[LIF], backend: str):
        super().__init__()
        self.heads, self.events = config.num_heads, config.events
        self.lif = neuron(config.attention_threshold, config.tau, config.surrogate_alpha, backend=backend)
        self.pairs: Tensor | None = None
        """A float64 tensor [T] that every forward adds the spikes that k and v share to, or None."""

    def set_block_size(self, block_size: int) -> None:
        """Timesteps do not meet here, so that b has no effect."""

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, mask_TBDHW: Tensor | None) -> Tensor:
        """Spikes [T, B, D, H, W]."""
        agreement = self._pool(shared_spikes(k_TBDHW, v_TBDHW)).sum((-1, -2), keepdim=True, dtype=_exact(k_TBDHW))
        if self.pairs is not None:
            self.pairs += agreement.detach().flatten(1).sum(1, dtype=torch.float64)
        return self._pool(q_TBDHW * self.lif(agreement).to(q_TBDHW.dtype))

    def _pool(self, x_TBDHW: Tensor) -> Tensor:
        return pool_tokens_and_channels(x_TBDHW, self.heads) if self.events else x_TBDHW


ATTENTION: dict[str, type[STAttenCore] | type[SDSACore]] = {"statten": STAttenCore, "sdsa": SDSACore}
