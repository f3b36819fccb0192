"""Spikes of every neuron by timestep, and the inputs of every operation, over a whole set.

Every measured point has one tensor on the device that each batch is added to: the sum over samples, [T, C, H, W]. Rates by
timestep, dead neurons and the energy ledger all follow from these sums. They are whole numbers below 2^24, which float32 holds
exactly: whatever the batches and workers, the same samples give the same sums.

Points: the spiking layers by their names (embed.0, blocks.0.attn.q, ...), and where an operation reads something else,

    embed.0.pooled         what the next convolution reads
    blocks.0.attn.query    q as attention reads it (pooled in event mode)
    blocks.0.attn.pairs    additions of K^T V: pairs of a k and a v that spike at the same token (of a head), [T]
    blocks.0.attn.mixed    what the projection reads (0, 1 or 2 in event mode; mixed_nonzero, [T], counts those above 0)

B batch, T timesteps, D embedding, h heads, N tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from statten.energy import operations
from statten.metrics import sum_over_ranks
from statten.models import STAttenTransformer


class SpikeMeter:
    """Measures while it is entered: `with SpikeMeter(model) as meter: model(x)`."""

    def __init__(self, model: STAttenTransformer, layers: bool = True):
        """`layers=False` leaves out the spiking layers' own spikes, which neurons can count themselves (FiringRates)."""
        self.model, self.layers = model, layers
        self.sums: dict[str, Tensor] = {}
        """Sums over samples, by point; on the model's device, [T, 1, C H W] with C, H, W in the order that memory has them."""
        self._axes: dict[str, tuple[int, ...]] = {}  # that order
        self._shapes: dict[str, torch.Size] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "SpikeMeter":
        model, c = self.model, self.model.config
        for name, layer in model.spiking_layers().items() if self.layers else ():
            self._after(layer, partial(self._add, name))
        for i in (0, 1, 2):
            if c.pooling[i] == "1":
                self._after(model.embed.pools[i], partial(self._add_frames, f"embed.{i}.pooled"))
        for i, block in enumerate(model.blocks):
            core, prefix = block.attn.core, f"blocks.{i}.attn"  # type: ignore[union-attr]
            self._handles.append(core.register_forward_pre_hook(self._reader(prefix)))  # type: ignore[union-attr]
            if c.attention == "sdsa":
                self._handles.append(core.lif.register_forward_pre_hook(self._agreement(prefix)))  # type: ignore[union-attr]
            if c.attention == "sdsa" or c.events:  # else the neuron's own spikes
                self._after(core, partial(self._add_mixed, f"{prefix}.mixed"))  # type: ignore[arg-type]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def counts(self) -> dict[str, Tensor]:
        """The sums of all points on the CPU, those that are a spiking layer's own spikes included."""
        found = {name: self._ordered(name, value).cpu() for name, value in self.sums.items()}
        for i in range(self.model.config.depth):
            prefix = f"blocks.{i}.attn"
            for point, layer in (("query", "q"), ("mixed", "out")):
                if f"{prefix}.{point}" not in found:
                    found[f"{prefix}.{point}"] = found[f"{prefix}.{layer}"]
        return found

    def totals(self, spikes: Mapping[str, float]) -> dict[str, float]:
        """Each point's sum over samples, timesteps and positions, over all ranks; collective.

        Args:
            spikes: those of the spiking layers over all ranks, by name, as FiringRates counts them.
        """
        c, found = self.model.config, dict(spikes)
        for point in sorted({op.point for op in operations(c) if op.point}):
            prefix, _, kind = point.rpartition(".")
            if kind == "query" and not c.events:
                found[point] = spikes[f"{prefix}.q"]
            elif kind == "mixed" and c.attention == "statten" and not c.events:
                found[point] = spikes[f"{prefix}.out"]
        device = next(self.model.parameters()).device
        rest = sorted({op.point for op in operations(c) if op.point} - set(found))
        sums = [self.sums[point].sum(dtype=torch.float64) if point in self.sums else torch.zeros((), dtype=torch.float64)
                for point in rest]  # fmt: skip
        summed = sum_over_ranks(torch.stack([value.to(device) for value in sums])).tolist() if rest else []
        return found | dict(zip(rest, summed, strict=True))

    def _add(self, name: str, x_TBCHW: Tensor) -> None:
        x = x_TBCHW if x_TBCHW.dtype == torch.float64 else x_TBCHW.float()
        if name not in self.sums:
            self._axes[name] = tuple(sorted(range(2, x.ndim), key=lambda axis: (-x.stride()[axis], axis)))
            self._shapes[name] = torch.Size(x.shape[axis] for axis in self._axes[name])
            self.sums[name] = x.new_zeros(len(x), 1, self._shapes[name].numel())
        # A product with ones, in memory's order: several times faster on CPUs than a sum over the second axis.
        flat = x.permute(0, 1, *self._axes[name]).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            self.sums[name].baddbmm_(x.new_ones(len(x), 1, x.shape[1]), flat)

    def _ordered(self, name: str, value: Tensor) -> Tensor:
        """A sum as [T, C, H, W]."""
        if name not in self._axes:
            return value
        axes = self._axes[name]
        back = [0] + [1 + axes.index(axis) for axis in range(2, 2 + len(axes))]
        return value.view(len(value), *self._shapes[name]).permute(back).contiguous().float()

    def _sum(self, name: str, value: Tensor) -> None:
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value.clone()

    def _after(self, module: nn.Module, add: Callable[[Tensor], None]) -> None:
        self._handles.append(module.register_forward_hook(lambda _module, _inputs, output: add(output)))

    def _add_frames(self, name: str, x: Tensor) -> None:
        self._add(name, x.unflatten(0, (self.model.timesteps, -1)))

    def _add_mixed(self, name: str, x_TBCHW: Tensor) -> None:
        self._add(name, x_TBCHW)
        if self.model.config.events and self.model.config.attention == "statten":  # 0, 1 or 2
            self._sum(f"{name}_nonzero", x_TBCHW.flatten(1).count_nonzero(1).double())

    def _reader(self, prefix: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        c = self.model.config

        def add(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            q, k, v = inputs[:3]
            if c.events:
                self._add(f"{prefix}.query", q)
            if c.attention == "statten":
                # Of each token, (spikes of k) x (spikes of v) additions in every head; a product sums the channels of heads.
                heads = torch.eye(c.num_heads, device=k.device).repeat_interleave(c.embed_dim // c.num_heads, 0)
                with torch.autocast(k.device.type, enabled=False):
                    k_heads, v_heads = (x.movedim(2, -1).float() @ heads for x in (k, v))
                self._sum(f"{prefix}.pairs", (k_heads * v_heads).flatten(1).sum(1, dtype=torch.float64))

        return add

    def _agreement(self, prefix: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._sum(f"{prefix}.pairs", inputs[0].flatten(1).sum(1, dtype=torch.float64))

        return add
