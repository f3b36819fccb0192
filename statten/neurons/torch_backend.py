"""The neuron in plain PyTorch: the oracle that every other backend is held to, and what runs where none other can.

Charge, fire and reset of the leaky integrate-and-fire neuron (REFERENCE: STAtten, CVPR 2025; SpikingJelly's LIFNode with
input decay), with v[0] = v_reset:

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = h[t] (1 - s[t]) + v_reset s[t]            soft reset: v[t] = h[t] - v_threshold s[t], and v_reset is 0 above

Backward, with the sigmoid surrogate sigma(alpha u) of the step at u = h - v_threshold, and d = alpha sigma (1 - sigma):

    k[t]     = 1 - s[t]                              soft reset: 1
               + d[t] (v_reset - h[t])               where the reset is differentiated; soft: - d[t] v_threshold
    g_h[t]   = g_s[t] d[t] + g_v[t] k[t]
    g_x[t]   = g_h[t] / tau
    g_v[t-1] = g_h[t] (1 - 1/tau)
    g_(1/tau) = sum over t of g_h[t] (x[t] - (v[t-1] - v_reset))
"""

from typing import Any

import torch
from torch import Tensor

from statten.neurons.dynamics import Backend, Dynamics, Norm, Wanted

# Neurons that are stepped through all timesteps together: their membranes then stay in a core's cache, where a whole layer's
# would go to memory and back at every operation. A GPU wants the whole layer.
CPU_CHUNK = 2**16
_BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


class _LIF(torch.autograd.Function):
    """Saves its input alone; the membrane is built again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics) -> Tensor:
        ctx.save_for_backward(x_T, *([inv_tau] if isinstance(inv_tau, Tensor) else []))
        ctx.constants = (float(inv_tau), dynamics)
        x_TN, layout = _rows(x_T)
        spikes_TN = torch.empty_like(x_TN)
        v_N, drive_N = _buffers(x_TN, 2)
        for x, spikes in zip(*_chunks(x_TN, spikes_TN), strict=True):
            v, drive = v_N[: x.shape[1]].fill_(dynamics.rest), drive_N[: x.shape[1]]
            for x_t, s_t in zip(x, spikes, strict=True):
                _charge(v, x_t, drive, float(inv_tau), dynamics, out=v)
                _reset(v, torch.ge(v, dynamics.v_threshold, out=s_t).to(v.dtype), dynamics, out=v)
        return _unrows(spikes_TN, x_T, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_T, *learned = ctx.saved_tensors
        inv_tau, dynamics = ctx.constants
        return *_backward(grads[0], x_T, learned[0] if learned else inv_tau, dynamics), None


def _backward(
    grad_T: Tensor, x_T: Tensor, learned_or_fixed: Tensor | float, dynamics: Dynamics
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of 1/tau, the second only if it is a tensor."""
    learn, inv_tau = isinstance(learned_or_fixed, Tensor), float(learned_or_fixed)
    x_TN, layout = _rows(x_T)
    grad_TN = grad_T.permute(layout).reshape(x_TN.shape)
    grad_x_TN = torch.empty_like(x_TN)
    steps = len(x_TN)
    buffers = _buffers(x_TN, 3 + steps * (2 if learn else 1))
    grad_inv_tau = buffers.new_zeros(())

    for x, grad, grad_x in zip(*_chunks(x_TN, grad_TN, grad_x_TN), strict=True):
        v, fired, grad_v, *rest = buffers[:, : x.shape[1]]
        h, drives = rest[:steps], rest[steps:] or [grad_v] * steps
        v.fill_(dynamics.rest)
        for h_t, x_t, drive in zip(h, x, drives, strict=True):
            _charge(v, x_t, drive, inv_tau, dynamics, out=h_t)
            _reset(h_t, torch.ge(h_t, dynamics.v_threshold, out=fired), dynamics, out=v)
        grad_v.zero_()
        for t in range(steps - 1, -1, -1):
            sigma = torch.sub(h[t], dynamics.v_threshold, out=v).mul_(dynamics.alpha).sigmoid_()
            if dynamics.detach_reset:
                if dynamics.v_reset is not None:
                    grad_v.mul_(torch.lt(h[t], dynamics.v_threshold, out=fired))
            else:
                grad_v.mul_(_kept(h[t], sigma, dynamics))
            slope = fired  # its values are used up; the memory is not
            torch.ops.aten.sigmoid_backward.grad_input(grad[t].to(sigma.dtype), sigma, grad_input=slope)
            grad_h = grad_v.add_(slope, alpha=dynamics.alpha)
            if learn:
                grad_inv_tau += torch.dot(grad_h, drives[t])
            grad_x[t] = torch.mul(grad_h, inv_tau, out=slope)
            grad_v = grad_h.mul_(1.0 - inv_tau)
    grad_tau = grad_inv_tau.to(learned_or_fixed) if isinstance(learned_or_fixed, Tensor) else None
    return _unrows(grad_x_TN, x_T, layout), grad_tau


def _rows(x_T: Tensor) -> tuple[Tensor, list[int]]:
    """x as [T, N] in the order of its memory, copied only if it has gaps, and the permutation that gave it."""
    layout = [0, *sorted(range(1, x_T.ndim), key=lambda axis: -x_T.stride()[axis])]
    return x_T.permute(layout).reshape(len(x_T), -1), layout


def _unrows(y_TN: Tensor, x_T: Tensor, layout: list[int]) -> Tensor:
    """Rows back in the shape of x, still in the order of its memory."""
    back = sorted(range(x_T.ndim), key=layout.__getitem__)
    return y_TN.view([x_T.shape[axis] for axis in layout]).permute(back)


def _chunks(*rows: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    size = CPU_CHUNK if rows[0].device.type == "cpu" else max(1, rows[0].shape[1])
    return tuple(row.split(size, dim=1) for row in rows)


def _buffers(x_TN: Tensor, count: int) -> Tensor:
    """Memory for one chunk at the membrane's precision: float32, or float64 for float64."""
    width = min(x_TN.shape[1], CPU_CHUNK) if x_TN.device.type == "cpu" else x_TN.shape[1]
    dtype = torch.float64 if x_TN.dtype == torch.float64 else torch.float32
    return torch.empty(count, width, dtype=dtype, device=x_TN.device)


def _charge(v: Tensor, x: Tensor, drive: Tensor, inv_tau: float, dynamics: Dynamics, *, out: Tensor) -> None:
    """drive = x - (v - v_reset), h = v + drive / tau."""
    torch.sub(x, v, out=drive)
    if dynamics.rest:
        drive.add_(dynamics.rest)
    torch.add(v, drive, alpha=inv_tau, out=out)


def _reset(h: Tensor, s: Tensor, dynamics: Dynamics, *, out: Tensor) -> None:
    """v = h (1 - s) + v_reset s, or h - v_threshold s."""
    if dynamics.v_reset is None:
        torch.add(h, s, alpha=-dynamics.v_threshold, out=out)
        return
    torch.addcmul(h, h, s, value=-1, out=out)
    if dynamics.v_reset:
        out.add_(s, alpha=dynamics.v_reset)


def _kept(h: Tensor, sigma: Tensor, dynamics: Dynamics) -> Tensor:
    """dv/dh with the reset differentiated."""
    slope = dynamics.alpha * sigma * (1 - sigma)
    if dynamics.v_reset is None:
        return 1 - dynamics.v_threshold * slope
    return (h < dynamics.v_threshold) + slope * (dynamics.v_reset - h)


class TorchBackend:
    """Plain PyTorch."""

    name = "torch"
    devices: tuple[str, ...] = ()

    def check(self) -> None:
        """Runs everywhere."""

    def lif(self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted) -> Tensor:
        """As `Backend.lif`."""
        if len(x_T) != wanted.timesteps:
            x_T = x_T.expand(wanted.timesteps, *x_T.shape[1:])
        spikes = _LIF.apply(x_T, inv_tau, dynamics).to(wanted.dtype)
        if wanted.count is not None:
            wanted.count.add_(spikes.detach().sum(dtype=torch.float64).long())
        return spikes

    def lif_backward(
        self, grad_T: Tensor, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics
    ) -> tuple[Tensor, Tensor | None]:
        """As `Backend.lif_backward`."""
        if len(x_T) == len(grad_T):
            return _backward(grad_T.to(x_T.dtype), x_T, inv_tau, dynamics)
        frames_T = x_T.expand(len(grad_T), *x_T.shape[1:])
        grad_x_T, grad_tau = _backward(grad_T.to(x_T.dtype), frames_T, inv_tau, dynamics)
        return grad_x_T.sum(0, keepdim=True), grad_tau

    def norm_lif(
        self, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted, norm: Norm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backend.norm_lif`."""
        return norm_then_lif(self, x_T, inv_tau, dynamics, wanted, norm)

    def norm(self, x_T: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
        """As `Backend.norm`: PyTorch's."""
        x, channels = x_T.flatten(0, 1), x_T.shape[2]
        mean, var = norm.weight.new_zeros(2, channels)
        y = torch.nn.functional.batch_norm(x, mean, var, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
        n = x.numel() // channels
        return y.unflatten(0, x_T.shape[:2]), mean, var * ((n - 1) / n)  # PyTorch reports the unbiased one

    def pack(self, spikes_N: Tensor) -> Tensor:
        """As `Backend.pack`."""
        fired = torch.nn.functional.pad(spikes_N != 0, (0, -len(spikes_N) % 8)).view(-1, 8)
        return (fired * _BITS.to(fired.device)).sum(1, dtype=torch.uint8)

    def unpack(self, bits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """As `Backend.unpack`."""
        return ((bits[:, None] & _BITS.to(bits.device)) != 0).view(-1)[:count].to(dtype)


def norm_then_lif(
    backend: Backend, x_T: Tensor, inv_tau: Tensor | float, dynamics: Dynamics, wanted: Wanted, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """`Backend.norm_lif` in two steps, with PyTorch's BatchNorm."""
    mean, var = norm.mean, norm.var
    if mean is None or var is None:
        y_T, mean, var = BACKEND.norm(x_T, norm)
    else:
        y = torch.nn.functional.batch_norm(x_T.flatten(0, 1), mean, var, norm.weight, norm.bias, eps=norm.eps)
        y_T = y.unflatten(0, x_T.shape[:2])
    return backend.lif(y_T, inv_tau, dynamics, wanted), mean, var


BACKEND = TorchBackend()
