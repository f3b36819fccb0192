"""A file of published weights, read without running anything that is in it. Four forms are known:

timm's saver    state_dict, args, perhaps state_dict_ema; epoch, arch, optimizer, version, metric
MAE's           model, args; optimizer, epoch, scaler
torchvision's   model, args; optimizer, lr_scheduler, epoch, max_test_acc1, ...
bare            state_dict or model without args, or the weights themselves
"""

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statten.errors import UserError, first_line
from statten.files import describe_file


@dataclass(frozen=True)
class Saved:
    """What a file holds, once it has been read safely."""

    state: dict[str, Tensor]
    """The chosen weights, under the names that they have there."""
    arguments: dict[str, Any]
    """The command line that trained it; empty where the file has none."""
    averaged: bool
    """Whether the weights are the moving average (EMA)."""
    epoch: int | None
    """Epoch that it was written at, counted from 0."""


def read_saved(path: Path, ema: bool = True) -> Saved:
    """Read a file of any of the four forms.

    Args:
        path: the file.
        ema: take the averaged weights (`state_dict_ema`) where the file has them, instead of the trained ones.

    Raises:
        UserError: unreadable, damaged, or holding more than tensors and plain arguments.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged may raise anything
        raise UserError(f"{path}: not a checkpoint that can be read safely: {_reason(path, error)}") from None
    trained = _weights(saved)
    if trained is None:
        holds = (
            f"but holds {', '.join(map(str, [*saved][:5]))}" if isinstance(saved, dict) else f"but is a {type(saved).__name__}"
        )
        raise UserError(
            f"{path}: must hold weights alone, model and args, or state_dict and args, as published trainers do, {holds}"
        )
    arguments = saved.get("args", argparse.Namespace())
    if not isinstance(arguments, argparse.Namespace):
        raise UserError(f"{path}: args must be the trainer's arguments, but are of type {type(arguments).__name__}")
    average = saved.get("state_dict_ema")
    averaged = ema and average is not None and not (isinstance(average, dict) and not average)
    state = average if averaged else trained
    if not isinstance(state, dict):
        raise UserError(f"{path}: the weights must be a mapping of names to tensors, but are a {type(state).__name__}")
    if odd := [name for name, value in state.items() if not (isinstance(name, str) and _numbers(value))]:
        raise UserError(f"{path}: {', '.join(map(str, odd))}: not a tensor of finite numbers")
    epoch = saved.get("epoch")
    named = {str(name): value for name, value in vars(arguments).items()}
    return Saved(state, named, averaged, epoch if isinstance(epoch, int) else None)


def _weights(saved: Any) -> Any:
    """What stands in a file in the place of weights, or None."""
    if not isinstance(saved, Mapping):
        return None
    for key in ("state_dict", "model"):
        if key in saved:
            return saved[key]
    bare = len(saved) > 1 and all(isinstance(value, Tensor) for value in saved.values())
    return dict(saved) if bare else None


_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)


def _numbers(value: Any) -> bool:
    """Whether it is a plain tensor of finite numbers, all of which are in the file."""
    plain = (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu" and value.dtype in _DTYPES
    )
    return plain and value.nbytes <= value.untyped_storage().nbytes() and bool(value.isfinite().all())


def _reason(path: Path, error: Exception) -> str:
    """Why a file is no checkpoint; PyTorch's own words may advise to run what is in it."""
    if what := describe_file(path):
        return f"it is {what}"
    if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {foreign[1]}, and loading Python objects may run code; have it saved with state_dict and args alone"
    words = first_line(error)
    return "it is damaged or cut off" + ("" if "weights" in words.lower() or len(words) > 120 else f": {words}")


def _check_archive(path: Path) -> None:
    """Raise UserError where the file is missing, or its check sums do not fit: torch.load does not look at them."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if not zipfile.is_zipfile(path):
            return  # older than zip archives; torch.load has its say
        with zipfile.ZipFile(path) as archive:
            names, size = archive.namelist(), sum(part.file_size for part in archive.infolist())
            kind = next((kind for name, kind in _ARCHIVES if any(n.endswith(name) for n in names)), None)
            if kind is None and not any(name.endswith("data.pkl") for name in names):
                kind = f"a zip archive of {', '.join(names[:3]) or 'nothing'}"
            if kind:
                raise UserError(f"{path}: not a checkpoint that can be read safely: it is {kind}")
            if size > 100 * path.stat().st_size:
                raise UserError(f"{path}: damaged: it would become {size:,} bytes")
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # what is damaged may raise anything
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    if damaged:
        raise UserError(f"{path}: damaged: {damaged} does not match its check sum")


_ARCHIVES = (
    ("constants.pkl", "a TorchScript program"),
    ("archive_format", "a program of torch.export"),
    (".npy", "NumPy arrays (.npz)"),
)
