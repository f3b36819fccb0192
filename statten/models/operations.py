"""What the energy ledger is made of: one operation of a network, with the point at which its input is measured."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Operation:
    """One convolution or product of the network."""

    layer: str
    kind: Literal["conv3x3", "conv1x1", "product", "linear"]
    point: str | None
    """Where its input is measured (see metrics/meter.py); None: the network's own input, which is numbers."""
    flops: int
    """Multiply-accumulates of one timestep if its input were dense."""
    weights: int
    """Its parameters."""
    inputs: int
    """Values that it reads in one timestep."""
    outputs: int
    """Values that it writes in one timestep."""
    levels: int = 1
    """Largest value of its input where that counts spikes; 1 where they are spikes themselves."""
    side: int = 0
    """Height and width of the map of a 3 x 3 convolution."""


def conv3x3(layer: str, point: str | None, inner: int, outer: int, side: int) -> Operation:
    """A 3 x 3 convolution with padding 1 over a map of `side` x `side`."""
    N = side * side
    return Operation(layer, "conv3x3", point, 9 * inner * outer * N, 9 * inner * outer, inner * N, outer * N, side=side)
