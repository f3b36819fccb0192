"""What an attention mode is: a core between the q, k and v of a block and its projection. Shapes:

    T timesteps   b block size   B batch   D embedding   h heads   d = D/h   H, W token grid   N = H W tokens

A mode is one file with a subclass of `AttentionCore`, and one line of `statten.registry`. q, k and v are spikes
[T, B, D, H, W]: in [T, B, h, d, N], which is a view of that, every product is a plain matrix product, so nothing is permuted or
copied. Products of spikes are whole numbers, and sums of them are exact in float32 up to 2^24, whatever the order.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from statten.config import ModelConfig
from statten.models.memory import MaxPool
from statten.models.operations import Operation
from statten.neurons import LIF


class AttentionCore(nn.Module):
    """One attention mode: spikes q, k, v to the spikes that the projection reads, and what the energy ledger counts of it.

    A subclass takes (config, neuron, backend), where neuron is LIF or PLIF, and makes its neuron `lif`.
    """

    neuron_name = "out"
    """Its neuron's layer is blocks.I.attn.<neuron_name>."""
    lif: LIF

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.events = config.num_heads, config.events
        self.pairs: Tensor | None = None
        """A float64 tensor [T] that every forward adds the additions of its first product to, or None."""

    def set_block_size(self, block_size: int) -> None:
        """Change b, which owns no weights; nothing where timesteps do not meet."""

    def forward(self, q_TBDHW: Tensor, k_TBDHW: Tensor, v_TBDHW: Tensor, mask_TBDHW: Tensor | None) -> Tensor:
        """Spikes [T, B, D, H, W]; the mask, the block's pooled input spikes, is there where a backbone masks event clips."""
        raise NotImplementedError

    @staticmethod
    def operations(config: ModelConfig, block: str, tokens: int, width: int) -> Iterator[Operation]:
        """Its products in one timestep, in the order of the forward pass.

        Args:
            config: the network.
            block: name that layers and points begin with, such as blocks.0.
            tokens: N.
            width: D of the block.
        """
        yield from ()

    @staticmethod
    def mixes(config: ModelConfig) -> bool:
        """Whether the projection reads something else than the spikes of this core's neuron."""
        return False

    @staticmethod
    def levels(config: ModelConfig) -> int:
        """Largest value that the projection reads."""
        return 1

    @staticmethod
    def operators(config: ModelConfig) -> list[str]:
        """What it needs beside convolutions, neurons and sums, in words: exporters may lack it."""
        return []


def full_precision(device: torch.device) -> Any:
    # The meta device, on which memory is estimated, knows no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class FramePool(MaxPool):
    """3 x 3 max-pool, stride 1, over each frame of [T, B, D, H, W]: event mode spreads spikes to their neighbours."""

    def __init__(self) -> None:
        super().__init__(stride=1)

    def forward(self, x_TBDHW: Tensor) -> Tensor:
        return super().forward(x_TBDHW.flatten(0, 1)).unflatten(0, x_TBDHW.shape[:2])
