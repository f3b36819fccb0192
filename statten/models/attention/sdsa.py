"""Spike-driven self-attention (Yao et al., NeurIPS 2023): pure functions, and the core around them. Shapes: see core.py."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.models.attention.core import AttentionCore, exact
from statten.models.operations import Operation
from statten.neurons import LIF


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


class SDSACore(AttentionCore):
    """Spike-driven self-attention (Yao et al., NeurIPS 2023): a channel of q passes where k and v agree often enough."""

    neuron_name = "kv"

    def __init__(self, config: ModelConfig, neuron: type[LIF], backend: str):
        super().__init__(config)
        self.lif = neuron(config.attention_threshold, config.tau, config.surrogate_alpha, backend=backend)

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, mask_TBDHW: Tensor | None) -> Tensor:
        """Spikes [T, B, D, H, W]."""
        agreement = self._pool(shared_spikes(k_TBDHW, v_TBDHW)).sum((-1, -2), keepdim=True, dtype=exact(k_TBDHW))
        if self.pairs is not None:
            self.pairs += agreement.detach().flatten(1).sum(1, dtype=torch.float64)
        return self._pool(q_TBDHW * self.lif(agreement).to(q_TBDHW.dtype))

    def _pool(self, x_TBDHW: Tensor) -> Tensor:
        return pool_tokens_and_channels(x_TBDHW, self.heads) if self.events else x_TBDHW

    @staticmethod
    def operations(config: ModelConfig, block: str, tokens: int, width: int) -> Iterator[Operation]:
        """One addition for every spike that k and v share."""
        N, D = tokens, width
        yield Operation(f"{block}.attn.kv", "product", f"{block}.attn.pairs", N * D, 0, 2 * N * D, D)

    @staticmethod
    def mixes(config: ModelConfig) -> bool:
        """The projection reads the channels of q that pass."""
        return True

    @staticmethod
    def operators(config: ModelConfig) -> list[str]:
        """The products k v, and of q with the mask."""
        return ["the elementwise product of two signals (attention's mask)"]
