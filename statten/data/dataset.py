"""What a dataset is: how many classes and channels, where its samples come from, how they are augmented."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from statten.config import Config


@dataclass(frozen=True)
class Samples:
    """All samples of a dataset, in memory and in their fixed order."""

    x: Tensor
    """Images [N, C, H, W] or clips [N, T, C, H, W]; any number type, background 0."""
    y: Tensor
    """Labels [N], int64."""


@dataclass(frozen=True)
class Dataset:
    """One entry of DATASETS."""

    classes: int
    """Number of labels, 0 to classes - 1."""
    channels: int
    """Channels C of a sample."""
    events: bool
    """Whether samples are event clips [T, C, H, W] and not images [C, H, W]."""
    size: int
    """Native height and width in pixels; samples come in `model.image_size` whatever it is."""
    load: Callable[[Config], Samples]
    """Builds all samples for a config; equal configs give the same object."""
    labels: Callable[[], np.ndarray]
    """Labels [N] alone, which is all that a split needs."""
    augment: Callable[[Tensor, int, int, np.ndarray], Tensor]
    """(x, seed, epoch, sample indices) -> x; every sample is changed by its own (seed, epoch, index)."""
    mean: float = 0.0
    """Subtracted from samples after augmentation."""
    std: float = 1.0
    """Samples are divided by it."""

    def batch(
        self, samples: Samples, indices: np.ndarray, augmented_by: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples at `indices` [B] as float32 x [B, ...] and int64 y [B]; `augmented_by` is (seed, epoch)."""
        at = torch.from_numpy(indices)
        x = samples.x[at]
        if augmented_by is not None:
            x = self.augment(x, *augmented_by, indices)
        x = x.to(torch.float32)
        # Normalised last, so that what augmentation moves in from outside is background.
        if (self.mean, self.std) != (0.0, 1.0):
            x = (x - self.mean) / self.std
        return x, samples.y[at]
