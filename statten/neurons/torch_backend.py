"""The neuron in plain PyTorch: the oracle that every other backend is held to, and what runs where none other can.

Charge, fire and reset of the leaky integrate-and-fire neuron (REFERENCE: STAtten, CVPR 2025; SpikingJelly's LIFNode with
input decay, hard reset and detached reset), with v[0] = v_reset:

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = h[t] (1 - s[t]) + v_reset s[t]

Backward, with the sigmoid surrogate sigma(alpha u) of the step at u = h - v_threshold:

    g_h[t]   = g_s[t] alpha sigma (1 - sigma) + g_v[t] (1 - s[t])
    g_x[t]   = g_h[t] / tau
    g_v[t-1] = g_h[t] (1 - 1/tau)
    g_(1/tau) = sum over t of g_h[t] (x[t] - (v[t-1] - v_reset))
"""

from typing import Any

import torch
from torch import Tensor

# Neurons that are stepped through all timesteps together: their membranes then stay in a core's cache, where a whole layer's
# would go to memory and back at every operation. A GPU wants the whole layer.
CPU_CHUNK = 2**16


class _LIF(torch.autograd.Function):
    """Saves its input alone; the membrane is built again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, inv_tau: Tensor | float, v_threshold: float, v_reset: float, alpha: float) -> Tensor:
        ctx.save_for_backward(x_T, *([inv_tau] if isinstance(inv_tau, Tensor) else []))
        ctx.constants = (float(inv_tau), v_threshold, v_reset, alpha)
        x_TN, layout = _rows(x_T)
        spikes_TN = torch.empty_like(x_TN)
        v_N, drive_N = _buffers(x_TN, 2)
        for x, spikes in zip(*_chunks(x_TN, spikes_TN), strict=True):
            v, drive = v_N[: x.shape[1]].fill_(v_reset), drive_N[: x.shape[1]]
            for x_t, s_t in zip(x, spikes, strict=True):
                _charge(v, x_t, drive, float(inv_tau), v_reset, out=v)
                _reset(v, torch.ge(v, v_threshold, out=s_t).to(v.dtype), v_reset, out=v)
        return _unrows(spikes_TN, x_T, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_T, *learned = ctx.saved_tensors
        inv_tau, v_threshold, v_reset, alpha = ctx.constants
        x_TN, layout = _rows(x_T)
        grad_TN = grads[0].permute(layout).reshape(x_TN.shape)
        grad_x_TN = torch.empty_like(x_TN)
        learn, steps = bool(learned) and ctx.needs_input_grad[1], len(x_TN)
        buffers = _buffers(x_TN, 3 + steps * (2 if learn else 1))
        grad_inv_tau = buffers.new_zeros(())

        for x, grad, grad_x in zip(*_chunks(x_TN, grad_TN, grad_x_TN), strict=True):
            v, fired, grad_v, *rest = buffers[:, : x.shape[1]]
            h, drives = rest[:steps], rest[steps:] or [grad_v] * steps
            v.fill_(v_reset)
            for h_t, x_t, drive in zip(h, x, drives, strict=True):
                _charge(v, x_t, drive, inv_tau, v_reset, out=h_t)
                _reset(h_t, torch.ge(h_t, v_threshold, out=fired), v_reset, out=v)
            grad_v.zero_()
            for t in range(steps - 1, -1, -1):
                grad_v.mul_(torch.lt(h[t], v_threshold, out=fired))
                sigma = h[t].sub_(v_threshold).mul_(alpha).sigmoid_()
                slope = fired  # its values are used up; the memory is not
                torch.ops.aten.sigmoid_backward.grad_input(grad[t].to(sigma.dtype), sigma, grad_input=slope)
                grad_h = grad_v.add_(slope, alpha=alpha)
                if learn:
                    grad_inv_tau += torch.dot(grad_h, drives[t])
                grad_x[t] = torch.mul(grad_h, inv_tau, out=slope)
                grad_v = grad_h.mul_(1.0 - inv_tau)
        grad_w = grad_inv_tau.to(learned[0]) if learn else None
        return _unrows(grad_x_TN, x_T, layout), grad_w, None, None, None


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


def _charge(v: Tensor, x: Tensor, drive: Tensor, inv_tau: float, v_reset: float, *, out: Tensor) -> None:
    """drive = x - (v - v_reset), h = v + drive / tau."""
    torch.sub(x, v, out=drive)
    if v_reset:
        drive.add_(v_reset)
    torch.add(v, drive, alpha=inv_tau, out=out)


def _reset(h: Tensor, s: Tensor, v_reset: float, *, out: Tensor) -> None:
    """v = h (1 - s) + v_reset s."""
    torch.addcmul(h, h, s, value=-1, out=out)
    if v_reset:
        out.add_(s, alpha=v_reset)


def lif(x_T: Tensor, inv_tau: Tensor | float, v_threshold: float, v_reset: float, alpha: float) -> Tensor:
    """Spikes of a layer of neurons over all timesteps.

    Args:
        x_T: input current [T, ...], of any floating type and layout; the membrane is float32, or float64 for float64.
        inv_tau: 1/tau, a number or a learned scalar tensor.
        v_threshold: firing threshold.
        v_reset: membrane potential at the start and after a spike.
        alpha: steepness of the surrogate gradient.

    Returns:
        Spikes 0 or 1, with the shape and type of x_T.
    """
    return _LIF.apply(x_T, inv_tau, v_threshold, v_reset, alpha)
