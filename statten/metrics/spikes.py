"""Firing rates, and the spikes that every operation's input has: summed on the device, over ranks before any division."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from statten.metrics.accuracy import sum_over_ranks
from statten.models import Backbone
from statten.models.attention import AttentionCore
from statten.models.backbones.base import Values
from statten.neurons import LIF


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

    def reduced(self) -> dict[str, float]:
        """Layer name to firing rate in spikes per neuron and timestep, over all ranks."""
        neurons = torch.tensor(self._neurons, dtype=torch.int64).to(self._spikes.device)
        spikes, total = sum_over_ranks(torch.stack([self._spikes[:, 0], neurons])).tolist()
        return {name: s / max(n, 1) for name, s, n in zip(self.names, spikes, total, strict=True)}


class SpikeTotals(FiringRates):
    """Firing rates, and with them how often every operation's input spikes: all that an energy ledger's total needs.

    The neurons' own spikes cost nothing more than their rates; pooled maps take a sum each, and attention's pairs one.
    """

    def __init__(self, model: Backbone, device: torch.device | str):
        super().__init__(model.spiking_layers(), device)
        self._model = model
        self._derived = model.derived_inputs()
        self._cores = model.attention_cores()
        self._sums = torch.zeros(len(self._derived) + 1, dtype=torch.float64, device=device)  # the last: samples
        self._pairs = torch.zeros(len(self._cores), model.timesteps, dtype=torch.float64, device=device)

    def __enter__(self) -> "SpikeTotals":
        super().__enter__()
        for sums, (module, values) in zip(self._sums, self._derived.values(), strict=False):
            self._handles.append(watch(module, values, partial(self._add, sums)))
        for pairs, core in zip(self._pairs, self._cores.values(), strict=True):
            core.pairs = pairs
        self._handles.append(self._model.register_forward_pre_hook(self._samples))
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for core in self._cores.values():
            core.pairs = None

    def _add(self, sums: Tensor, x_TBCHW: Tensor) -> None:
        sums += totals(x_TBCHW).sum()

    def _samples(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._sums[-1] += len(inputs[0])

    def inputs(self) -> tuple[dict[str, Tensor], int]:
        """Spikes at every point of `Backbone.operations`, float64 [], and the samples that gave them; over all ranks."""
        found = torch.cat([self._spikes[:, 0].double(), self._sums[:-1], self._pairs.sum(1), self._sums[-1:]])
        *values, samples = sum_over_ranks(found).cpu()
        names = [*self.names, *self._derived, *(f"{prefix}.pairs" for prefix in self._cores)]
        return with_own_spikes(dict(zip(names, values, strict=True)), self._cores), int(samples)


def with_own_spikes(measured: dict[str, Tensor], cores: Mapping[str, AttentionCore]) -> dict[str, Tensor]:
    """The same with the points at attention that are a layer's own spikes."""
    for prefix, core in cores.items():
        for point, layer in (("query", "q"), ("mixed", core.neuron_name)):
            if f"{prefix}.{point}" not in measured and f"{prefix}.{layer}" in measured:
                measured[f"{prefix}.{point}"] = measured[f"{prefix}.{layer}"]
    return measured


def watch(module: nn.Module, values: Values, add: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `add` with what is measured at a module, after each of its forwards."""
    return module.register_forward_hook(lambda _module, inputs, output: add(values(inputs, output)))


def totals(x_TBCHW: Tensor) -> Tensor:
    """Sum of a batch's counts by timestep, float64 [T]; each sample's is below 2^24, where float32 is exact."""
    per_sample = x_TBCHW.sum(
        tuple(range(2, x_TBCHW.ndim)), dtype=torch.float64 if x_TBCHW.dtype == torch.float64 else torch.float32
    )
    return per_sample.sum(1, dtype=torch.float64)
