"""Training state on disk: a folder of safetensors and JSON, never pickles.

    checkpoints/epoch-0003/              three epochs are finished
    checkpoints/epoch-0003-step-000120/  and 120 steps of the fourth
        model.safetensors                parameters and buffers
        ema.safetensors                  their moving average, with `train.ema_decay`
        optimizer.safetensors            the optimizer's tensors
        state.json                       epoch, step, counters, metrics, names of the classes, digests of the files above

A checkpoint is written aside and renamed, so it is there whole or not at all; its digests, that of state.json in the file
itself, find later damage, and loading falls back to the one before. Random streams need no saving: they are functions of
(seed, epoch, step, rank).
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from statten.config import Config
from statten.errors import UserError, first_line
from statten.files import describe_file, new_folder, sha256, write_text
from statten.models.backbones.weights import plain_names
from statten.records.reading import read
from statten.records.runs import Numbers, Seal, State
from statten.storage.run import checkpoints

if TYPE_CHECKING:  # timm takes two seconds to import
    from timm.scheduler.scheduler import Scheduler
    from timm.utils import ModelEmaV3

log = logging.getLogger("statten")

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class TrainState:
    """Everything that training changes. `step` counts inside the current epoch; `sums` are that epoch's running totals."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: "Scheduler"
    scaler: torch.amp.GradScaler
    ema: "ModelEmaV3 | None" = None
    epoch: int = 0
    step: int = 0
    sums: list[float] | None = None
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def eval_model(self) -> nn.Module:
        """The model by which training is judged: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module


def save(state: TrainState, folder: Path, config: Config | None = None, classes: Sequence[str] = ()) -> Path:
    """Write a checkpoint into `folder` and return its path; one that is there already is the same state, and stays.

    With the config that it was trained under, a change of it is found when training goes on (training/resuming.py). With the
    name of each label in `classes`, a model that is opened without its data says what it sees.
    """
    folder.mkdir(exist_ok=True)  # without its parents: where the storage is away, nothing is made in its place
    name = f"epoch-{state.epoch:04d}" + (f"-step-{state.step:06d}" if state.step else "")
    path = folder / name
    if path.exists():
        if _damage(path) is None:
            return path
        shutil.rmtree(path)
    tensors, numbers = _split(state.optimizer.state_dict())
    files = {MODEL: state.model.state_dict(), OPTIMIZER: tensors}
    if state.ema is not None:
        files[EMA] = state.ema.module.state_dict()
    with new_folder(path) as aside:
        for name, content in files.items():
            save_tensors(content, aside / name)
        document = {
            "epoch": state.epoch,
            "step": state.step,
            "sums": state.sums,
            "seconds": state.seconds,
            "metrics": state.metrics,
            "best": state.best,
            "optimizer": numbers,
            "scaler": state.scaler.state_dict(),
            "config": config.model_dump(mode="json", include={"data", "model", "train"}) if config else None,
            "classes": list(classes),
            "sha256": {name: sha256(aside / name) for name in files},
        }
        write_text(aside / STATE, json.dumps({**document, "digest": _digest(document)}))
    return path


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write a safetensors file; what the system says is an OSError."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, about)
    except SafetensorError as error:  # says what the system said in its text alone
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document as it will be read."""
    read = json.loads(json.dumps(document))
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def prune(folder: Path, keep: int, best_epoch: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and that of the best epoch."""
    for path in checkpoints(folder)[:-keep]:
        if path.name != f"epoch-{best_epoch or 0:04d}":
            shutil.rmtree(path, ignore_errors=True)


def load_newest(state: TrainState, folder: Path) -> Path | None:
    """Load the newest sound checkpoint into `state`; a damaged one is named in the log and the one before is taken.

    Returns None where there is no checkpoint at all; raises UserError where all are damaged: to start again is the user's
    choice.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        problem = _damage(path)
        if problem is None:
            try:
                _load(state, path)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, OSError, SafetensorError) as error:
                raise UserError(f"{path}: does not fit config.yaml; was that edited since? {first_line(error)}") from error
            return path
        log.warning("%s is damaged (%s); falling back to the checkpoint before it", path, problem)
    if found:
        raise UserError(f"{folder}: all checkpoints are damaged; restore one, or remove them to start from the beginning")
    return None


def weights_file(checkpoint: Path, averaged: bool = True) -> Path:
    """The file of a checkpoint folder (verified) with the moving average of its weights, or where that is not there, or not
    wanted, with the trained ones."""
    if problem := _damage(checkpoint):
        raise UserError(f"{checkpoint}: not a usable checkpoint: {problem}")
    average = checkpoint / EMA
    return average if averaged and average.is_file() else checkpoint / MODEL


def load_weights(path: Path, device: torch.device | str = "cpu", averaged: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers of a checkpoint folder (verified; as `weights_file` chooses) or of a safetensors file."""
    if path.is_dir():
        path = weights_file(path, averaged)
    try:
        return plain_names(load_file(path, device=str(device)))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, LookupError, TypeError) as error:
        what = describe_file(path) if path.is_file() else None
        reason = first_line(error) if what in (None, "a safetensors file") else f"it is {what}"
        raise UserError(f"{path}: not a safetensors file that can be read: {reason}") from None


def class_names(checkpoint: Path) -> list[str]:
    """Name of each label as a checkpoint folder keeps them; none in those of earlier versions."""
    saved = read(checkpoint / STATE, State)
    return saved.get("classes", []) if saved else []


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        saved = read(path / STATE, Seal)
    except UserError:
        return f"{STATE} cannot be read"
    if saved is None or MODEL not in saved["sha256"]:
        return f"{STATE} is missing or incomplete"
    for name, digest in saved["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != digest:
            return f"{name} does not match its digest"
    if "digest" in saved and saved.pop("digest") != _digest(saved):  # checkpoints of earlier versions have none
        return f"{STATE} does not match its digest"
    return None


def _load(state: TrainState, path: Path) -> None:
    saved = read(path / STATE, State)
    if saved is None:
        raise FileNotFoundError(f"{STATE} is not there any more")
    state.model.load_state_dict(load_file(path / MODEL, device=str(state.device)))
    if state.ema is not None:
        state.ema.module.load_state_dict(load_file(path / EMA, device=str(state.device)))
    state.optimizer.load_state_dict(_join(load_file(path / OPTIMIZER), saved["optimizer"]))
    _match_layouts(state.optimizer)
    state.scaler.load_state_dict(saved["scaler"])
    state.epoch, state.step, state.sums, state.seconds = saved["epoch"], saved["step"], saved["sums"], saved["seconds"]
    state.metrics, state.best = saved["metrics"], saved["best"]


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimizer's tensors out in memory as their weights are: the sums in LAMB's norms depend on the order."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors "index.name" and JSON-able numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    # timm's LAMB counts its steps in a tensor of the group, and makes one again of the number that it finds there.
    groups = [{k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()} for group in state["param_groups"]]
    return {k: v.contiguous() for k, v in tensors.items()}, {"state": numbers, "param_groups": groups}


def _join(tensors: dict[str, Tensor], saved: Numbers) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **saved["state"]}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": saved["param_groups"]}
