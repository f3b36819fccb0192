"""`statten data check`: read every sample of a dataset once and say what is there."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from statten.config import Config, build_config
from statten.data.dataset import CorruptSample, Files, RawSample
from statten.data.events import frames_folder, prepared_frames, read_frames
from statten.data.factory import DATASETS, open_source
from statten.data.folders import CLIPS, existing_folder, list_parts
from statten.data.raw_events import FORMATS
from statten.data.split import split
from statten.data.work import Progress, default_workers, gathered, silent
from statten.errors import UserError, in_shell

COMMON = 10
"""How many sizes are listed."""


def check(
    name: str, root: Path, timesteps: int | None = None, *, workers: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Read every sample and count.

    Args:
        name: of the dataset.
        root: its folder.
        timesteps: T of the clips; None takes what is there.
        workers: threads; None means one for each core.
        progress: is told how far it is.

    Returns:
        name, root, layout, samples, per_class {class: {part: samples}}, split {part: samples} with the default fields,
        sizes {"WIDTHxHEIGHT": samples} (the most common), smallest and largest [width, height], mean and std of each
        channel over the pixels of all samples outside the test part (images from 0 to 1, clips in events), and corrupt
        [{"file", "reason"}].

    Raises:
        UserError: the layout is wrong, a part or a class is missing or empty.
    """
    if DATASETS[name].bundled:
        raise UserError(f"{name}: comes with the package, there is no folder to check")
    existing_folder(root, "--root")
    config = _config(name, root, timesteps)
    source = open_source(config)
    assert isinstance(source, Files)
    outside = np.ones(len(source.labels), dtype=bool)
    if source.test is not None:
        outside[source.test] = False
    sizes: Counter[tuple[int, int]] = Counter()
    moments, corrupt = _Moments(), []
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        for index, found in enumerate(gathered(pool, lambda i: _look(source, i), len(source.labels))):
            progress("samples", index + 1, len(source.labels))
            if isinstance(found, CorruptSample):
                file, _, reason = str(found).partition(": cannot be read: ")
                corrupt.append({"file": file, "reason": reason})
                continue
            sizes[found.size] += 1
            if outside[index]:
                moments.add(found)
    ordered = sorted(sizes, key=_area) or [(0, 0)]
    data = config.data
    parts = split(source.labels, data.validation, data.fraction, data.split_seed, source.test)
    counted = {part: np.bincount(source.labels[indices], minlength=len(source.classes)) for part, indices in parts.items()}
    return {
        "name": name,
        "root": str(root),
        "layout": source.layout,
        "samples": len(source.labels),
        "split": {part: len(indices) for part, indices in parts.items()},
        "per_class": {
            label: {part: int(counts[i]) for part, counts in counted.items()} for i, label in enumerate(source.classes)
        },
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.most_common(COMMON)},
        "smallest": list(ordered[0]),
        "largest": list(ordered[-1]),
        "mean": moments.mean,
        "std": moments.std,
        "corrupt": corrupt,
    }


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _config(name: str, root: Path, timesteps: int | None) -> Config:
    if DATASETS[name].events and timesteps is None:
        timesteps = _frames_there(name, root)
    return build_config({"data": {"name": name, "root": str(root)}, "model": {"timesteps": timesteps or 1, "block_size": 1}})


def _frames_there(name: str, root: Path) -> int:
    """T of the clips in a folder, if it is one T alone."""
    there = prepared_frames(root)
    if len(there) > 1:
        raise UserError(
            f"--timesteps: {root} holds clips of T = {', '.join(map(str, there))}; say which, as --timesteps {there[0]}"
        )
    if there:
        return there[0]
    if name in FORMATS:
        raise UserError(
            f"{root}: holds no {frames_folder(root, 10).name.replace('10', 'T')} folder that is finished; make one with: "
            f"statten data prepare {name} --root {in_shell(root)} --timesteps T"
        )
    listing = list_parts(root, CLIPS, "clip")
    return len(read_frames(listing.folder / listing.names[0]))


@dataclass(frozen=True)
class _Found:
    """A readable sample."""

    size: tuple[int, int]
    """Width and height."""
    pixels: int
    """Values in each channel."""
    sums: np.ndarray
    """Sum of the values of each channel."""
    squares: np.ndarray
    """Sum of their squares."""


def _look(source: Files, index: int) -> _Found | CorruptSample:
    try:
        return _measure(source.checked(index))
    except CorruptSample as error:
        return error


def _measure(raw: RawSample) -> _Found:
    if isinstance(raw, Image.Image):
        levels = np.arange(256) / 255
        histogram = np.array(raw.histogram(), dtype=np.float64).reshape(3, 256)
        return _Found(raw.size, raw.width * raw.height, histogram @ levels, histogram @ levels**2)
    counts = raw.double().transpose(0, 1).flatten(1)
    sums, squares = counts.sum(1).numpy(), counts.square().sum(1).numpy()
    return _Found((raw.shape[-1], raw.shape[-2]), counts.shape[1], sums, squares)


class _Moments:
    """Mean and standard deviation of each channel over all pixels."""

    def __init__(self) -> None:
        self._n, self._sums, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, found: _Found) -> None:
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
