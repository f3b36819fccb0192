"""Spiking neurons over whole sequences: input [T, ...], output spikes of the same shape, no state between calls.

A backend is one file with a function `lif(x_T, inv_tau, v_threshold, v_reset, alpha)` and one entry of NEURON_BACKENDS; the
conformance tests hold every entry to `torch`, whose file has the equations.
"""

import functools
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from statten.config import UserError, nearest
from statten.neurons import torch_backend

__all__ = ["LIF", "NEURON_BACKENDS", "PLIF", "select_backend"]

log = logging.getLogger("statten")

Backend = Callable[[Tensor, Tensor | float, float, float, float], Tensor]
NEURON_BACKENDS: dict[str, Backend] = {"torch": torch_backend.lif}
# `auto` takes the first that runs here.
_PREFERENCE = ("torch",)


@functools.cache
def select_backend(name: str = "auto") -> str:
    """The backend that a name means, said once in the log.

    Raises:
        UserError: there is no such backend.
    """
    if name == "auto":
        name = _PREFERENCE[0]
        log.info("neuron backend: %s (automatic choice)", name)
    elif name not in NEURON_BACKENDS:
        raise UserError(f"scale.neuron_backend: {name!r} is no backend; {nearest(name, ['auto', *NEURON_BACKENDS])}")
    return name


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with input decay, hard reset and a sigmoid surrogate gradient.

    Args:
        v_threshold: firing threshold.
        tau: membrane time constant in timesteps, above 1.
        alpha: steepness of the surrogate gradient.
        v_reset: membrane potential at the start and after a spike.
        backend: a key of NEURON_BACKENDS or `auto`.
    """

    # For SpikingJelly's tools: all timesteps come at once. There is no `reset`, because there is nothing to reset.
    step_mode = "m"

    def __init__(
        self, v_threshold: float = 1.0, tau: float = 2.0, alpha: float = 4.0, v_reset: float = 0.0, backend: str = "auto"
    ):
        super().__init__()
        self.v_threshold, self.tau, self.alpha, self.v_reset = v_threshold, tau, alpha, v_reset
        self.backend = select_backend(backend)

    @property
    def inv_tau(self) -> Tensor | float:
        """1/tau."""
        return 1.0 / self.tau

    def forward(self, x_T: Tensor) -> Tensor:
        """Input current [T, ...] to spikes [T, ...]."""
        return NEURON_BACKENDS[self.backend](x_T, self.inv_tau, self.v_threshold, self.v_reset, self.alpha)

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold:g}, tau={self.tau:g}, alpha={self.alpha:g}, backend={self.backend}"


class PLIF(LIF):
    """LIF with a learned time constant, one per layer: 1/tau = sigmoid(w) (Fang et al., ICCV 2021)."""

    def __init__(
        self, v_threshold: float = 1.0, tau: float = 2.0, alpha: float = 4.0, v_reset: float = 0.0, backend: str = "auto"
    ):
        super().__init__(v_threshold, tau, alpha, v_reset, backend)
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1.0)))

    @property
    def inv_tau(self) -> Tensor:
        """1/tau, a scalar tensor with a gradient."""
        return self.w.sigmoid()
