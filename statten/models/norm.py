"""BatchNorm that the neurons' backend may take over."""

import torch
from torch import Tensor, nn

from statten.neurons import Norm, follow_statistics, select_backend
from statten.neurons.torch_backend import BACKEND as TORCH


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's BatchNorm over [B, C, H, W], in training by the backend's kernels where these are faster.

    Its running statistics are the plain average of the batches until there are 1/momentum of them (see `follow_statistics`).

    Args:
        channels: C.
        backend: a key of NEURON_BACKENDS or `auto`.
    """

    def __init__(self, channels: int, backend: str = "auto"):
        super().__init__(channels)
        self.backend = backend

    def forward(self, x: Tensor, repeats: int = 1) -> Tensor:
        """Normalised maps [B, C, H, W]; with `repeats` the running statistics take them for so many equal ones."""
        if not self.training:
            return super().forward(x)
        backend = TORCH if torch.compiler.is_compiling() else select_backend(self.backend, x.device.type)
        y, mean, var = backend.norm(x[None], Norm(self.weight, self.bias, self.eps))
        follow_statistics(self, mean, var, samples=repeats * x.numel() // len(mean))
        return y.squeeze(0)  # whose gradient is a view; that of y[0] is zeros in the default layout with a copy in them
