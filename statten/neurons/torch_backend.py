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


class _LIF(torch.autograd.Function):
    """Saves its input alone; the membrane is built again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, inv_tau: Tensor | float, v_threshold: float, v_reset: float, alpha: float) -> Tensor:
        tensors = (x_T, inv_tau) if isinstance(inv_tau, Tensor) else (x_T,)
        ctx.save_for_backward(*tensors)
        ctx.constants = (None if isinstance(inv_tau, Tensor) else inv_tau, v_threshold, v_reset, alpha)
        spikes_T = torch.empty_like(x_T)
        v = torch.full_like(x_T[0], v_reset, dtype=_membrane_dtype(x_T))
        for x, s in zip(x_T, spikes_T, strict=True):
            h = _charge(v, x, float(inv_tau), v_reset)
            torch.ge(h, v_threshold, out=s)
            v = _reset(h, s, v_reset)
        return spikes_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_T,) = grads
        x_T, *rest = ctx.saved_tensors
        constant, v_threshold, v_reset, alpha = ctx.constants
        inv_tau = float(rest[0]) if rest else constant
        learn = bool(rest) and ctx.needs_input_grad[1]
        dtype = _membrane_dtype(x_T)

        h_T = torch.empty_like(x_T, dtype=dtype)
        drive_T = torch.empty_like(h_T) if learn else None
        v = torch.full_like(h_T[0], v_reset)
        for t, x in enumerate(x_T):
            h_T[t] = _charge(v, x, inv_tau, v_reset)
            if drive_T is not None:
                drive_T[t] = x.to(dtype) - v + v_reset
            v = _reset(h_T[t].clone(), h_T[t] >= v_threshold, v_reset)

        grad_x_T = torch.empty_like(x_T)
        grad_inv_tau = torch.zeros((), dtype=dtype, device=x_T.device)
        grad_v = torch.zeros_like(h_T[0])
        for t in range(len(h_T) - 1, -1, -1):
            silent = h_T[t] < v_threshold
            sigma = h_T[t].sub_(v_threshold).mul_(alpha).sigmoid_()
            grad_h = torch.ops.aten.sigmoid_backward(grad_T[t].to(dtype), sigma).mul_(alpha)
            grad_h.addcmul_(grad_v, silent)
            grad_x_T[t] = torch.mul(grad_h, inv_tau, out=grad_v)
            if drive_T is not None:
                grad_inv_tau += (grad_h * drive_T[t]).sum()
            grad_v = grad_h.mul_(1.0 - inv_tau)
        return grad_x_T, grad_inv_tau.to(rest[0]) if learn else None, None, None, None


def _membrane_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _charge(v: Tensor, x: Tensor, inv_tau: float, v_reset: float) -> Tensor:
    """h = v + (x - (v - v_reset)) / tau."""
    drive = x - v if x.dtype == v.dtype else x.to(v.dtype).sub_(v)
    if v_reset:
        drive += v_reset
    return torch.add(v, drive, alpha=inv_tau, out=drive)


def _reset(h: Tensor, s: Tensor, v_reset: float) -> Tensor:
    """v = h (1 - s) + v_reset s, in the memory of h."""
    h.addcmul_(h, s.to(h.dtype), value=-1)
    return h.add_(s, alpha=v_reset) if v_reset else h


def lif(x_T: Tensor, inv_tau: Tensor | float, v_threshold: float, v_reset: float, alpha: float) -> Tensor:
    """Spikes of a layer of neurons over all timesteps.

    Args:
        x_T: input current [T, ...], of any floating type and layout; the membrane is float32, or float64 for float64.
        inv_tau: 1/tau, a number or a learned scalar tensor.
        v_threshold: firing threshold.
        v_reset: membrane potential at the start and after a spike.
        alpha: steepness of the surrogate gradient.

    Returns:
        Spikes 0 or 1, with the shape, type and layout of x_T.
    """
    return _LIF.apply(x_T, inv_tau, v_threshold, v_reset, alpha)
