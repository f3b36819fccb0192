"""Mixing of whole batches into soft targets: mixup and CutMix by timm, EventMix for event clips.

A draw is a pure function of a key such as (seed, epoch, step, rank), so a resumed run mixes as one that never stopped;
the global generators are left as they were.

B batch, K classes, T frames, C channels, H height, W width, N Gaussians.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor

from statten.config import Config, TrainConfig

Key = tuple[int, int, int, int]
"""(seed, epoch, step, rank)."""


class Mixer(Protocol):
    """What `fit` calls with every batch."""

    def __call__(self, x: Tensor, y: Tensor, *, key: Key) -> tuple[Tensor, Tensor]:
        """Samples [B, ...] and labels [B] to mixed samples, perhaps in place, and soft, smoothed targets [B, K]."""


def make_mixer(config: Config) -> Mixer | None:
    """The mixer that `train` asks for, or None; from `train.mixup_off_epoch` on it only makes soft targets."""
    train, classes = config.train, config.model.num_classes
    if not train.mixes:
        return None
    return EventMix(train, classes) if train.eventmix else ImageMix(train, classes)


def is_on(train: TrainConfig, key: Key) -> bool:
    """Whether an epoch is one that mixes."""
    return not train.mixup_off_epoch or key[1] < train.mixup_off_epoch


class ImageMix:
    """Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019): sample i is mixed with sample B - 1 - i, by timm.

    Event clips [B, T, C, H, W] are mixed as images of T * C channels, so all frames are cut alike.
    """

    def __init__(self, train: TrainConfig, classes: int):
        self.train = train
        self.mixup = Mixup(
            mixup_alpha=train.mixup,
            cutmix_alpha=train.cutmix,
            prob=train.mixup_prob,
            switch_prob=train.mixup_switch_prob,
            mode=train.mixup_mode,
            label_smoothing=train.label_smoothing,
            num_classes=classes,
        )

    def __call__(self, x: Tensor, y: Tensor, *, key: Key) -> tuple[Tensor, Tensor]:
        """See Mixer. Where corrupt files left B odd, the last sample finds no partner and stays as it is."""
        self.mixup.mixup_enabled = is_on(self.train, key)
        paired = len(x) - len(x) % 2
        with numpy_seeded(key):
            mixed, target = self.mixup(x[:paired].flatten(1, -3), y[:paired])
        if paired < len(x):
            alone = mixup_target(y[paired:], self.mixup.num_classes, 1.0, self.train.label_smoothing)
            mixed, target = torch.cat([mixed, x[paired:].flatten(1, -3)]), torch.cat([target, alone])
        return mixed.view_as(x), target


class EventMix:
    """EventMix (Shen, Zhao, Zeng: Information Sciences 644, 2023): clip i keeps a random region, clip B - 1 - i fills the rest.

    The region is where the density of a mixture of N Gaussians over time and space is highest, and covers a share of all
    voxels that is drawn from Beta(alpha, alpha). Labels are weighted by the share of events that each clip contributes.
    """

    GAUSSIANS = 3
    """N of each mask."""
    WIDTHS = (0.1, 0.5)
    """Range of standard deviations along each axis, whose length is 1."""

    def __init__(self, train: TrainConfig, classes: int):
        self.train, self.classes = train, classes

    def __call__(self, x: Tensor, y: Tensor, *, key: Key) -> tuple[Tensor, Tensor]:
        """See Mixer; x is [B, T, C, H, W] of counts at least 0."""
        smoothing = self.train.label_smoothing
        if not is_on(self.train, key):
            return x, mixup_target(y, self.classes, 1.0, smoothing)
        batch, frames, _, height, width = x.shape
        draw = np.random.default_rng(key)
        mask = torch.from_numpy(self.masks(draw, batch, (frames, height, width)))[:, :, None]
        if x.is_cuda:  # a copy from pinned memory does not make the GPU wait
            mask = mask.pin_memory().to(x.device, non_blocking=True)
        other = x.flip(0)
        mixed = torch.where(mask, x, other)
        kept, total = (x * mask).flatten(1).sum(1), mixed.flatten(1).sum(1)
        # A mixture without a single event says nothing: the clip keeps its label.
        share = torch.where(total > 0, kept / total.clamp(min=1e-12), torch.ones_like(total))
        return mixed, mixup_target(y, self.classes, share[:, None], smoothing)

    def masks(self, draw: np.random.Generator, batch: int, shape: tuple[int, int, int]) -> np.ndarray:
        """True where a clip keeps its own events, bool [B, T, H, W]; all of it where a clip is not to be mixed."""
        shares = draw.beta(self.train.eventmix, self.train.eventmix, batch)
        shares[draw.random(batch) >= self.train.mixup_prob] = 1.0
        centres = draw.random((3, batch, self.GAUSSIANS))
        widths = draw.uniform(*self.WIDTHS, (3, batch, self.GAUSSIANS))
        along = [
            np.exp(-(((np.arange(n) + 0.5) / n - centre[..., None]) ** 2) / (2 * sigma[..., None] ** 2))
            for n, centre, sigma in zip(shape, centres, widths, strict=True)
        ]  # [B, N, n] for each axis
        density = np.einsum("bnt,bnh,bnw->bthw", *along).reshape(batch, -1)
        mask = np.zeros(density.shape, dtype=bool)
        for row, values, share in zip(mask, density, shares, strict=True):
            first = round((1 - share) * len(values))
            row[values.argpartition(min(first, len(values) - 1))[first:]] = True
        return mask.reshape(batch, *shape)


@contextmanager
def numpy_seeded(key: Key) -> Iterator[None]:
    """Seed NumPy's global generator, from which timm draws, by a key; the state before is restored."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(key).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)
