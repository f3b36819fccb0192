"""What is measured while a model runs: loss, accuracy, firing rates. Counts are summed over ranks before any division.

Sums stay on the device until they are read, so that measuring never makes a GPU wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from statten.neurons import LIF


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(sums: Tensor) -> Tensor:
    """The sum of a tensor of counts over all ranks; collective where there are several."""
    if is_distributed():
        dist.all_reduce(sums)
    return sums


class Accuracy:
    """Running loss, top-1 and top-5 over samples: each sample counts once, whatever the batches and ranks."""

    FIELDS = ("loss", "top1", "top5", "samples")

    def __init__(self, device: torch.device | str, sums: list[float] | None = None):
        # float64 holds counts exactly to 2^53. MPS has none, and is not a target.
        self.sums = torch.tensor(sums or [0.0] * len(self.FIELDS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a batch: mean loss [], logits [B, classes] or [T, B, classes], labels [B]."""
        if logits.ndim == 3:
            logits = logits.mean(0)
        batch, k = target.numel(), min(5, logits.shape[-1])
        # Ties count against us: a label is in the top k when fewer than k other classes score at least as much,
        # so a dead network that returns equal logits is not right by luck of the sort.
        own = logits.gather(1, target[:, None])
        rank = (logits >= own).sum(1) - 1
        rank = torch.where(logits.isfinite().all(1), rank, logits.shape[-1])
        samples = torch.full_like(loss, batch)  # made on the device: a copy from here would make the GPU wait
        counts = [loss.detach().double() * batch, (rank < 1).sum(), (rank < k).sum(), samples]
        self.sums += torch.stack([c.to(self.sums) for c in counts])

    def summed(self) -> Tensor:
        """The sums over all ranks; collective where there are several."""
        return sum_over_ranks(self.sums.clone())

    def reduced(self) -> dict[str, float]:
        """Mean loss, top-1 and top-5 in percent, and the number of samples, over all ranks."""
        loss, top1, top5, samples = self.summed().tolist()
        n = max(samples, 1.0)
        return {"loss": loss / n, "top1": 100 * top1 / n, "top5": 100 * top5 / n, "samples": samples}


class FiringRates:
    """Mean spikes per neuron and timestep of each spiking layer, over every sample that passed.

    The rate is the sum of the layer's output over T, batch and positions, over their number. Neurons count their spikes
    themselves, inside their kernels.
    """

    def __init__(self, layers: dict[str, LIF], device: torch.device | str):
        self.names = list(layers)
        self._layers = layers
        self._spikes = torch.zeros(len(self.names), 1, dtype=torch.int64, device=device)
        self._neurons = [0] * len(self.names)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "FiringRates":
        for index, layer in enumerate(self._layers.values()):
            layer.spike_count = self._spikes[index]
            self._handles.append(layer.register_forward_hook(self._hook(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers.values():
            layer.spike_count = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, index: int):
        def add(_module: nn.Module, _inputs: tuple, spikes: Tensor) -> None:
            self._neurons[index] += spikes.numel()

        return add

    def counts(self) -> dict[str, tuple[int, int]]:
        """Layer name to spikes, and to neurons times timesteps that could have, over all ranks; collective."""
        neurons = torch.tensor(self._neurons, dtype=torch.int64).to(self._spikes.device)
        spikes, total = sum_over_ranks(torch.stack([self._spikes[:, 0], neurons])).tolist()
        return {name: (s, n) for name, s, n in zip(self.names, spikes, total, strict=True)}


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
