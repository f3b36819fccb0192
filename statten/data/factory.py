"""A config to its dataset, the parts that it is divided into, and the batches that each worker reads.

>>> from statten.config import load_config
>>> loaders = make_loaders(load_config("digits"))
>>> x, y = next(loaders.train.batches(epoch=0))
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from statten.config import Config
from statten.data.dataset import Source
from statten.data.loaders import EvalLoader, Loaders, TrainLoader
from statten.data.split import encode, identity, split
from statten.errors import UserError
from statten.records.data import Splits
from statten.records.reading import read
from statten.registry import DATASETS

log = logging.getLogger("statten")


def open_source(config: Config) -> Source:
    """Open the config's dataset; raises UserError where `data.root` does not hold it."""
    return DATASETS[config.data.name].open(config)


def split_indices(config: Config) -> dict[str, np.ndarray]:
    """Ascending sample indices of the parts `train`, `validation` and `test`, as the config divides its dataset."""
    return _split(config, open_source(config))


def split_document(config: Config) -> dict[str, Any]:
    """What splits.json holds: the parts, of which samples they are, and the name of each label."""
    source = open_source(config)
    return {**encode(_split(config, source), source.labels), "classes": list(source.classes)}


def check_split(config: Config, path: Path) -> None:
    """Raise UserError where the dataset is no longer the one that the splits.json at `path` divides."""
    saved = read(path, Splits)
    if saved is not None and "labels" in saved:
        source = open_source(config)
        found = identity(source.labels)
        if (found["samples"], found["labels"]) != (saved.get("samples"), saved["labels"]):
            since = "" if source.validation is None else " (val/ validates and test/ tests, which older versions left unread)"
            raise UserError(
                f"data.root: {config.data.name} has other samples than when the run began ({found['samples']} now, "
                f"{saved.get('samples')} then), so its parts would be mixed{since}; "
                f"restore them, or start a new run"
            )
        # As many samples of each class, but one has another name and so perhaps another number.
        pairs = zip(saved.get("classes", []), source.classes, strict=False)
        if renamed := next(((old, new) for old, new in pairs if old != new), None):
            raise UserError(
                f"data.root: {config.data.name} has class {renamed[1]!r} where {renamed[0]!r} was when the run began, so its "
                f"labels would be mixed; restore the name, or start a new run"
            )


def _split(config: Config, source: Source) -> dict[str, np.ndarray]:
    data = config.data
    return split(source.labels, data.validation, data.fraction, data.split_seed, source.test, source.validation)


def check_data(config: Config) -> None:
    """Raise UserError, with a sentence for each, where model or training do not fit the dataset."""
    name, model, dataset = config.data.name, config.model, DATASETS[config.data.name]
    problems = [f"{path}: says auto; `statten.data.resolved(config)` reads it from data.root" for path in config.auto]
    if config.data.download:
        from statten.data.prepare import fetch

        fetch(config)
    if model.in_channels != dataset.channels:
        problems.append(
            f"model.in_channels: must be {dataset.channels} for {name}, but got {model.in_channels}; "
            f"use model.in_channels={dataset.channels}"
        )
    if model.events != dataset.events:
        right, got, kind = ("true", "false", "event clips") if dataset.events else ("false", "true", "images")
        problems.append(
            f"model.events: must be {right} for {name}, which holds {kind}, but got {got}; use model.events={right}"
        )
    if config.data.frames is not None and not dataset.events:
        problems.append(
            f"data.frames: must be empty for {name}, which holds images, but got {config.data.frames}; use data.frames=null"
        )
    try:
        source = open_source(config)
    except UserError as error:
        raise UserError(problems + error.problems) from None
    problems += _class_problems(config, len(source.classes))
    problems += _batch_problems(config, source, len(_split(config, source)["train"]), config.scale.max_workers)
    if problems:
        raise UserError(problems)


def _class_problems(config: Config, classes: int) -> list[str]:
    data, given = config.data, config.model.num_classes
    if given < classes:
        return [
            f"model.num_classes: must be at least {classes} for {data.name}, but got {given}; use model.num_classes={classes}"
        ]
    if given > classes and not DATASETS[data.name].bundled:
        return [
            f"model.num_classes: {data.root} holds {classes} classes, fewer than model.num_classes={given}; if none is "
            f"missing, use model.num_classes={classes}"
        ]
    return []


def _batch_problems(config: Config, source: Source, samples: int, world_size: int) -> list[str]:
    problems = []
    batch = config.train.batch_size
    held_out = next((part for part in (source.validation, source.test) if part is not None), None)
    training = slice(None if held_out is None else held_out[0])  # given parts follow the training part
    shards = 0 if source.shards is None else len(np.unique(source.shards[training]))
    if 0 < shards < world_size:
        problems.append(
            f"scale.workers: {world_size} workers need at least one tar shard each, but the training part of "
            f"{config.data.name} has {shards}; the most is scale.workers={shards}; make smaller ones with: statten data shard"
        )
    if samples < world_size:
        problems.append(
            f"scale.workers: {world_size} workers need at least one training sample each, but the training part of "
            f"{config.data.name} has {samples}; the most is scale.workers={samples}"
        )
    elif samples < batch * world_size:
        problems.append(
            f"train.batch_size: {world_size} x {batch} samples per step (scale.workers x train.batch_size) must not be more "
            f"than the training part of {config.data.name}, which has {samples}; the largest is "
            f"train.batch_size={samples // world_size}"
        )
    return problems


def make_loaders(config: Config, rank: int = 0, world_size: int = 1, shares: int | None = None) -> Loaders:
    """Training and validation batches of one rank. The test part is not touched, unless `data.validation` names it.

    Args:
        shares: batches of `train.batch_size` in a step, dealt out to the ranks in turn; None gives each rank one. What a share
            reads in a step does not depend on the rank that has it, so a run may go on with another number of ranks.
    """
    shares = shares or world_size
    source, data, train = open_source(config), config.data, config.train
    parts = _split(config, source)
    if problems := _batch_problems(config, source, len(parts["train"]), shares):
        raise UserError(problems)
    if data.validation == "test" and rank == 0:
        log.warning("data.validation=test: models are selected on the test part, so its accuracy is not that on unseen data")
    first, *others = (
        TrainLoader(
            source, parts["train"], batch_size=train.batch_size, seed=train.seed, repeats=data.repeats,
            window=data.shuffle_buffer, rank=share, world_size=shares, workers=data.workers,
            pin_memory=_pin_memory(config), skip_corrupt=data.skip_corrupt,
        )
        for share in range(rank, shares, world_size)
    )  # fmt: skip
    validation = _eval_loader(config, source, parts["validation"], rank, world_size)
    return Loaders(first, validation, tuple(others), tuple(source.classes))


def make_test_loader(config: Config, rank: int = 0, world_size: int = 1) -> EvalLoader:
    """Test batches of one rank; for `evaluate` alone."""
    source = open_source(config)
    return _eval_loader(config, source, _split(config, source)["test"], rank, world_size)


def _eval_loader(config: Config, source: Source, indices: np.ndarray, rank: int, world_size: int) -> EvalLoader:
    return EvalLoader(
        source, indices, batch_size=config.train.eval_batch_size or config.train.batch_size, rank=rank,
        world_size=world_size, workers=config.data.workers, pin_memory=_pin_memory(config),
        skip_corrupt=config.data.skip_corrupt,
    )  # fmt: skip


def _pin_memory(config: Config) -> bool:
    import torch

    return config.scale.device != "cpu" and torch.cuda.is_available()
