"""Weights of the published implementation, read without running anything that is in the file, and written back.

The published names are on the left; its q, k and v are one convolution here.
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

from statten.config import Config, ModelConfig, NeuronMap, build_config, get_field, with_overrides
from statten.errors import ConfigError, UserError, first_line
from statten.files import describe_file
from statten.models.backbones.base import Backbone
from statten.models.factory import build_model
from statten.registry import BACKBONES


def from_published(state: Mapping[str, Tensor], backbone: str = "sdt") -> dict[str, Tensor]:
    """A published state_dict, with or without wrappers' prefixes such as "module.", as one of ours.

    Raises:
        UserError: weights that have no place here, or lack their partners, by name.
    """
    return BACKBONES[backbone].from_published(state)


def to_published(state: Mapping[str, Tensor], config: ModelConfig | None = None) -> dict[str, Tensor]:
    """The state_dict of a config's network, by default `sdt`, under the published names; raises UserError."""
    config = config or ModelConfig()
    return BACKBONES[config.backbone].to_published(state, config)


# Published arguments and the fields that they are here. The first part shapes the network, and must be there.
_SHAPE = BACKBONES["sdt"].published_fields
_OTHERS = {
    "dataset": "data.name",
    "drop_path": "model.drop_path",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "val_batch_size": "train.eval_batch_size",
    "opt": "train.optimizer",
    "lr": "train.lr",
    "min_lr": "train.min_lr",
    "warmup_epochs": "train.warmup_epochs",
    "warmup_lr": "train.warmup_lr",
    "cooldown_epochs": "train.cooldown_epochs",
    "weight_decay": "train.weight_decay",
    "momentum": "train.momentum",
    "clip_grad": "train.clip_grad",
    "smoothing": "train.label_smoothing",
    "TET_means": "train.tet_mean",
    "TET_lamb": "train.tet_lambda",
    "seed": "train.seed",
    "crop_pct": "data.crop_pct",
    "interpolation": "data.interpolation",
    "mean": "data.mean",
    "std": "data.std",
}


@dataclass(frozen=True)
class Published:
    """What a published checkpoint holds, once it has been read safely."""

    arguments: dict[str, Any]
    """The command line that trained it."""
    weights: dict[str, Tensor]
    """The chosen weights, under our names."""
    averaged: bool
    """Whether these are the moving average (EMA)."""
    epoch: int | None
    """Epoch that it was written at, counted from 0."""


def published_config(arguments: Mapping[str, Any]) -> ModelConfig:
    """The model that a published checkpoint's arguments describe; raises UserError when one is missing or wrong."""
    return translate(arguments)[0].model


def translate(arguments: Mapping[str, Any]) -> tuple[Config, list[dict[str, Any]]]:
    """The config that published arguments describe, and what became of each of them.

    Returns:
        The config, and a row per argument: `argument`, `value`, `field` (None if it was dropped) and `reason` of that.

    Raises:
        UserError: an argument that shapes the network is missing or breaks a rule.
    """
    missing = [name for name in _SHAPE if name not in arguments]
    if missing:
        raise UserError(f"published arguments: {', '.join(missing)} missing")
    told = {**_SHAPE, "spike_mode": "model.neuron", "attention_mode": "model.attention", "dvs_mode": "model.events"}
    if odd := [name for name in (*told, "TET") if not _plain(arguments.get(name))]:
        raise UserError(f"published arguments: {', '.join(odd)}: must be a plain value")
    # The published model uses PLIF in the MLP and the head only.
    neuron = {"mlp": "plif", "head": "plif"} if arguments.get("spike_mode") == "plif" else "lif"
    fields: dict[str, Any] = {
        **{ours: arguments[theirs] for theirs, ours in _SHAPE.items()},
        "model.neuron": neuron,
        "model.attention": "sdsa" if arguments.get("attention_mode") == "SDT" else "statten",
        "model.events": bool(arguments.get("dvs_mode", arguments["in_channels"] == 2)),
        "train.loss": "tet" if arguments["TET"] else "cross_entropy",
    }
    try:
        config = build_config({}, fields)
    except ConfigError as error:
        raise ConfigError([f"published arguments: {problem.removeprefix('--set ')}" for problem in error.problems]) from None
    rows = [_row(name, arguments[name], path) for name, path in told.items() if name in arguments]
    # All others may fail one by one, for the network runs without them; in this order, as their rules build on each other.
    for name, path in _OTHERS.items():
        if name in arguments:
            value = arguments[name]
            wanted = str(value).rpartition("/")[2].replace("-", "") if name == "dataset" else value
            if not _plain(wanted):
                rows.append(_row(name, value, None, f"is a {type(value).__name__}"))
                continue
            try:
                config = with_overrides(config, {path: wanted})
                rows.append(_row(name, value, path))
            except ConfigError as error:
                rows.append(_row(name, value, None, error.problems[0].removeprefix("--set ")))
    unknown = [name for name in arguments if name not in told and name not in _OTHERS]
    return config, rows + [_row(name, arguments[name], None, "has no field here") for name in unknown]


def published_arguments(config: Config) -> dict[str, Any]:
    """The published trainer's arguments that describe a config's network; `translate` reads them back.

    Raises:
        UserError: the published network cannot be this one.
    """
    m = config.model
    if m.backbone != "sdt":
        raise UserError(f"model.backbone: the published network is sdt, but this one is {m.backbone}")
    published = {"lif": "lif", NeuronMap(mlp="plif", head="plif"): "plif"}
    same = {"tau": 2.0, "v_threshold": 1.0, "attention_threshold": 0.5}
    problems = [f"model.{k}: must be {v:g} in the published network, but is {getattr(m, k):g}" for k, v in same.items()
                if getattr(m, k) != v]  # fmt: skip
    if m.neuron not in published:
        problems.append("model.neuron: the published network has lif everywhere, or plif in mlp and head")
    if problems:
        raise UserError(problems)
    arguments = {theirs: get_field(config, ours) for theirs, ours in _SHAPE.items()}
    arguments["mlp_ratio"] = int(m.mlp_ratio) if m.mlp_ratio == int(m.mlp_ratio) else m.mlp_ratio
    modes = {"spike_mode": published[m.neuron], "attention_mode": "SDT" if m.attention == "sdsa" else "STAtten"}
    return {"model": "sdt", "dataset": f"torch/{config.data.name}", **arguments, **modes, "dvs_mode": m.events}


def _plain(value: Any) -> bool:
    """Whether a config's field could hold a value."""
    return isinstance(value, str | int | float | None) or (isinstance(value, list | tuple) and all(map(_plain, value)))


def _row(argument: str, value: Any, field: str | None, reason: str = "") -> dict[str, Any]:
    plain = value if isinstance(value, str | int | float | bool | None) else str(value)
    return {"argument": argument, "value": plain, "field": field, "reason": reason}


def read_published(path: str | Path, ema: bool = True) -> Published:
    """Read a checkpoint (.pth.tar) as the published trainer writes it, without running anything that is in it.

    Args:
        path: the file.
        ema: take the averaged weights (`state_dict_ema`) where the file has them, instead of the trained ones.

    Raises:
        UserError: unreadable, damaged, or holding more than tensors and plain arguments.
    """
    path = Path(path)
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged may raise anything
        raise UserError(f"{path}: not a checkpoint that can be read safely: {_reason(path, error)}") from None
    if not isinstance(saved, dict) or not {"state_dict", "args"} <= set(saved):
        holds = (
            f"but holds {', '.join(map(str, [*saved][:5]))}" if isinstance(saved, dict) else f"but is a {type(saved).__name__}"
        )
        raise UserError(f"{path}: must hold state_dict and args, as the published trainer writes them, {holds}")
    if not isinstance(saved["args"], argparse.Namespace):
        raise UserError(f"{path}: args must be the trainer's arguments, but are of type {type(saved['args']).__name__}")
    average = saved.get("state_dict_ema")
    averaged = ema and average is not None and not (isinstance(average, dict) and not average)
    state = average if averaged else saved["state_dict"]
    if not isinstance(state, dict):
        raise UserError(f"{path}: the weights must be a mapping of names to tensors, but are a {type(state).__name__}")
    if odd := [name for name, value in state.items() if not (isinstance(name, str) and _numbers(value))]:
        raise UserError(f"{path}: {', '.join(map(str, odd))}: not a tensor of finite numbers")
    try:
        weights = from_published(state)
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from None
    epoch, arguments = saved.get("epoch"), {str(name): value for name, value in vars(saved["args"]).items()}
    return Published(arguments, weights, averaged, epoch if isinstance(epoch, int) else None)


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


def load_published(path: str | Path, ema: bool = False, backend: str = "auto") -> Backbone:
    """The model of a published checkpoint in evaluation mode; arguments and errors are those of `read_published`."""
    found = read_published(path, ema)
    model = build_model(published_config(found.arguments), backend)
    fit_weights(model, found.weights, path)
    return model.eval()


def fit_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights into a model; raises UserError that names those that are missing, unknown or of another shape."""
    wanted = model.state_dict()
    problems = []
    if missing := [name for name in wanted if name not in weights]:
        problems.append(f"{source}: weights missing: {', '.join(missing)}")
    if unknown := [name for name in weights if name not in wanted]:
        problems.append(f"{source}: no place for the weights {', '.join(unknown)}")
    for name, value in weights.items():
        if name in wanted and value.shape != wanted[name].shape:
            problems.append(f"{source}: {name} must be {list(wanted[name].shape)}, but is {list(value.shape)}")
    if problems:
        raise UserError(problems)
    model.load_state_dict(weights)
