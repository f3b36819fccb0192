"""Batches by index: which samples a step reads is a function of (seed, epoch, step, rank), and so is what they look like.

So there is no sampler state to save: a resumed run names its epoch and step. With `data.workers` processes the same
function runs there instead of here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from statten.data.counter import permutation
from statten.data.dataset import Dataset, Samples

Batch = tuple[Tensor, Tensor]
"""x, float32 [B, C, H, W] or [B, T, C, H, W], and y, int64 [B]."""


class _Batches(torch.utils.data.Dataset):
    """Maps a key to a batch; keys are made in this process, batches here or in loader processes."""

    def __init__(self, workers: int, pin_memory: bool):
        self._workers, self._pin_memory = workers, pin_memory
        self._keys: list[Any] = []
        self._loader: torch.utils.data.DataLoader | None = None

    def __getitem__(self, key: Any) -> Batch:
        raise NotImplementedError

    def _iterate(self, keys: list[Any]) -> Iterator[Batch]:
        if self._workers == 0:
            return map(self.__getitem__, keys)
        self._keys[:] = keys
        if self._loader is None:
            self._loader = torch.utils.data.DataLoader(
                self,
                batch_size=None,  # an item is a batch already
                sampler=self._keys,
                num_workers=self._workers,
                persistent_workers=True,
                pin_memory=self._pin_memory,
                generator=torch.Generator(),  # else every epoch would draw from the training's random numbers
            )
        return iter(self._loader)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None, "_keys": []}


class TrainLoader(_Batches):
    """Training batches of one rank.

    All ranks know the same order of all samples. Step s reads its s-th `batch_size * world_size` samples, of which rank r
    has the r-th `batch_size`. What is left over at the end is left out in this epoch, so all ranks have equally many steps.
    """

    def __init__(
        self, dataset: Dataset, samples: Samples, indices: np.ndarray, *, batch_size: int, seed: int, augment: bool,
        rank: int = 0, world_size: int = 1, workers: int = 0, pin_memory: bool = False,
    ):  # fmt: skip
        super().__init__(workers, pin_memory)
        self._dataset, self._samples, self._indices = dataset, samples, indices
        self._batch_size, self._seed, self._augment, self._rank, self._world_size = batch_size, seed, augment, rank, world_size
        self._order: tuple[int, np.ndarray] | None = None
        self.steps_per_epoch = len(indices) // (batch_size * world_size)
        """Steps of an epoch, the same on all ranks."""
        self.samples_per_epoch = self.steps_per_epoch * batch_size
        """Samples that this rank reads in an epoch."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on."""
        return self._iterate([(epoch, step) for step in range(start_step, self.steps_per_epoch)])

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, step = key
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation("order", self._seed, epoch, len(self._indices))
        begin = (step * self._world_size + self._rank) * self._batch_size
        indices = self._indices[self._order[1][begin : begin + self._batch_size]]
        return self._dataset.batch(self._samples, indices, (self._seed, epoch) if self._augment else None)


class EvalLoader(_Batches):
    """Validation or test batches of one rank: every `world_size`-th sample, each once, the last batch smaller."""

    def __init__(
        self, dataset: Dataset, samples: Samples, indices: np.ndarray, *, batch_size: int,
        rank: int = 0, world_size: int = 1, workers: int = 0, pin_memory: bool = False,
    ):  # fmt: skip
        super().__init__(workers, pin_memory)
        self._dataset, self._samples, self._batch_size = dataset, samples, batch_size
        self._indices = indices[rank::world_size]
        self.samples = len(self._indices)
        """Samples that this rank reads."""
        self.total = len(indices)
        """Samples that all ranks read together."""

    def __len__(self) -> int:
        return -(-self.samples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._iterate(list(range(len(self))))

    def __getitem__(self, key: int) -> Batch:
        return self._dataset.batch(self._samples, self._indices[key * self._batch_size : (key + 1) * self._batch_size])


@dataclass(frozen=True)
class Loaders:
    """What a training worker reads."""

    train: TrainLoader
    validation: EvalLoader
