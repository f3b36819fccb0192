"""From a raw sample to the tensor that the model reads: images by timm's transforms, event clips by event_augment.py.

Random draws come only from Python's `random`, NumPy's global generator and torch's CPU generator, because timm and
torchvision draw from these. Whoever calls a transform seeds all three.

C channels, T frames, S = `model.image_size`.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from statten.config import Config
from statten.registry import DATASETS, load

Transform = Callable[[Any], Tensor]
"""Raw sample to float32 tensor."""


def sample_transform(config: Config, train: bool) -> Transform:
    """The transform of single samples.

    An image, an RGB `PIL.Image` of any size, becomes [3, S, S], normalised; a clip of event counts [T, 2, H, W], of any
    number type and size, becomes [T, 2, S, S], not normalised. Both float32.

    Args:
        config: `model.events` says which of the two.
        train: augment, unless `data.augment` is false; else resize and crop as in evaluation.
    """
    augmented = train and config.data.augment
    if not config.model.events:
        return image_transform(config, augmented)
    from statten.data.event_augment import EventTransform  # and torchvision, which takes a second

    return EventTransform(config, augmented)


def file_transform(config: Config) -> Transform:
    """`sample_transform` in validation, of datasets that are read from files."""
    return sample_transform(config, train=False)


def evaluation_transform(config: Config) -> Transform:
    """What makes a raw sample - an RGB image, or a clip of event counts - what the model reads in validation, float32."""
    return load(DATASETS[config.data.name].transform)(config)


def normalisation(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in `evaluation_transform`; event counts stay as they are."""
    if config.model.events:
        return (0.0,) * config.model.in_channels, (1.0,) * config.model.in_channels
    transform = evaluation_transform(config)
    return getattr(transform, "mean", config.data.mean), getattr(transform, "std", config.data.std)


def image_transform(config: Config, augmented: bool) -> Transform:
    """timm's transform: random crop, flip, policy or colour jitter and erasing, or resize and centre crop."""
    from timm.data import create_transform  # takes two seconds to import

    data = config.data
    return create_transform(
        config.model.image_size,
        is_training=augmented,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        hflip=data.hflip,
        color_jitter=data.color_jitter or None,
        auto_augment=data.auto_augment,
        re_prob=data.random_erasing,
        re_mode=data.random_erasing_mode,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        crop_pct=data.crop_pct,
    )
