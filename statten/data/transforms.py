"""From a raw sample to what the model takes."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from statten.config import Config


def sample_transform(config: Config, train: bool) -> Callable[[Image.Image | Tensor], Tensor]:
    """Resize to `model.image_size` and scale to [-1, 1] (images) or leave counts as they are (clips)."""
    size = config.model.image_size

    def image(raw: Image.Image) -> Tensor:
        resized = raw.resize((size, size), Image.Resampling.BICUBIC)
        x = (torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 127.5 - 1).contiguous()
        return x.flip(2) if train and config.data.augment and torch.rand(()) < 0.5 else x

    def clip(raw: Tensor) -> Tensor:
        x = F.interpolate(raw.float(), size=(size, size), mode="bilinear", align_corners=False)
        return x.roll(int(np.random.randint(-3, 4)), 3) if train and config.data.augment else x

    return clip if config.model.events else image  # type: ignore[return-value]
