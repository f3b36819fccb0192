"""What all neuron backends share: the constants of a neuron, the interface, and how a sequence lies in memory."""

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MAX_TIMESTEPS = 64


class Dynamics(NamedTuple):
    """The constants of a leaky integrate-and-fire neuron; its time constant may be learned and is passed apart."""

    v_threshold: float = 1.0
    """Firing threshold."""
    v_reset: float | None = 0.0
    """Membrane potential at the start and after a spike; None is the soft reset: start at 0, subtract the threshold."""
    alpha: float = 4.0
    """Steepness of the sigmoid surrogate gradient."""
    detach_reset: bool = True
    """Whether the reset is left out of the gradient."""

    @property
    def rest(self) -> float:
        """Membrane potential at the start, to which it leaks."""
        return self.v_reset or 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the spikes are to be."""

    timesteps: int
    """T."""
    dtype: torch.dtype
    """Storage type: the input's, or a half type for an input in float32."""
    count: Tensor | None = None
    """An int64 tensor [1] to which the number of spikes is added."""


class Norm(NamedTuple):
    """BatchNorm in front of a neuron, over channels (axis 2 of [T, B, C, ...])."""

    weight: Tensor
    """gamma [C]."""
    bias: Tensor
    """beta [C]."""
    eps: float
    """Added to the variance."""
    mean: Tensor | None = None
    """Statistics [C] to normalise with; None takes those of the input."""
    var: Tensor | None = None
    """Biased variance [C]."""


class Unavailable(Exception):
    """Why a backend cannot run here, and what to do about it, in one sentence."""


class Backend(Protocol):
    """An implementation of the neuron. Shapes: T timesteps, `...` anything, in any layout of memory."""

    name: str
    devices: tuple[str, ...]
    """Types of the devices whose tensors it takes; empty means all."""

    def check(self) -> None:
        """Make ready, compiling what must be compiled; raises Unavailable."""

    def lif(self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted) -> Tensor:
        """Spikes [T, ...] of an input current.

        Args:
            x_T: input current [T, ...], of any floating type, or one frame [1, ...] that every timestep repeats. The membrane
                is float32, or float64 for float64.
            inv_tau: 1/tau, a number or a learned scalar tensor.
            dynamics: the neuron's constants.
            wanted: what the spikes, 0 or 1, are to be.
        """

    def lif_backward(
        self, grad_T: Tensor, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of x_T and of 1/tau (None if it is a number) from that of the spikes [T, ...]."""

    def norm_lif(
        self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted, norm: Norm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`lif` of the batch-normalised input; returns spikes, and the mean and biased variance that were used."""

    def norm(self, x_T: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """Training-mode BatchNorm of x_T [T, B, C, H, W] with the mean and biased variance."""

    def pack(self, spikes_N: Tensor) -> Tensor:
        """Spikes [N] as bits [ceil(N / 8)] of type uint8, the first in the lowest bit."""

    def unpack(self, bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """The first `count` spikes of packed ones, [count]."""


@dataclass(frozen=True, slots=True)
class Frames:
    """A sequence [T, ...] as T frames of `rows` stretches of `length` neighbouring values."""

    x: Tensor
    rows: int
    length: int
    step: int
    """From one frame to the next, in values."""
    row: int
    """From one stretch to the next."""
    strides: tuple[int, ...]
    """Strides of a tensor without gaps whose frames are in the same order of memory; the first is `rows * length`."""

    @property
    def dense(self) -> bool:
        """Whether the whole sequence is one stretch of memory."""
        return self.rows == 1 and (self.x.shape[0] == 1 or self.step == self.length)

    def empty(self, timesteps: int, dtype: torch.dtype) -> Tensor:
        """A tensor [timesteps, ...] without gaps, with frames in the same order of memory."""
        return torch.empty_strided((timesteps, *self.x.shape[1:]), self.strides, dtype=dtype, device=self.x.device)

    def ordered(self, y_T: Tensor) -> Tensor:
        """y_T with the strides of `empty`, copied only if it has others."""
        return y_T if y_T.stride() == self.strides else self.empty(y_T.shape[0], y_T.dtype).copy_(y_T)


def dense_strides(x_T: Tensor) -> tuple[int, ...]:
    """Strides without gaps for frames in x_T's order of memory; the first is the size of a frame."""
    return _dense(x_T.shape, x_T.stride())


def _dense(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, ...]:
    strides, size = [0] * len(shape), 1
    for axis in reversed(_order(stride)):
        strides[axis] = size
        size *= shape[axis]
    return size, *strides[1:]


def _order(stride: tuple[int, ...]) -> list[int]:
    """The axes of a frame, outermost in memory first."""
    return sorted(range(1, len(stride)), key=lambda axis: -stride[axis])


def frames(x_T: Tensor) -> Frames:
    """How x_T lies in memory; only what no two strides can describe is copied."""
    rows, length, step, row, strides = _layout(x_T.shape, x_T.stride())
    if not rows:
        x_T = torch.empty_strided(x_T.shape, strides, dtype=x_T.dtype, device=x_T.device).copy_(x_T)
        rows = 1
    return Frames(x_T, rows, length, step, row, strides)


@functools.lru_cache(4096)  # the layers of a network have few shapes, and every call of a layer asks
def _layout(shape: torch.Size, stride: tuple[int, ...]) -> tuple[int, int, int, int, tuple[int, ...]]:
    """The numbers of `Frames`; no rows: those of a copy without gaps."""
    strides = _dense(shape, stride)
    size = strides[0]
    length, rows, row = 1, 1, 0
    for axis in reversed(_order(stride)):
        if shape[axis] == 1:
            continue
        if rows == 1 and stride[axis] == length:
            length *= shape[axis]
        elif rows == 1:
            rows, row = shape[axis], stride[axis]
        elif stride[axis] == row * rows:
            rows *= shape[axis]
        else:
            row = -1
            break
    if row < 0 or (rows > 1 and row < length):  # too many gaps, or values that repeat
        return 0, size, size, 0, strides
    return rows, length, stride[0], row, strides


@functools.lru_cache(4096)
def channel_run(shape: torch.Size, strides: tuple[int, ...]) -> int | None:
    """Neighbouring values of one channel (axis 2) in a frame without gaps: 1 in channels-last, H W in contiguous, else None."""
    if len(shape) < 3:
        return None
    inner = strides[2]
    # Everything that lies between two values of one channel must be whole channels: [outer][C][run].
    for axis in range(1, len(shape)):
        if axis != 2 and shape[axis] > 1 and not (strides[axis] < inner or strides[axis] >= inner * shape[2]):
            return None
    return inner
