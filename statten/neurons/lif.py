"""LIF and PLIF neurons over whole sequences: input [T, ...], output spikes of the same shape, no state between calls."""

import math

import torch
from torch import Tensor, nn

from statten.neurons import operator as operator  # registers torch.ops.statten
from statten.neurons.backends import select_backend
from statten.neurons.dynamics import Dynamics, Norm, Wanted
from statten.neurons.packing import mark


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with input decay and a sigmoid surrogate gradient.

    Args:
        v_threshold: firing threshold.
        tau: membrane time constant in timesteps, above 1.
        alpha: steepness of the surrogate gradient.
        v_reset: membrane potential at the start and after a spike; None subtracts the threshold instead (soft reset).
        detach_reset: leave the reset out of the gradient.
        backend: a key of NEURON_BACKENDS or `auto`.
    """

    # For SpikingJelly's tools: all timesteps come at once. There is no `reset`, because there is nothing to reset.
    step_mode = "m"

    def __init__(
        self,
        v_threshold: float = 1.0,
        tau: float = 2.0,
        alpha: float = 4.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        self.v_threshold, self.tau, self.alpha, self.v_reset = v_threshold, tau, alpha, v_reset
        self.detach_reset, self.backend = detach_reset, backend
        self.spike_count: Tensor | None = None
        """An int64 tensor [1] that every forward adds its spikes to, or None."""

    @property
    def inv_tau(self) -> Tensor | float:
        """1/tau."""
        return 1.0 / self.tau

    def forward(self, x_T: Tensor, timesteps: int | None = None, norm: nn.BatchNorm2d | None = None) -> Tensor:
        """Spikes [T, ...] of an input current.

        Args:
            x_T: input current [T, ...], or one frame [1, ...] that every timestep repeats.
            timesteps: T, by default the frames of x_T.
            norm: a BatchNorm through which x_T [T, B, C, H, W] goes first; its running statistics follow as if it were called.
        """
        device, dtype = x_T.device.type, x_T.dtype
        if dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # the layer behind would cast the spikes
        if torch.compiler.is_compiling():
            return self._operator(x_T, timesteps or len(x_T), norm, dtype)
        backend = select_backend(self.backend, device)
        dynamics = Dynamics(self.v_threshold, self.v_reset, self.alpha, self.detach_reset)
        wanted = Wanted(timesteps or len(x_T), dtype, self.spike_count)
        if not isinstance(norm, nn.BatchNorm2d):  # none, or folded into the convolution
            return mark(backend.lif(x_T, self.inv_tau, dynamics, wanted), backend)
        statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
        fields = Norm(norm.weight, norm.bias, norm.eps, *statistics)
        spikes, mean, var = backend.norm_lif(x_T, self.inv_tau, dynamics, wanted, fields)
        if norm.training:
            follow_statistics(norm, mean, var, samples=wanted.timesteps * x_T[0].numel() // len(mean))
        return mark(spikes, backend)

    def _operator(self, x_T: Tensor, timesteps: int, norm: nn.Module | None, dtype: torch.dtype) -> Tensor:
        """`forward` for a compiler, which fuses what is around the neuron by itself."""
        if norm is not None:
            x_T = norm(x_T.flatten(0, 1)).unflatten(0, x_T.shape[:2])
        learned = self.inv_tau if isinstance(self.inv_tau, Tensor) else None
        inv_tau = 1.0 / self.tau if learned is None else 0.0
        constants = (inv_tau, self.v_threshold, self.v_reset, self.alpha, self.detach_reset)
        return torch.ops.statten.lif(x_T, learned, *constants, timesteps, dtype, self.backend)

    def extra_repr(self) -> str:
        reset = "" if self.v_reset == 0.0 else f", v_reset={self.v_reset}"
        return f"v_threshold={self.v_threshold:g}, tau={self.tau:g}, alpha={self.alpha:g}{reset}, backend={self.backend}"


@torch.no_grad()
def follow_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, samples: int) -> None:
    """Move running statistics towards those of a batch, as PyTorch's BatchNorm does from its tenth batch (of momentum 0.1) on.

    Before, they are the plain average of all batches so far: the 0 and 1 that they start with are no data, and after the 13
    steps of a small epoch a quarter of PyTorch's is still these. The weight is a tensor, so that CUDA graphs replay it.
    """
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    dtype = norm.running_mean.dtype
    weight = norm.num_batches_tracked.add_(1).to(dtype).reciprocal_().clamp_(min=norm.momentum or 0.0)
    unbiased = var * (samples / (samples - 1))
    norm.running_mean.lerp_(mean.to(dtype), weight)
    norm.running_var.lerp_(unbiased.to(dtype), weight)


class PLIF(LIF):
    """LIF with a learned time constant, one per layer: 1/tau = sigmoid(w) (Fang et al., ICCV 2021)."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        tau: float = 2.0,
        alpha: float = 4.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = True,
        backend: str = "auto",
    ):
        super().__init__(v_threshold, tau, alpha, v_reset, detach_reset, backend)
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1.0)))

    @property
    def inv_tau(self) -> Tensor:
        """1/tau, a scalar tensor with a gradient."""
        return self.w.sigmoid()
