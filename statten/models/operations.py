"""What the energy ledger is made of: one operation of a network, with the point at which its input is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """One convolution or product of the network."""

    layer: str
    kind: str
    """conv3x3, conv1x1, ... by its kernel; depthwise7x7, ...; product and gate of spikes; linear."""
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
    """Height and width of the map that a convolution reads, where kernel or stride are above 1."""
    kernel: int = 1
    """Height and width of a convolution's kernel, padded by half of it."""
    stride: int = 1
    """A convolution's stride."""
    once: bool = False
    """Whether it is done once a sample, not at every timestep."""


def conv(
    layer: str, point: str | None, inner: int, outer: int, side: int, kernel: int = 1, stride: int = 1, levels: int = 1
) -> Operation:
    """A convolution with padding kernel // 2 over a map of `side` x `side`; the output's side is rounded up."""
    weights, positions = kernel**2 * inner * outer, (-(-side // stride)) ** 2
    counts = (weights * positions, weights, inner * side**2, outer * positions)
    return Operation(layer, f"conv{kernel}x{kernel}", point, *counts, levels, side, kernel, stride)


def depthwise(layer: str, point: str, channels: int, side: int, kernel: int) -> Operation:
    """A convolution of each channel by itself, padded by half of its kernel."""
    values = channels * side**2
    counts = (kernel**2 * values, kernel**2 * channels, values, values)
    return Operation(layer, f"depthwise{kernel}x{kernel}", point, *counts, side=side, kernel=kernel)


def conv3x3(layer: str, point: str | None, inner: int, outer: int, side: int) -> Operation:
    """A 3 x 3 convolution with padding 1 over a map of `side` x `side`."""
    return conv(layer, point, inner, outer, side, kernel=3)


def classifier(width: int, classes: int, point: str | None, once: bool = False) -> Operation:
    """The linear layer at the end."""
    return Operation("head", "linear", point, width * classes, width * classes, width, classes, once=once)
