"""One pass over the test part: a record of every sample, and the sums of every measured point.

The part is cut into chunks, each measured for itself and kept as a file until all are there: workers take turns with chunks, a
stopped evaluation goes on with those that are missing, and what is added up at the end does not depend on who measured what.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from statten.config import Config
from statten.data import EvalLoader, make_test_loader
from statten.errors import UserError
from statten.machine import peak_memory
from statten.metrics.accuracy import rank_of
from statten.metrics.inference import autocast, evaluating
from statten.metrics.meter import SpikeMeter
from statten.models import Backbone
from statten.storage.checkpoint import save_tensors

CHUNK = 8192
"""Samples of a chunk, about."""
KEPT_BYTES = 2**24
"""Up to so many bytes the counts of single neurons are kept in a report's folder; of larger models, those of channels."""
RECORD = ("label", "prediction", "rank", "confidence", "loss")
"""What is kept of a sample: label, predicted class, classes that score at least as much as the label's, largest softmax
probability, cross-entropy. All float64."""


@dataclass
class Measured:
    """What is known after one or more chunks."""

    index: Tensor
    """Position of each sample in its dataset, ascending, [N]."""
    records: Tensor
    """RECORD of each, float64 [N, 5]."""
    sums: dict[str, Tensor]
    """Sums over samples of every measured point (see SpikeMeter); empty without rates."""
    seconds: float
    """Time of loading and computing, summed over workers."""
    peak_bytes: int
    """Largest memory of any worker: of the GPU, or the whole process on a CPU."""
    left_out: int = 0
    """Samples whose files could not be read (`data.skip_corrupt`)."""

    @property
    def samples(self) -> int:
        """N."""
        return len(self.index)

    def column(self, name: str) -> Tensor:
        """One field of RECORD, [N]."""
        return self.records[:, RECORD.index(name)]


def measure(
    model: Backbone, loader: EvalLoader, config: Config, rates: bool = True, step: Callable[[int], Any] | None = None
) -> Measured:
    """Run a model over a loader's samples; `step` hears how many samples each batch had."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    meter, records, began = SpikeMeter(model), [], time.monotonic()
    with evaluating(model), autocast(config, device):
        if rates:
            meter.__enter__()
        try:
            for images, target in loader:
                images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
                records.append(_record(model(images.to(_dtype(model))), target))
                if step:
                    step(len(target))
        finally:
            meter.__exit__()
    found = torch.cat(records).cpu() if records else torch.empty(0, len(RECORD), dtype=torch.float64)
    corrupt = np.array(sorted(loader.corrupt), dtype=np.int64)
    index = torch.from_numpy(loader.indices[~np.isin(loader.indices, corrupt)])
    sums = meter.counts() if rates and records else {}
    return Measured(index, found, sums, time.monotonic() - began, _peak(device), len(corrupt))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _record(logits: Tensor, target: Tensor) -> Tensor:
    logits = (logits.mean(0) if logits.ndim == 3 else logits).double()
    rank = rank_of(logits, target)
    confidence, prediction = logits.softmax(1).max(1)
    loss = nn.functional.cross_entropy(logits, target, reduction="none")
    return torch.stack([target, prediction, rank, confidence, loss], 1).double()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def merge(parts: list[Measured]) -> Measured:
    """The whole of several parts, in the order of the dataset."""
    index = torch.cat([part.index for part in parts])
    order = index.argsort()
    filled = [part.sums for part in parts if part.sums]
    sums = {name: torch.stack([s[name] for s in filled]).sum(0) for name in filled[0]} if filled else {}
    records = torch.cat([part.records for part in parts])[order]
    seconds, peak, left_out = sum(p.seconds for p in parts), max(p.peak_bytes for p in parts), sum(p.left_out for p in parts)
    return Measured(index[order], records, sums, seconds, peak, left_out)


def compact(found: Measured) -> Measured:
    """With the counts of channels, [T, C], instead of neurons, [T, C, H, W], where those take more than KEPT_BYTES."""
    if sum(value.nbytes for value in found.sums.values()) <= KEPT_BYTES:
        return found
    sums = {name: value.double().flatten(2).sum(2) if value.ndim > 2 else value for name, value in found.sums.items()}
    return replace(found, sums=sums)


# ---------------------------------------------------------------------------------------------------------------------
# Chunks on disk.


def chunks(total: int, workers: int) -> int:
    """Number of chunks that a part of `total` samples is cut into."""
    return max(1, min(total, max(-(-total // CHUNK), workers)))


def chunk_path(folder: Path, chunk: int, of: int) -> Path:
    """Where a measured chunk lies."""
    return folder / f"chunk-{chunk:05d}-of-{of:05d}.safetensors"


def measure_chunks(
    model: Backbone, config: Config, folder: Path, mine: list[int], of: int, rates: bool, step: Any = None
) -> None:
    """Measure those of a worker's chunks that are not there yet."""
    for chunk in mine:
        path = chunk_path(folder, chunk, of)
        loader = make_test_loader(config, chunk, of)
        if path.is_file():
            if step:
                step(loader.samples)
            continue
        save(measure(model, loader, config, rates, step), path)


def save(part: Measured, path: Path) -> None:
    """Keep a part, whole or not at all."""
    aside = path.with_name(f".{path.name}")
    tensors = {f"sums.{name}": value.clone() for name, value in part.sums.items()}
    about = {"seconds": repr(part.seconds), "peak_bytes": str(part.peak_bytes), "left_out": str(part.left_out)}
    save_tensors({"index": part.index, "records": part.records, **tensors}, aside, about)
    aside.replace(path)


def load(path: Path) -> Measured:
    """A part that was kept; raises UserError when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            about = file.metadata()
        sums = {name.removeprefix("sums."): value for name, value in tensors.items() if name.startswith("sums.")}
        numbers = float(about["seconds"]), int(about["peak_bytes"]), int(about["left_out"])
        index, records = tensors["index"], tensors["records"]
        if (index.dtype, records.dtype, records.shape) != (torch.int64, torch.float64, (index.numel(), len(RECORD))):
            raise ValueError(f"it has no {', '.join(RECORD)} of each sample")
        return Measured(index, records, sums, *numbers)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; delete it and evaluate again") from None
