"""How a model is run to be measured: evaluation mode, precision, and the time of one sample."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from statten.config import Config


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by their plain average over some batches, as the model now runs; it is left in
    evaluation mode."""
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()  # stochastic depth stays off
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        for images in batches:
            model(images.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def latency_ms(model: nn.Module, config: Config, sample: Tensor | None = None, turns: int = 5) -> float:
    """Median time of one sample alone, in milliseconds, in the precision that it is trained and evaluated in.

    Args:
        model: on its device.
        config: of the run.
        sample: [1, ...] as the model takes it; what it shows does not matter, and zeros will do.
        turns: measured ones; a fifth as many warm up.
    """
    device, c = next(model.parameters()).device, config.model
    if sample is None:
        sample = torch.zeros(1, *((c.timesteps,) if c.events else ()), c.in_channels, c.image_size, c.image_size)
    x, times, warmup = sample.to(device), [], max(1, turns // 5)
    with evaluating(model), autocast(config, device):
        for _ in range(warmup + turns):
            began = time.perf_counter()
            model(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[warmup:]))


def autocast(config: Config, device: torch.device) -> Any:
    """The context that gives `train.precision`."""
    dtype = half_type(config, device)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def half_type(config: Config, device: torch.device) -> torch.dtype | None:
    """The half type of `train.precision` on a device; None is float32, which a CPU takes in place of float16."""
    precision = config.train.precision
    if precision == "fp32" or (precision in ("amp", "fp16") and device.type == "cpu"):
        return None
    if precision == "amp":  # bfloat16 has float32's range and needs no scaling of the loss; GPUs before Ampere only imitate it
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return torch.bfloat16 if precision == "bf16" else torch.float16
