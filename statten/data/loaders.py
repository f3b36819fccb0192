"""Batches by index: which samples a step reads is a function of (seed, epoch, step, rank), and so is what they look like.

So there is no sampler state to save: a resumed run names its epoch and step. With `data.workers` processes the same
function runs there instead of here.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from statten.data.counter import hashed
from statten.data.dataset import CorruptSample, Loaded, Source
from statten.data.order import Order, shuffled, shuffled_shards

log = logging.getLogger("statten")

Batch = tuple[Tensor, Tensor]
"""x, float32 [B, C, H, W] or [B, T, C, H, W], and y, int64 [B]."""
SPARES = 100
"""How often in a row a batch may draw further samples for those that cannot be read."""


class _Batches(torch.utils.data.Dataset):
    """Maps a key to a batch; keys are made in this process, batches here or in loader processes."""

    def __init__(self, workers: int, pin_memory: bool, skip_corrupt: bool):
        self._workers, self._pin_memory, self._skip_corrupt = workers, pin_memory, skip_corrupt
        self._keys: list[Any] = []
        self._loader: torch.utils.data.DataLoader | None = None
        self.corrupt: dict[int, str] = {}
        """Index and sentence of the samples that this rank could not read in the pass that runs or ran last."""

    def __getitem__(self, key: Any) -> Loaded:
        raise NotImplementedError

    def _iterate(self, keys: list[Any]) -> Iterator[Batch]:
        self.corrupt.clear()
        for x, y, corrupt in self._loaded(keys):
            for index, sentence in corrupt:
                if not self._skip_corrupt:
                    raise CorruptSample(sentence)
                if index not in self.corrupt:
                    log.warning("left out: %s", sentence)
                self.corrupt[index] = sentence
            if len(y):
                yield x, y

    def _loaded(self, keys: list[Any]) -> Iterator[Loaded]:
        if self._workers == 0:
            return map(self.__getitem__, keys)
        self._keys[:] = keys
        if self._loader is None:
            self._loader = torch.utils.data.DataLoader(
                # A copy: in a cycle the loader's queues may be closed before it asks its processes to end.
                copy.copy(self),
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
    """Training batches of one rank, equally many on all ranks; `order.py` says which."""

    def __init__(
        self, source: Source, indices: np.ndarray, *, batch_size: int, seed: int, augment: bool = True, repeats: int = 1,
        window: int = 4096, rank: int = 0, world_size: int = 1, workers: int = 0, pin_memory: bool = False,
        skip_corrupt: bool = False,
    ):  # fmt: skip
        super().__init__(workers, pin_memory, skip_corrupt)
        self._source, self._indices, self._seed, self._augment = source, indices, seed, augment
        self._batch_size, self._window, self.rank, self.world_size = batch_size, window, rank, world_size
        self._share = {"batch_size": batch_size, "rank": rank, "world_size": world_size, "repeats": repeats}
        self._order: tuple[int, Order] | None = None
        self.steps_per_epoch = len(indices) // (batch_size * world_size)
        """Steps of an epoch, the same on all ranks."""
        self.samples_per_epoch = self.steps_per_epoch * batch_size
        """Samples that this rank reads in an epoch."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on."""
        return self._iterate([(epoch, step) for step in range(start_step, self.steps_per_epoch)])

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> Loaded:
        epoch, step = key
        order = self._order_of(epoch, step)
        at = slice(step * self._batch_size, (step + 1) * self._batch_size)
        if len(order.stream):
            # A window ahead of what is read, so that the disk reads shards from begin to end while samples come from memory.
            begin, end = (i * len(order.stream) // len(order.samples) for i in (at.start, at.stop))
            self._source.expect(order.stream[begin + self._window : end + self._window])
        augmented_by = (self._seed, epoch) if self._augment else None
        loaded = self._source.batch(order.samples[at], augmented_by, order.repeats[at])
        if loaded.corrupt and self._skip_corrupt:
            return self._filled(loaded, epoch, step)
        return loaded

    def _order_of(self, epoch: int, step: int) -> Order:
        if self._order is None or self._order[0] != epoch:
            if self._source.shards is None:
                order = shuffled(self._indices, self._seed, epoch, **self._share)
            else:
                order = shuffled_shards(
                    self._indices, self._source.shards, self._seed, epoch, window=self._window, **self._share
                )
                begin = step * self._batch_size * len(order.stream) // max(1, len(order.samples))
                self._source.expect(order.stream[begin // self._window * self._window : begin + self._window])
            self._order = epoch, order
        return self._order[1]

    def _filled(self, loaded: Loaded, epoch: int, step: int) -> Loaded:
        """A batch with other samples of the training part in the place of those that cannot be read."""
        for spare in range(SPARES):
            missing = self._batch_size - len(loaded.y)
            if not missing:
                return loaded
            draws = hashed("spare", self._seed, epoch, step, self.rank, spare, np.arange(missing))
            indices = self._indices[(draws % np.uint64(len(self._indices))).astype(np.int64)]
            # Repeats from SPARES on: a draw of its own, should the sample be in the epoch too.
            more = self._source.batch(indices, (self._seed, epoch) if self._augment else None, np.full(missing, SPARES + spare))
            x = torch.cat([part for part in (loaded.x, more.x) if len(part)] or [loaded.x])
            # Corrupt spares are counted by the rank that reads them in their turn.
            loaded = Loaded(x, torch.cat([loaded.y, more.y]), loaded.corrupt)
        raise CorruptSample(f"hardly any file can be read, such as {loaded.corrupt[-1][1]}")


class EvalLoader(_Batches):
    """Validation or test batches of one rank: each sample on one rank and once, the last batch smaller.

    Ranks take turns with samples, and with shards a stretch each.
    """

    def __init__(
        self, source: Source, indices: np.ndarray, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0,
        pin_memory: bool = False, skip_corrupt: bool = False,
    ):  # fmt: skip
        super().__init__(workers, pin_memory, skip_corrupt)
        self._source, self._batch_size = source, batch_size
        self.indices = indices[rank::world_size] if source.shards is None else np.array_split(indices, world_size)[rank]
        """The samples that this rank reads, in the order of its batches; those in `corrupt` are left out."""
        self.samples = len(self.indices)
        """Samples that this rank reads."""
        self.total = len(indices)
        """Samples that all ranks read together."""

    def __len__(self) -> int:
        return -(-self.samples // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._iterate(list(range(len(self))))

    def __getitem__(self, key: int) -> Loaded:
        return self._source.batch(self.indices[key * self._batch_size : (key + 1) * self._batch_size])


@dataclass(frozen=True)
class Loaders:
    """What a training worker reads."""

    train: TrainLoader
    validation: EvalLoader
    others: tuple[TrainLoader, ...] = ()
    """Further shares of the training batches, where there are fewer workers than shares."""
    classes: tuple[str, ...] = ()
    """Name of each label."""

    @property
    def shares(self) -> tuple[TrainLoader, ...]:
        """Everything that this worker trains on; a step takes a batch of each."""
        return (self.train, *self.others)

    @property
    def corrupt(self) -> int:
        """Samples that this rank could not read in its last passes over both parts."""
        return sum(len(share.corrupt) for share in self.shares) + len(self.validation.corrupt)
