"""Autograd around compiled kernels: the same for the CPU's and the GPU's. Only the input is saved for the backward pass."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from statten.neurons.dynamics import MAX_TIMESTEPS, Dynamics, Frames, Norm, Wanted, channel_run, frames
from statten.neurons.torch_backend import TorchBackend, norm_then_lif


class Kernels(Protocol):
    """The kernels of one machine. Frames lie in any two-stride layout, everything that is written is without gaps."""

    name: str

    def forward(
        self,
        x: Frames,
        spikes_T: Tensor,
        inv_tau: Tensor | float,
        dynamics: Dynamics,
        affine: Tensor | None,
        run: int,
        count: Tensor | None,
    ) -> None:
        """Write spikes; `affine` is [3, C] (scale, shift, mean) and `run` the neighbouring values of a channel."""

    def backward(
        self,
        x: Frames,
        grad_T: Tensor,
        grad_x_T: Tensor,
        inv_tau: Tensor | float,
        dynamics: Dynamics,
        affine: Tensor | None,
        run: int,
        learn: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Write the gradient g of the neuron's input.

        Returns:
            The gradient of 1/tau [] if `learn`; with `affine`, the sums [2, C] of g and of g (x - mean).
        """

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether there are kernels for a storage type."""

    def fuses(self, x_T: Tensor, run: int) -> bool:
        """Whether BatchNorm can be fused for an input without gaps."""

    def moments(self, x_T: Tensor, run: int, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel, [C]."""

    def affine(self, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """BatchNorm as `affine` [3, C] of `forward`, and the inverse standard deviations [C]."""

    def coefficients(self, sums: Tensor, affine: Tensor, inv_std: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """What is left of BatchNorm's backward pass when the sums [2, C] of `backward` are known.

        Args:
            sums: of g and of g (x - mean).
            affine: [3, C].
            inv_std: [C].
            values: of each channel.

        Returns:
            Coefficients [3, C] of `combine`, and the gradients [2, C] of weight and bias.
        """

    def pack(self, spikes_N: Tensor) -> Tensor | None:
        """As `Backend.pack`, or None where the kernels do not fit."""

    def unpack(self, bits: Tensor, spikes_N: Tensor) -> bool:
        """Write spikes; False where the kernels do not fit."""

    def norms(self, x_T: Tensor, run: int) -> bool:
        """Whether BatchNorm alone is faster by these kernels than by PyTorch, for an input without gaps."""

    def gradients(self, grad_T: Tensor, x_T: Tensor, mean: Tensor, run: int) -> Tensor:
        """Sums over each channel of g and of g (x - mean), [2, C]."""

    def combine(self, grad_T: Tensor, x_T: Tensor, coefficients: Tensor, run: int, out_T: Tensor) -> None:
        """out_T = a grad_T + b x_T + c per channel, with coefficients [3, C]; out_T may be grad_T."""


class ChannelMaths:
    """What kernels need of BatchNorm for each channel, by PyTorch."""

    def affine(self, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """As `Kernels.affine`."""
        inv_std = torch.rsqrt(var + eps)
        scale = weight * inv_std
        return torch.stack([scale, bias - mean * scale, mean]), inv_std

    def coefficients(self, sums: Tensor, affine: Tensor, inv_std: Tensor, values: int) -> tuple[Tensor, Tensor]:
        """As `Kernels.coefficients`: with y = w (x - mean) i + b and averages <> over a channel,
        g_x = w i (g - <g> - (x - mean) i <g (x - mean) i>).
        """
        (scale, _, mean), grad_bias, grad_weight = affine, sums[0], sums[1] * inv_std
        slope = scale * inv_std * grad_weight / -values
        constant = scale * grad_bias / -values - slope * mean
        return torch.stack([scale, slope, constant]), torch.stack([grad_weight, grad_bias])


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_T: Tensor,
        inv_tau: Tensor | float,
        dynamics: Dynamics,
        wanted: Wanted,
        kernels: Kernels,
    ) -> Tensor:
        x = frames(x_T)
        spikes_T = x.empty(wanted.timesteps, wanted.dtype)
        if spikes_T.numel():
            kernels.forward(x, spikes_T, inv_tau, dynamics, None, 1, wanted.count)
        ctx.save_for_backward(x_T, *([inv_tau] if isinstance(inv_tau, Tensor) else []))
        ctx.constants = (inv_tau, dynamics, kernels)
        return spikes_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_T, *learned = ctx.saved_tensors
        inv_tau, dynamics, kernels = ctx.constants
        return *_lif_backward(grads[0], x_T, learned[0] if learned else inv_tau, dynamics, kernels), None, None, None


def _lif_backward(
    grad_T: Tensor, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, kernels: Kernels
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of 1/tau, the second only if it is a tensor."""
    x, learn = frames(x_T), isinstance(inv_tau, Tensor)
    grad_x_T = x.empty(len(x_T), x_T.dtype)
    learnt: Tensor | None = grad_x_T.new_zeros(()) if learn else None
    if grad_T.numel():
        learnt, _ = kernels.backward(x, x.ordered(grad_T), grad_x_T, inv_tau, dynamics, None, 1, learn)
    return grad_x_T, learnt.to(inv_tau.dtype) if isinstance(inv_tau, Tensor) and learnt is not None else None


class _NormLIF(torch.autograd.Function):
    """Training-mode BatchNorm and the neuron behind it: what BatchNorm would write, and save, is never in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x_T: Tensor,
        inv_tau: Tensor | float,
        weight: Tensor,
        bias: Tensor,
        dynamics: Dynamics,
        wanted: Wanted,
        norm: Norm,
        run: int,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = frames(x_T)
        if norm.mean is None or norm.var is None:
            mean, var = kernels.moments(x.x, run, len(weight))
        else:
            mean, var = norm.mean, norm.var
        affine, inv_std = kernels.affine(mean, var, weight, bias, norm.eps)
        spikes_T = x.empty(wanted.timesteps, wanted.dtype)
        kernels.forward(x, spikes_T, inv_tau, dynamics, affine, run, wanted.count)
        ctx.save_for_backward(x_T, affine, inv_std, *([inv_tau] if isinstance(inv_tau, Tensor) else []))
        ctx.constants, ctx.weight_dtype = (inv_tau, dynamics, run, kernels), weight.dtype
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)  # or zeros are made for these two
        return spikes_T, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_T, affine, inv_std, *learned = ctx.saved_tensors
        inv_tau, dynamics, run, kernels = ctx.constants
        x = frames(x_T)
        grad_x_T = x.empty(len(x_T), x_T.dtype)
        learnt, sums = kernels.backward(
            x, x.ordered(grads[0]), grad_x_T, learned[0] if learned else inv_tau, dynamics, affine, run, bool(learned)
        )
        assert sums is not None
        coefficients, both = kernels.coefficients(sums, affine, inv_std, x_T.numel() // affine.shape[1])
        kernels.combine(grad_x_T, x.x, coefficients, run, grad_x_T)
        grad_tau = learnt.to(learned[0].dtype) if learned and learnt is not None else None
        return grad_x_T, grad_tau, *both.to(ctx.weight_dtype), *[None] * 5


class _Norm(torch.autograd.Function):
    """Training-mode BatchNorm alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, run: int, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = kernels.moments(x, run, len(weight))
        affine, inv_std = kernels.affine(mean, var, weight, bias, eps)
        scale, y = affine[0], torch.empty_like(x)
        kernels.combine(x, x, torch.stack([scale, torch.zeros_like(scale), affine[1]]), run, y)
        ctx.save_for_backward(x, affine, inv_std)
        ctx.constants, ctx.weight_dtype = (run, kernels), weight.dtype
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)  # or zeros are made for these two
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, affine, inv_std = ctx.saved_tensors
        run, kernels = ctx.constants
        grad, grad_x = frames(x).ordered(grads[0]), torch.empty_like(x)
        sums = kernels.gradients(grad, x, affine[2], run)
        coefficients, both = kernels.coefficients(sums, affine, inv_std, x.numel() // affine.shape[1])
        kernels.combine(grad, x, coefficients, run, grad_x)
        return grad_x, *both.to(ctx.weight_dtype), None, None, None


class CompiledBackend(ABC):
    """A backend over the kernels of one machine."""

    def __init__(self, kernels: Kernels, devices: tuple[str, ...]):
        self.name, self.kernels, self.devices = kernels.name, kernels, devices

    def runs(self, x_T: Tensor, timesteps: int) -> bool:
        """Whether there is a kernel for an input; PyTorch takes the others."""
        return timesteps <= MAX_TIMESTEPS and self.kernels.takes(x_T.dtype)

    @abstractmethod
    def check(self) -> None:
        """As `Backend.check`."""

    def lif(self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted) -> Tensor:
        """As `Backend.lif`."""
        if not self.runs(x_T, wanted.timesteps):
            return TorchBackend().lif(x_T, inv_tau, dynamics, wanted)
        return _LIF.apply(x_T, inv_tau, dynamics, wanted, self.kernels)

    def lif_backward(
        self, grad_T: Tensor, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics
    ) -> tuple[Tensor, Tensor | None]:
        """As `Backend.lif_backward`."""
        if not self.runs(x_T, len(grad_T)):
            return TorchBackend().lif_backward(grad_T, x_T, inv_tau, dynamics)
        return _lif_backward(grad_T, x_T, inv_tau, dynamics, self.kernels)

    def norm_lif(
        self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted, norm: Norm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backend.norm_lif`; fused where x_T has no gaps and its statistics are taken here, or no gradient is wanted."""
        x = frames(x_T)
        run, channels = channel_run(x_T.shape, x.strides), len(norm.weight)
        # BatchNorm refuses one value per channel, and a fixed mean has another gradient.
        fits = (norm.mean is None and x_T.numel() > channels) or (norm.mean is not None and not torch.is_grad_enabled())
        fits = fits and x.dense and self.runs(x_T, wanted.timesteps)
        if run is None or not (fits and self.kernels.fuses(x_T, run)):
            return norm_then_lif(self, x_T, inv_tau, dynamics, wanted, norm)
        return _NormLIF.apply(x_T, inv_tau, norm.weight, norm.bias, dynamics, wanted, norm, run, self.kernels)

    def norm(self, x_T: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backend.norm`; PyTorch's where it is faster."""
        x = frames(x_T)
        run, channels = channel_run(x_T.shape, x.strides), len(norm.weight)
        fits = x.dense and self.kernels.takes(x_T.dtype) and x_T.numel() > channels
        if run is None or not (fits and self.kernels.norms(x_T, run)):
            return TorchBackend().norm(x_T, norm)
        return _Norm.apply(x_T, norm.weight, norm.bias, norm.eps, run, self.kernels)

    def pack(self, spikes_N: Tensor) -> Tensor:
        """As `Backend.pack`."""
        bits = self.kernels.pack(spikes_N) if self.kernels.takes(spikes_N.dtype) else None
        return TorchBackend().pack(spikes_N) if bits is None else bits

    def unpack(self, bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """As `Backend.unpack`."""
        spikes_N = torch.empty(count, dtype=dtype, device=bits.device)
        if self.kernels.takes(dtype) and self.kernels.unpack(bits, spikes_N):
            return spikes_N
        return TorchBackend().unpack(bits, count, dtype)
