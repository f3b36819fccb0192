"""Augmentation of whole batches. Every sample has its own draw, a function of (seed, epoch, sample index) alone.

B batch, T frames, C channels, H height, W width.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from statten.data.counter import uniform

SHIFT = 1 / 8
"""Largest shift, as a share of the image size."""
ROTATION = 10.0
"""Largest rotation of an image, in degrees."""
SCALE = 0.1
"""An image is scaled by 1 - SCALE to 1 + SCALE."""


def augment_images(x_BCHW: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Shift, rotate and scale each image [B, C, H, W] about its centre, bilinearly; what comes in from outside is 0."""
    draws = 2 * uniform("augment", seed, epoch, indices, 4) - 1
    # In float64: the last bit of a sine can depend on its place in the batch, that of the rounded float32 does not.
    angle, scale = np.radians(ROTATION * draws[0]), 1 + SCALE * draws[1]
    inverse = np.stack([np.cos(angle) / scale, np.sin(angle) / scale, 2 * SHIFT * draws[2], 2 * SHIFT * draws[3]])
    return affine(x_BCHW, torch.from_numpy(inverse).to(x_BCHW.dtype))


def affine(x_BCHW: Tensor, inverse: Tensor) -> Tensor:
    """Resample each image under a similarity.

    Args:
        x_BCHW: images [B, C, H, W].
        inverse: [4, B], rows cos(angle) / scale, sin(angle) / scale, shift right and shift down in halves of the image.
    """
    cos, sin, right, down = (row[:, None, None] for row in inverse)
    height, width = x_BCHW.shape[-2:]
    # Pixel centres in [-1, 1], as grid_sample counts them with align_corners=False.
    y = ((2 * torch.arange(height, dtype=x_BCHW.dtype) + 1) / height - 1)[:, None] - down
    x = ((2 * torch.arange(width, dtype=x_BCHW.dtype) + 1) / width - 1)[None, :] - right
    # Angles are those of a square image; a product and a sum round the same in every batch, a matrix product may not.
    grid = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def augment_clips(x_BTCHW: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Shift each event clip [B, T, C, H, W] by whole pixels, all frames alike; what comes in from outside is 0."""
    reach = math.floor(SHIFT * x_BTCHW.shape[-1])
    draws = np.floor((2 * reach + 1) * uniform("augment", seed, epoch, indices, 2)).astype(np.int64) - reach
    return shift(x_BTCHW, *torch.from_numpy(draws))


def shift(x_BTCHW: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Shift clips [B, T, C, H, W] by `right` [B] and `down` [B] whole pixels, without wrap-around."""
    batch, _, _, height, width = x_BTCHW.shape
    margin = int(max(right.abs().max(), down.abs().max())) if batch else 0
    if margin == 0:
        return x_BTCHW
    padded = F.pad(x_BTCHW, (margin, margin, margin, margin))
    rows = torch.arange(height) + margin - down[:, None]
    columns = torch.arange(width) + margin - right[:, None]
    picked_BHWTC = padded[torch.arange(batch)[:, None, None], :, :, rows[:, :, None], columns[:, None, :]]
    return picked_BHWTC.permute(0, 3, 4, 1, 2).contiguous()
