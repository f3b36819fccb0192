"""`statten data check`: read every sample of a dataset once and say what is there."""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from statten.config import Config, build_config
from statten.data.dataset import CorruptSample, Files
from statten.data.events import frames_folder, prepared_frames, read_frames
from statten.data.factory import DATASETS, open_source
from statten.data.folders import CLIPS, existing_folder, list_parts
from statten.data.pixels import Moments, look
from statten.data.raw_events import FORMATS
from statten.data.split import split
from statten.data.work import Progress, default_workers, gathered, silent
from statten.errors import UserError, in_shell

COMMON = 10
"""How many sizes are listed."""
EDGE = 0.02
"""So close to 0 or 1 a mean, and so close to 0 a standard deviation, is hardly that of pictures."""
PUBLISHED = ("cifar10", "cifar100", "imagenet")
"""Datasets whose parts are as they are, with what they share."""


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
        channel over the pixels of all samples outside the test part (images from 0 to 1, clips in events), corrupt
        [{"file", "reason"}], left_out {what is no sample: how many}, shared [[file, file]] of the same content in two given
        parts (where the parts are not the published ones), and warnings [sentence].

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
    moments, corrupt = Moments(), []
    first: dict[bytes, int] = {}
    again: dict[int, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        for index, found in enumerate(gathered(pool, lambda i: look(source, i), len(source.labels))):
            progress("samples", index + 1, len(source.labels))
            if isinstance(found, CorruptSample):
                file, _, reason = str(found).partition(": cannot be read: ")
                corrupt.append({"file": file, "reason": reason})
                continue
            sizes[found.size] += 1
            if (same := first.setdefault(found.digest, index)) != index:
                again[same].append(index)
            if outside[index]:
                moments.add(found)
    ordered = sorted(sizes, key=_area) or [(0, 0)]
    data = config.data
    parts = split(source.labels, data.validation, data.fraction, data.split_seed, source.test, source.validation)
    groups = [[same, *others] for same, others in again.items()]
    shared, warnings = _same_content(source, groups, parts, name not in PUBLISHED)
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
        "left_out": dict(source.left_out),
        "shared": shared,
        "warnings": (_flat(moments, DATASETS[name].events) if sizes else []) + warnings,
    }


def _flat(moments: Moments, events: bool) -> list[str]:
    for mean, std in zip(moments.mean, moments.std, strict=True):
        if std == 0 or (not events and (std < EDGE or not EDGE < mean < 1 - EDGE)):
            what = "clips" if events else "images (from 0 black to 1 white)"
            return [f"the {what} hardly differ: a channel has mean {mean:.4f} and standard deviation {std:.4f}"]
    return []


def _same_content(
    source: Files, groups: list[list[int]], parts: dict[str, np.ndarray], refused: bool
) -> tuple[list[list[str]], list[str]]:
    """Pairs that two given parts share, and a sentence on all other samples of the same content."""
    given = np.zeros(len(source.labels), dtype=int)
    for number, part in enumerate((source.validation, source.test), 1):
        given[[] if part is None else part] = number
    crossing = [(group[0], other) for group in groups if refused and (other := _other(given, group)) is not None]
    shared = [[source.locate(i) for i in pair] for pair in crossing]
    rest = [group for group in groups if not refused or _other(given, group) is None]
    if not rest:
        return shared, []
    one, two = (source.locate(i) for i in rest[0][:2])
    part = np.zeros(len(source.labels), dtype=int)
    for number, name in enumerate(("validation", "test"), 1):
        part[parts[name]] = number
    apart = sum(_other(part, group) is not None for group in rest)
    labels = sum(_other(source.labels, group) is not None for group in rest)
    return shared, [
        f"{sum(map(len, rest)) - len(rest):,} samples repeat the content of another, such as {one} and {two}; "
        f"{apart:,} of {len(rest):,} such groups lie in two parts of the split, {labels:,} in two classes"
    ]


def _other(values: np.ndarray, group: list[int]) -> int | None:
    """The first of a group whose value is not that of its first."""
    return next((i for i in group if values[i] != values[group[0]]), None)


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
