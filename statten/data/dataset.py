"""What a dataset is once it is opened: a source that makes batches. To add one: a file with a function that opens it, and its
line in `statten.registry`.

B batch, T frames, C channels, H height, W width, S model.image_size.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from statten.config import Config
from statten.data.counter import hashed
from statten.errors import Failed

RawSample = Image.Image | Tensor
"""An RGB image, or an event clip [T, 2, H, W] of whole numbers; of native size."""
Transform = Callable[[RawSample], Tensor]
"""Makes a raw sample the float32 tensor [3, S, S] or [T, 2, S, S]."""


class CorruptSample(Failed):
    """A sample cannot be read; the message names its file."""


class Damaged(Exception):
    """Why the content of a file is not what its format says."""


class Loaded(NamedTuple):
    """A batch as a loader process hands it over."""

    x: Tensor
    y: Tensor
    corrupt: list[tuple[int, str]]
    """Index and sentence of each sample that could not be read, and is missing."""


class Source(ABC):
    """An opened dataset: the labels of its samples in their fixed order, and how a batch of them is made."""

    classes: Sequence[str]
    """Name of each label."""
    labels: np.ndarray
    """Label of every sample [N], int64."""
    validation: np.ndarray | None = None
    """Indices of the validation part that the dataset comes with beside a test part; None where it comes without one."""
    test: np.ndarray | None = None
    """Indices of the test part that the dataset comes with; None where it comes without one."""
    shards: np.ndarray | None = None
    """Number of the tar shard that holds each sample [N]; None where samples are read in any order at the same cost."""

    @abstractmethod
    def batch(
        self, indices: np.ndarray, augmented_by: tuple[int, int] | None = None, repeats: np.ndarray | None = None
    ) -> Loaded:
        """Read samples.

        Args:
            indices: their indices [B].
            augmented_by: (seed, epoch) of a training batch.
            repeats: how often each sample came before in this epoch [B]; None means never.
        """

    def expect(self, indices: np.ndarray) -> None:  # noqa: B027 - a hint that most sources have no use for
        """Say which samples, neighbours on disk, will be read soon."""


@dataclass(frozen=True)
class Samples:
    """All samples of a dataset, in memory and in their fixed order."""

    x: Tensor
    """Images [N, C, H, W] or clips [N, T, C, H, W]; any number type, background 0."""
    y: Tensor
    """Labels [N], int64."""


class InMemory(Source):
    """Samples that are small enough to be augmented and normalised as whole batches."""

    def __init__(
        self,
        labels: np.ndarray,
        load: Callable[[], Samples],
        augment: Callable[[Tensor, int, int, np.ndarray], Tensor] | None,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        """
        Args:
            labels: [N]; all that a split needs.
            load: gives the samples; called when the first batch is read.
            augment: (x, seed, epoch, sample indices) -> x; every sample is changed by its own (seed, epoch, index).
            mean: subtracted from samples after augmentation.
            std: samples are divided by it.
        """
        self.labels, self.classes = labels, [str(label) for label in np.unique(labels)]
        self._load, self._augment, self._mean, self._std = load, augment, mean, std

    def batch(
        self, indices: np.ndarray, augmented_by: tuple[int, int] | None = None, repeats: np.ndarray | None = None
    ) -> Loaded:
        samples, at = self._load(), torch.from_numpy(indices)
        x = samples.x[at]
        if augmented_by is not None and self._augment is not None:
            seed, epoch = augmented_by
            # An own index for each repeat, so that it has an own draw.
            drawn = indices if repeats is None else indices + repeats * len(self.labels)
            x = self._augment(x, seed, epoch, drawn)
        x = x.to(torch.float32)
        # Normalised last, so that what augmentation moves in from outside is background.
        if (self._mean, self._std) != (0.0, 1.0):
            x = (x - self._mean) / self._std
        return Loaded(x, samples.y[at], [])


class Files(Source):
    """Samples that are read one by one and transformed by `sample_transform`."""

    layout: str
    """What holds them."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """What lies there and is no sample, and how often."""

    def __init__(
        self, config: Config, classes: Sequence[str], labels: np.ndarray, test: np.ndarray | None,
        validation: np.ndarray | None = None,
    ):  # fmt: skip
        self.classes, self.labels, self.test, self.validation = classes, labels, test, validation
        self._config = config
        self._transforms: dict[bool, Transform] = {}

    @abstractmethod
    def read(self, index: int) -> RawSample:
        """One raw sample; raises Damaged or OSError."""

    @abstractmethod
    def locate(self, index: int) -> str:
        """The file of a sample, for messages."""

    def checked(self, index: int) -> RawSample:
        """One raw sample; raises CorruptSample with the file's name."""
        try:
            return self.read(index)
        except (Damaged, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CorruptSample(f"{self.locate(index)}: cannot be read: {reason}") from None

    def batch(
        self, indices: np.ndarray, augmented_by: tuple[int, int] | None = None, repeats: np.ndarray | None = None
    ) -> Loaded:
        transform = self._transform(augmented_by is not None)
        seeds = None
        if augmented_by is not None:
            seeds = hashed("sample", *augmented_by, indices, np.zeros_like(indices) if repeats is None else repeats)
        rows: list[tuple[int, Tensor]] = []
        corrupt = []
        with _generators_kept():
            for row in np.argsort(indices, kind="stable").tolist():  # forwards on disk
                try:
                    raw = self.checked(int(indices[row]))
                except CorruptSample as error:
                    corrupt.append((int(indices[row]), str(error)))
                    continue
                if seeds is not None:
                    _seed_generators(int(seeds[row]))
                rows.append((row, transform(raw)))
        rows.sort(key=lambda pair: pair[0])
        return Loaded(_stack([x for _, x in rows]), torch.from_numpy(self.labels[indices[[row for row, _ in rows]]]), corrupt)

    def _transform(self, train: bool) -> Transform:
        if train not in self._transforms:
            from statten.data.transforms import sample_transform

            self._transforms[train] = sample_transform(self._config, train=train)
        return self._transforms[train]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_transforms": {}}


def _stack(samples: list[Tensor]) -> Tensor:
    """Stack samples; in a loader process straight into the memory that the training process will read."""
    if not samples:
        return torch.empty(0)
    if torch.utils.data.get_worker_info() is None:
        return torch.stack(samples)
    return torch.utils.data.default_collate(samples)


class _generators_kept:
    """The three generators that transforms draw from are as before when this closes."""

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def __exit__(self, *_: object) -> None:
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        torch.set_rng_state(self._states[2])


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)  # torch.manual_seed would reach the GPU's too
