"""Spikes of every neuron by timestep, and the inputs of every operation, over a whole set.

Every measured point has one tensor on the device that each batch is added to: the sum over samples, [T, C, H, W]. Rates by
timestep, dead neurons and the energy ledger all follow from these sums. They are whole numbers below 2^24, which float32 holds
exactly: whatever the batches and workers, the same samples give the same sums.

Points: the spiking layers by their names (embed.0, blocks.0.attn.q, ...), and where an operation reads something else,

    embed.0.pooled         what the next convolution reads
    blocks.0.attn.query    q as attention reads it (pooled in event mode)
    blocks.0.attn.pairs    additions of K^T V: pairs of a k and a v that spike at the same token (of a head), [T]
    blocks.0.attn.mixed    what the projection reads (0, 1 or 2 in event mode; mixed_nonzero, [T], counts those above 0)

Validation in training wants totals alone, which cost less: `spikes.SpikeTotals`. B batch, T timesteps.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from statten.metrics.spikes import totals, watch, with_own_spikes
from statten.models import Backbone


class SpikeMeter:
    """Measures while it is entered: `with SpikeMeter(model) as meter: model(x)`."""

    def __init__(self, model: Backbone):
        self.model = model
        self.sums: dict[str, Tensor] = {}
        """Sums over samples, by point; on the model's device, [T, 1, C H W] with C, H, W in the order that memory has them."""
        self._axes: dict[str, tuple[int, ...]] = {}  # that order
        self._shapes: dict[str, torch.Size] = {}
        self._ones: dict[tuple[int, torch.dtype], Tensor] = {}  # by batch
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "SpikeMeter":
        layers = {name: (layer, lambda _inputs, spikes: spikes) for name, layer in self.model.spiking_layers().items()}
        for name, (module, values) in {**layers, **self.model.derived_inputs()}.items():
            self._handles.append(watch(module, values, partial(self._add, name)))
        for prefix, core in self.model.attention_cores().items():
            core.pairs = self._total(f"{prefix}.pairs")
            if core.levels(self.model.config) == 2:  # what is mixed is 0, 1 or 2: above 0 where the mask is, and only there
                add = partial(self._count, f"{prefix}.mixed_nonzero")
                self._handles.append(watch(core, lambda inputs, _output: inputs[3], add))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for core in self.model.attention_cores().values():
            core.pairs = None

    def counts(self) -> dict[str, Tensor]:
        """The sums of all points on the CPU, those that are a spiking layer's own spikes included."""
        found = {name: self._ordered(name, value).cpu() for name, value in self.sums.items()}
        return with_own_spikes(found, self.model.attention_cores())

    def _add(self, name: str, x_TBCHW: Tensor) -> None:
        x = x_TBCHW if x_TBCHW.dtype == torch.float64 else x_TBCHW.float()
        if name not in self.sums:
            self._axes[name] = (0, 1, *sorted(range(2, x.ndim), key=lambda axis: (-x.stride()[axis], axis)))
            self._shapes[name] = torch.Size(x.shape[axis] for axis in self._axes[name][2:])
            self.sums[name] = x.new_zeros(len(x), 1, self._shapes[name].numel())
        ones = self._ones.get((x.shape[1], x.dtype))
        if ones is None:
            ones = self._ones[x.shape[1], x.dtype] = x.new_ones(len(x), 1, x.shape[1])
        # A product with ones, in memory's order: several times faster on CPUs than a sum over the second axis. In place, so
        # that autocast, which would round the sums, leaves it alone.
        self.sums[name].baddbmm_(ones, x.permute(self._axes[name]).flatten(2))

    def _ordered(self, name: str, value: Tensor) -> Tensor:
        """A sum as [T, C, H, W]."""
        if name not in self._axes:
            return value
        axes = self._axes[name]
        back = [0] + [axes.index(axis) - 1 for axis in range(2, len(axes))]
        return value.view(len(value), *self._shapes[name]).permute(back).contiguous().float()

    def _total(self, name: str) -> Tensor:
        """The sum of a point that is not counted by neuron, [T] float64."""
        if name not in self.sums:
            device = next(self.model.parameters()).device
            self.sums[name] = torch.zeros(self.model.timesteps, dtype=torch.float64, device=device)
        return self.sums[name]

    def _count(self, name: str, x_TBCHW: Tensor) -> None:
        self._total(name).add_(totals(x_TBCHW))
