"""The neuron as a registered operator, `torch.ops.statten.lif`, for torch.compile and torch.export.

In eager mode the backends' own autograd functions are called: a registered operator costs twice the host time per call.
"""

from typing import Any

import torch
from torch import Tensor

from statten.neurons.backends import select_backend
from statten.neurons.dynamics import Dynamics, Wanted, dense_strides


def _backend(name: str, x_T: Tensor) -> Any:
    return select_backend(name, x_T.device.type)


@torch.library.custom_op("statten::lif", mutates_args=())
def lif(
    x_T: Tensor,
    learned_inv_tau: Tensor | None,
    inv_tau: float,
    v_threshold: float,
    v_reset: float | None,
    alpha: float,
    detach_reset: bool,
    timesteps: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """`Backend.lif`; `learned_inv_tau` takes the place of `inv_tau`, and has a gradient."""
    tau = inv_tau if learned_inv_tau is None else learned_inv_tau
    dynamics = Dynamics(v_threshold, v_reset, alpha, detach_reset)
    return _backend(backend, x_T).lif(x_T, tau, dynamics, Wanted(timesteps, dtype))


@lif.register_fake
def _(x_T, learned_inv_tau, inv_tau, v_threshold, v_reset, alpha, detach_reset, timesteps, dtype, backend):
    strides = dense_strides(x_T)
    return torch.empty_strided((timesteps, *x_T.shape[1:]), strides, dtype=dtype, device=x_T.device)


@torch.library.custom_op("statten::lif_backward", mutates_args=())
def backward(
    grad_T: Tensor,
    x_T: Tensor,
    learned_inv_tau: Tensor | None,
    inv_tau: float,
    v_threshold: float,
    v_reset: float | None,
    alpha: float,
    detach_reset: bool,
    timesteps: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the learned 1/tau (0 if it is not learned)."""
    tau = inv_tau if learned_inv_tau is None else learned_inv_tau
    dynamics = Dynamics(v_threshold, v_reset, alpha, detach_reset)
    grad_x_T, grad_tau = _backend(backend, x_T).lif_backward(grad_T, x_T, tau, dynamics)
    if grad_x_T.stride() != dense_strides(x_T):
        grad_x_T = torch.empty_strided(x_T.shape, dense_strides(x_T), dtype=x_T.dtype, device=x_T.device).copy_(grad_x_T)
    return grad_x_T, grad_x_T.new_zeros(()) if grad_tau is None else grad_tau


@backward.register_fake
def _(grad_T, x_T, learned_inv_tau, *_):
    grad_x_T = torch.empty_strided(x_T.shape, dense_strides(x_T), dtype=x_T.dtype, device=x_T.device)
    return grad_x_T, (x_T if learned_inv_tau is None else learned_inv_tau).new_empty(())


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x_T, learned, *constants = inputs
    ctx.save_for_backward(x_T, learned)
    ctx.constants = constants


def _differentiate(ctx: Any, grad_T: Tensor) -> tuple:
    x_T, learned = ctx.saved_tensors
    grad_x_T, grad_tau = torch.ops.statten.lif_backward(grad_T, x_T, learned, *ctx.constants)
    return grad_x_T, None if learned is None else grad_tau, *[None] * 8


lif.register_autograd(_differentiate, setup_context=_remember)
