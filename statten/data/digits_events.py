"""Handwritten digits before a simulated event camera.

N-MNIST and N-Caltech101 were recorded by an event camera that makes three saccades along a triangle in front of a still
image (Orchard, Jayawant, Cohen, Thakor: Converting static image datasets to spiking neuromorphic datasets using saccades,
Frontiers in Neuroscience 9:437, 2015). Here the same is computed, without noise, for the 8 x 8 digits.

A pixel sees the brightness of the digit, interpolated linearly between its 8 x 8 values, and L = ln(DARK + (1 - DARK) ink).
It remembers the level R at which it last fired, starting with R = L. As soon as |L - R| >= THRESHOLD it fires

    n = floor(|L - R| / THRESHOLD) events of polarity sign(L - R), and R <- R + sign(L - R) n THRESHOLD,

the ideal event camera of Rebecq, Gehrig, Scaramuzza: ESIM, an open event camera simulator, CoRL 2018. L is sampled at
STEPS instants of each saccade, which are also the time stamps; events of the same instant are read out row by row, as the
arbiter of a sensor does. The path is closed, so every pixel fires as many ON as OFF events.

The stream is integrated into T frames of equally many events, SpikingJelly's `split_by="number"`.

N clips, K instants, T frames, H = W = S pixels.
"""

from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from statten.config import Config
from statten.data.augment import augment_clips
from statten.data.dataset import InMemory, Samples
from statten.data.digits import digit_images, digit_labels

THRESHOLD = 0.25
"""Change of log intensity that makes an event; sensors have 0.1 to 0.5."""
DARK = 0.1
"""Intensity of paper; ink has 1."""
EXTENT = 0.75
"""Side of the digit over the side of the sensor."""
REACH = 1 / 8
"""Largest distance of the digit from the centre, in x and in y, as a share of the side of the sensor."""
STEPS = 24
"""Instants of each saccade; at this speed a pixel rarely fires twice at one instant."""
_GRAIN = 2.0**-16
"""Log intensities are rounded to multiples of this. So is THRESHOLD, a power of two: all sums and quotients of levels are
exact in float32, and every machine makes the same events."""
_CHUNK = 1 << 22
"""Cells (clip, instant, pixel) that are simulated at once; bounds memory."""


def saccades(size: int, steps: int = STEPS) -> Tensor:
    """Path [K + 1, 2] of the digit's centre, (right, down) in pixels from the sensor's: three sides of a triangle."""
    corners = REACH * size * torch.tensor([[-1, -1], [0, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    along = torch.arange(1, steps + 1, dtype=torch.float64)[:, None] / steps
    sides = [begin + along * (end - begin) for begin, end in pairwise(corners)]
    return torch.cat([corners[:1], *sides])


def render(images_NHW: Tensor, size: int, at: Tensor) -> Tensor:
    """Log intensity [N, S, S], float32, of images [N, h, w] whose centre is `at` = (right, down) pixels from the sensor's."""
    right, down = (_interpolation(n, size, offset) for n, offset in zip(images_NHW.shape[:0:-1], at, strict=True))
    ink = down @ images_NHW @ right.T
    return (torch.log(DARK + (1 - DARK) * ink) / _GRAIN).round().to(torch.float32) * _GRAIN


def _interpolation(n: int, size: int, offset: Tensor) -> Tensor:
    """Weights [S, n]: how much of each of n samples a pixel sees. Rows sum to at most 1; outside is paper."""
    pitch = EXTENT * size / n
    position = (torch.arange(size, dtype=torch.float64) + 0.5 - size / 2 - offset) / pitch + (n - 1) / 2
    # A pixel is never sharper than itself: below one pixel per sample the hat is one pixel wide.
    width = max(1.0, 1 / pitch)
    return (1 - (position[:, None] - torch.arange(n)).abs() / width).clamp(min=0) / width


def fire(log_intensity: Tensor, level: Tensor, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor]:
    """Events at one instant: their signed number (ON is positive), and the new level; any shape."""
    count = torch.trunc((log_intensity - level) / threshold)
    return count, level + count * threshold


def record(images_NHW: Tensor, size: int, path: Tensor) -> Tensor:
    """Signed event counts [N, K, S, S], int8, of images [N, h, w] that move along `path` [K + 1, 2]."""
    level = render(images_NHW, size, path[0])
    counts = torch.empty(len(images_NHW), len(path) - 1, size, size, dtype=torch.int8)
    for k, at in enumerate(path[1:]):
        fired, level = fire(render(images_NHW, size, at), level)
        counts[:, k] = fired
    return counts


def integrate(counts_NKHW: Tensor, frames: int) -> Tensor:
    """Sum event streams into frames of equally many events.

    With n events in a clip, frame j holds events floor(n / T) j to floor(n / T) (j + 1) in order of time, the last frame
    the remainder too (spikingjelly.datasets.cal_fixed_frames_number_segment_index, split_by="number").

    Args:
        counts_NKHW: signed event counts [N, K, H, W].
        frames: T.

    Returns:
        [N, T, 2, H, W], uint8: OFF events in channel 0, ON events in channel 1, as SpikingJelly has them.
    """
    clips, _, height, width = counts_NKHW.shape
    counts = counts_NKHW.flatten(2)  # [N, K, P]
    per_step = counts.abs().sum(2)
    until = per_step.cumsum(1)
    total = until[:, -1:]
    # Where frames begin and end, as a number of events; between 0 and the end, each lies within one instant.
    bounds = torch.arange(1, frames) * (total // frames)
    step = torch.searchsorted(until, bounds, right=True).clamp(max=until.shape[1] - 1)
    clip = torch.arange(clips)[:, None]
    cut = counts[clip, step].int()  # the instants that are cut, [N, T - 1, P]
    left = bounds - (until - per_step)[clip, step]  # events of these that come before the cut
    earlier = cut.abs().cumsum(2, dtype=torch.int32) - cut.abs()
    before = (left[:, :, None] - earlier).clamp(min=0).minimum(cut.abs()) * cut.sign()
    summed = torch.zeros(clips, frames + 1, 2, height * width, dtype=torch.int32)
    for channel, polarity in enumerate((-1, 1)):
        fired = (polarity * counts).clamp(min=0).cumsum(1, dtype=torch.int16)
        summed[:, 1:frames, channel] = fired[clip, step] - (polarity * cut).clamp(min=0) + (polarity * before).clamp(min=0)
        summed[:, frames, channel] = fired[:, -1]
    frame = summed.diff(dim=1)
    assert int(frame.max()) < 256, f"a pixel has {int(frame.max())} events in one frame, more than uint8 holds"
    return frame.to(torch.uint8).view(clips, frames, 2, height, width)


@lru_cache(maxsize=8)
def _build(size: int, frames: int) -> Samples:
    images, path = digit_images(), saccades(size)
    chunk = max(1, _CHUNK // (len(path) * size * size))
    clips = [integrate(record(part, size, path), frames) for part in images.split(chunk)]
    return Samples(torch.cat(clips), torch.from_numpy(digit_labels()))


def load(config: Config) -> Samples:
    """Clips [N, T, 2, H, W] of event counts; T is `data.frames` or else `model.timesteps`, H and W `model.image_size`."""
    return _build(config.model.image_size, config.data.frames or config.model.timesteps)


def open_digits_events(config: Config) -> InMemory:
    return InMemory(digit_labels(), partial(load, config), augment_clips if config.data.augment else None)
