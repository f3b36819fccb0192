"""What the samples of a dataset hold: their sizes, and mean and standard deviation of their pixels."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from statten.data.dataset import CorruptSample, Files, RawSample


@dataclass(frozen=True)
class Look:
    """What a readable sample holds."""

    size: tuple[int, int]
    """Width and height."""
    pixels: int
    """Values in each channel."""
    sums: np.ndarray
    """Sum of the values of each channel."""
    squares: np.ndarray
    """Sum of their squares."""
    digest: bytes
    """Of the content."""


def look(source: Files, index: int) -> Look | CorruptSample:
    """Read a sample and measure it; of one that cannot be read, its error."""
    try:
        return _measure(source.checked(index))
    except CorruptSample as error:
        return error


def _measure(raw: RawSample) -> Look:
    if isinstance(raw, Image.Image):
        levels = np.arange(256) / 255
        histogram = np.array(raw.histogram(), dtype=np.float64).reshape(3, 256)
        digest = _digest(raw.size, raw.tobytes())
        return Look(raw.size, raw.width * raw.height, histogram @ levels, histogram @ levels**2, digest)
    counts = raw.double().transpose(0, 1).flatten(1)
    sums, squares = counts.sum(1).numpy(), counts.square().sum(1).numpy()
    digest = _digest(raw.shape, raw.double().numpy().tobytes())
    return Look((raw.shape[-1], raw.shape[-2]), counts.shape[1], sums, squares, digest)


def _digest(shape: tuple[int, ...], content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12, key=str(tuple(shape)).encode()).digest()


class Moments:
    """Mean and standard deviation of each channel over all pixels."""

    def __init__(self) -> None:
        self._n, self._sums, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, found: Look) -> None:
        """Count a sample."""
        self._n += found.pixels
        self._sums, self._squares = self._sums + found.sums, self._squares + found.squares

    @property
    def mean(self) -> list[float]:
        """Of each channel."""
        return (self._sums / max(1, self._n)).tolist()

    @property
    def std(self) -> list[float]:
        """Of each channel."""
        mean = self._sums / max(1, self._n)
        return np.sqrt(np.maximum(self._squares / max(1, self._n) - mean**2, 0)).tolist()
