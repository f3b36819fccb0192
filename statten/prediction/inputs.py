"""What may be shown to a model: files, folders, images and arrays to the raw samples that its dataset would have given.

T frames, H height, W width.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from statten.config import Config, ModelConfig
from statten.data.dataset import Damaged, RawSample
from statten.data.events import clip, of_length, read_frames
from statten.data.folders import CLIPS, IMAGES, subfolders
from statten.data.images import as_rgb, decode_image
from statten.errors import UserError, user_path

Sample = str | Path | Image.Image | np.ndarray | Tensor
"""A file, an image, an array (image [H, W] or [H, W, 3], clip [T, 2, H, W]), or a tensor that was transformed already."""


def files_of(paths: Iterable[str | Path], model: ModelConfig) -> list[Path]:
    """The files that paths mean, in order; of a folder all that the model reads, those of folders inside too, sorted.

    Raises:
        UserError: there is no such path, or a folder holds nothing of the kind.
    """
    noun, endings = ("event clip", CLIPS) if model.events else ("image", IMAGES)
    found: list[Path] = []
    for path in map(user_path, paths):
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"{path}: no such file or folder")
            found.append(path)
            continue
        inside = _below(path, endings)
        if not inside:
            raise UserError(f"{path}: holds no {noun} ({', '.join(endings)})")
        found += inside
    return found


def _below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    files = sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(endings) and not p.name.startswith(".") and p.is_file()
    )
    return files + [file for name in subfolders(folder) for file in _below(folder / name, endings)]


def raw_sample(sample: str | Path | Image.Image | np.ndarray, config: Config, name: str) -> RawSample:
    """An RGB image or an event clip; raises UserError where it cannot be read or is not what the model takes.

    Args:
        sample: not a tensor.
        config: says whether the model reads images or clips, of how many frames, and how longer clips become so long.
        name: what messages call it.
    """
    try:
        if isinstance(sample, str | os.PathLike):
            return _read(user_path(sample), config)
        if config.model.events:
            return _clip(sample, config)
        return as_rgb(sample) if isinstance(sample, Image.Image) else _image(np.asarray(sample))
    except (Damaged, OSError) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _read(path: Path, config: Config) -> RawSample:
    ending, events = path.suffix.lower(), config.model.events
    if events and ending in IMAGES:
        raise Damaged(f"is an image, but the model reads event clips ({', '.join(CLIPS)})")
    if not events and ending in CLIPS:
        raise Damaged("is an event clip, but the model reads images")
    return _clip(read_frames(path), config) if events else decode_image(path.read_bytes())


def _clip(counts: Any, config: Config) -> Tensor:
    if not isinstance(counts, np.ndarray) or counts.ndim != 4 or counts.shape[1] != 2 or counts.dtype.kind not in "uif":
        raise Damaged(f"must be an event clip of numbers [T, 2, H, W], but is {_what(counts)}")
    try:
        return clip(of_length(counts, config.model.timesteps, config.data.regroup))
    except Damaged as error:
        regroups = config.data.name == "event_folder" and len(counts) > config.model.timesteps
        raise Damaged(f"{error}{'; --set data.regroup=sum adds frames up' if regroups else ''}") from None


def _image(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or 0 in array.shape:
        raise Damaged(f"must be an image [H, W] or [H, W, 3], but is {_what(array)}")
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:  # a NaN is neither
        array = np.rint(255 * array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise Damaged(f"must hold uint8, or floating-point numbers from 0 to 1, but is {_what(array)}")
    return Image.fromarray(array).convert("RGB")


def _what(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"of type {type(value).__name__}"
    span = f" from {value.min():g} to {value.max():g}" if value.size and value.dtype.kind in "uif" else ""
    return f"{value.dtype} {list(value.shape)}{span}"
