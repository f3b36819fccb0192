"""Augmentation of event clips [T, 2, H, W]: every draw is made once and applied to all frames and both polarities.

What comes in from outside is 0, no events. The operations and their reach are those of the published code
(github.com/BICLab/Spike-Driven-Transformer, dvs_utils, on which STAtten builds); torchvision does the geometry.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine, hflip, resize, rotate

from statten.config import Config

ROLL = 3
"""Largest roll in x and in y, in pixels; what leaves on one side comes in on the other."""
DEGREES = 15.0
"""Largest rotation and largest shear of `roll_rotate_shear`."""
STRENGTHS = 31
"""Number of strengths of each operation of `trivial`, evenly spaced from minus to plus its largest."""


class EventTransform:
    """Event counts [T, 2, H, W] of any number type to float32 [T, 2, S, S]; the clip is resized first.

    Args:
        config: S is `model.image_size`; the rest are fields of `data`.
        augmented: also flip, augment and cut out.
    """

    def __init__(self, config: Config, augmented: bool):
        data, self.size = config.data, config.model.image_size
        self.interpolation = InterpolationMode(data.interpolation)
        self.hflip = data.hflip if augmented else 0.0
        self.augment = data.event_augment if augmented else "none"
        self.cutout = data.cutout if augmented else 0

    def __call__(self, clip: Tensor) -> Tensor:
        """The clip as the model reads it."""
        x = clip.to(torch.float32)
        if x.shape[-2:] != (self.size, self.size):
            # Without antialiasing, as published: half the size is the mean of 2 x 2 pixels.
            x = resize(x, [self.size, self.size], self.interpolation, antialias=False)
        if self.hflip and torch.rand(()) < self.hflip:
            x = hflip(x)
        x = AUGMENTATIONS[self.augment](x)
        return cut_out(x, self.cutout) if self.cutout else x


def roll_rotate_shear(x: Tensor) -> Tensor:
    """One of three, equally likely: roll by up to 3 pixels in x and y, rotate by up to 15 degrees, shear in x by up to 15."""
    choice = random.randrange(3)
    if choice == 0:
        return x.roll((random.randint(-ROLL, ROLL), random.randint(-ROLL, ROLL)), (-2, -1))
    degrees = random.uniform(-DEGREES, DEGREES)
    return rotate(x, degrees) if choice == 1 else _affine(x, shear=degrees)


def trivial(x: Tensor) -> Tensor:
    """TrivialAugment (Mueller, Hutter: ICCV 2021) with the operations of SNNAugmentWide: one of them at a random strength."""
    operation, reach = random.choice(TRIVIAL)
    return operation(x, reach * (2 * random.randrange(STRENGTHS) / (STRENGTHS - 1) - 1))


def cut_out(x: Tensor, side: int) -> Tensor:
    """Empty a square of `side` pixels whose centre is anywhere in the frame (DeVries, Taylor: Cutout, arXiv:1708.04552)."""
    (top, bottom), (left, right) = (_around(np.random.randint(n), side, n) for n in x.shape[-2:])
    x = x.clone()
    x[..., top:bottom, left:right] = 0
    return x


def _around(centre: int, side: int, n: int) -> tuple[int, int]:
    begin = centre - side // 2
    return max(0, begin), min(n, begin + side)


def _affine(x: Tensor, right: int = 0, down: int = 0, shear: float = 0.0) -> Tensor:
    return affine(x, angle=0.0, translate=[right, down], scale=1.0, shear=[shear, 0.0])


TRIVIAL: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
    (lambda x, _: x, 0.0),
    (lambda x, strength: _affine(x, shear=strength), math.degrees(0.3)),
    (lambda x, strength: _affine(x, right=int(strength)), 5.0),
    (lambda x, strength: _affine(x, down=int(strength)), 5.0),
    (rotate, 30.0),
]
"""Operations of `trivial` and their largest strength: nothing, shear in x (degrees), shifts (pixels), rotation (degrees)."""

AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "roll_rotate_shear": roll_rotate_shear,
    "trivial": trivial,
}
"""What `data.event_augment` names."""
