"""What a supernet trains: in every step the network of one point of the space, cut out of the weights of the largest.

The point is a function of (seed, epoch, step) alone, so all ranks draw the same, and a resumed run goes on with the same steps.
What was not drawn is not touched: neither weights nor the optimizer's averages of them move, whatever decays. Every gradient
is averaged over ranks all the same, zeros of what was not drawn among them.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn

from statten.config import Config, ModelConfig
from statten.data import Loaders
from statten.metrics.accuracy import is_distributed
from statten.metrics.inference import autocast, recalibrate
from statten.models import BACKBONES, Backbone
from statten.models.slices import drawn, extract, hollow, shapes, sliced_call
from statten.space.space import Point, Space
from statten.training.loop import stream, validate

CALIBRATION = 8
"""Training batches from which a point's BatchNorm statistics are found."""
_PURPOSE = 0x5355504E
"""Keeps the draws of points apart from the other random numbers of a step."""


class Subnetworks:
    """The parts of a network that are the points of a space: `statten.training.loop.Parts`.

    Args:
        network: of the largest size.
        space: what is drawn from; its config at every point must be that of a slice.
        config: of the largest size.
        watched: points that every epoch is judged by, by what they are called.
    """

    def __init__(self, network: Backbone, space: Space, config: Config, watched: Mapping[str, Point]):
        self._network, self._space, self._seed, self._watched = network, space, config.train.seed, watched
        self._backend = config.scale.neuron_backend
        self._configs: dict[str, ModelConfig] = {}
        self._hollow: dict[ModelConfig, Backbone] = {}
        self._masks: dict[tuple[str, torch.Size], Tensor] = {}
        self.inner: Backbone | None = None
        """The part that was drawn, without weights."""

    def module(self) -> nn.Module:
        """As `Parts.module`."""
        return _Running(self._network, self)

    def point(self, epoch: int, step: int) -> Point:
        """The point of a step."""
        return self._space.random_point(random.Random(stream(self._seed, _PURPOSE, epoch, step)))

    def draw(self, epoch: int, step: int) -> None:
        """As `Parts.draw`."""
        self.inner = self._at(self.point(epoch, step)).train()

    def _at(self, point: Point) -> Backbone:
        key = str(sorted(point.items()))
        if key not in self._configs:
            self._configs[key] = self._space.config(point).model
        config = self._configs[key]
        # T and b own no weights: one network runs at all of them.
        same = config.model_copy(update={"timesteps": 1, "block_size": 1})
        if same not in self._hollow:
            self._hollow[same] = hollow(config, self._backend)
        self._hollow[same].set_timesteps(config.timesteps, config.block_size)
        return self._hollow[same]

    @contextmanager
    def moving(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """As `Parts.moving`: where a weight is not drawn, it goes back to what it was, and its averages do."""
        assert self.inner is not None, "nothing was drawn"
        wanted, before = shapes(self.inner), []
        for name, weight in self._network.named_parameters():
            if name in wanted and wanted[name] != weight.shape:
                held = [value for value in optimizer.state.get(weight, {}).values() if _is_like(value, weight)]
                before.append((self._mask(name, weight, wanted[name]), weight, [v.detach().clone() for v in (weight, *held)]))
        yield
        with torch.no_grad():
            for mask, weight, (old, *averages) in before:
                weight.copy_(torch.where(mask, weight, old))
                held = [value for value in optimizer.state[weight].values() if _is_like(value, weight)]
                for value, average in zip(held, averages or [torch.zeros_like(value) for value in held], strict=True):
                    value.copy_(torch.where(mask, value, average))

    def _mask(self, name: str, weight: Tensor, shape: torch.Size) -> Tensor:
        if (name, shape) not in self._masks:
            self._masks[name, shape] = drawn(name, weight, shape, BACKBONES[self._network.config.backbone].sliced or {})
        return self._masks[name, shape]

    def validate(self, model: nn.Module, loaders: Loaders, config: Config) -> dict[str, float]:
        """As `Parts.validate`: the watched points one after the other, each with BatchNorm statistics of its own.

        Returns:
            `val/loss`, `val/top1`, `val/top5` and `energy_uj`, means over the points, and of each `NAME/loss`, `NAME/top1`.
        """
        state, found, rows = model.state_dict(), dict[str, float](), []
        unread = dict(loaders.train.corrupt)  # of the epoch; finding statistics counts anew
        for name, point in self._watched.items():
            at = self._space.config(point)
            row = validate(ready(state, at, loaders, next(model.parameters()).device), loaders.validation, at)
            rows.append(row)
            found |= {f"{name}/{metric}": row[f"val/{metric}"] for metric in ("loss", "top1")}
        loaders.train.corrupt.clear()
        loaders.train.corrupt.update(unread)
        means = {
            metric: sum(row[metric] for row in rows) / len(rows) for metric in ("val/loss", "val/top1", "val/top5", "energy_uj")
        }
        return {**means, **found}


class _Running(nn.Module):
    """The network, of which a forward pass uses the part that was drawn."""

    def __init__(self, network: Backbone, parts: Subnetworks):
        super().__init__()
        self.network, self._parts = network, parts

    def forward(self, x: Tensor) -> Tensor:
        assert self._parts.inner is not None, "nothing was drawn"
        return sliced_call(self._parts.inner, self.network, x)


def _is_like(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape and value.ndim > 0


def ready(state: Mapping[str, Tensor], config: Config, loaders: Loaders, device: torch.device) -> Backbone:
    """The network of a config with its slice of a larger one's weights, whose BatchNorm has seen CALIBRATION training batches.

    Args:
        state: the larger network's state_dict.
        config: of the point.
        loaders: of its data; with several ranks each sees its own batches, and statistics are averaged.
        device: where it is.
    """
    network = hollow(config.model, config.scale.neuron_backend)
    network.load_state_dict(extract(state, config.model), assign=True)
    network.to(device).requires_grad_(False)
    with autocast(config, device):
        recalibrate(network, (images for images, _ in itertools.islice(loaders.train.batches(0), CALIBRATION)))
    if is_distributed():
        distribute_bn(network, dist.get_world_size(), reduce=True)
    return network
