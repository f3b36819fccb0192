"""The 1,797 handwritten digits that ship with scikit-learn (UCI: Optical Recognition of Handwritten Digits, test part)."""

from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from statten.config import Config
from statten.data.augment import augment_images
from statten.data.dataset import InMemory, Samples

MEAN, STD = 0.305, 0.376
"""Of ink over all pixels, the same to two digits in the training part of every split: constants, so that a checkpoint reads the
same input whatever part it was trained on."""


@lru_cache(maxsize=1)
def _raw() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8) / 16.0, labels.astype(np.int64)


def digit_images() -> Tensor:
    """Ink [N, 8, 8], float64 from 0 (paper) to 1."""
    return torch.from_numpy(_raw()[0])


def digit_labels() -> np.ndarray:
    """Labels [N], int64."""
    return _raw()[1]


@lru_cache(maxsize=4)
def _build(size: int) -> Samples:
    x = _resized(digit_images()[:, None].to(torch.float32), size)
    return Samples(x.contiguous(), torch.from_numpy(digit_labels()))


def _resized(x_NCHW: Tensor, size: int) -> Tensor:
    if x_NCHW.shape[-2:] == (size, size):
        return x_NCHW
    return F.interpolate(x_NCHW, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def load(config: Config) -> Samples:
    """Images [N, 1, H, W], ink from 0 to 1, resized bilinearly to `model.image_size`."""
    return _build(config.model.image_size)


def open_digits(config: Config) -> InMemory:
    augment = augment_images if config.data.augment else None
    return InMemory(digit_labels(), partial(load, config), augment, mean=MEAN, std=STD)


class DigitTransform:
    """An image of a digit, bright ink on a dark ground, to what the model reads: float32 [1, S, S]."""

    mean, std = (MEAN,), (STD,)

    def __init__(self, config: Config):
        self.size = config.model.image_size

    def __call__(self, image: Image.Image) -> Tensor:
        """As `load` and the normalisation of `InMemory`, from ink of 8 bits."""
        ink = torch.from_numpy(np.asarray(image.convert("L")) / 255.0).to(torch.float32)
        return (_resized(ink[None, None], self.size)[0] - MEAN) / STD
