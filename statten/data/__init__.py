"""Datasets, their split, and the batches that each worker reads. A dataset is one file and one entry of DATASETS.

>>> from statten.config import load_config
>>> loaders = make_loaders(load_config("digits"))
>>> x, y = next(loaders.train.batches(epoch=0))
"""

import numpy as np

from statten.config import Config, UserError
from statten.data.dataset import Dataset, Samples
from statten.data.digits import DIGITS
from statten.data.digits_events import DIGITS_EVENTS
from statten.data.loaders import EvalLoader, Loaders, TrainLoader
from statten.data.split import split

__all__ = [
    "DATASETS", "Dataset", "EvalLoader", "Loaders", "Samples", "TrainLoader",
    "check_data", "make_loaders", "make_test_loader", "split_indices",
]  # fmt: skip

DATASETS: dict[str, Dataset] = {"digits": DIGITS, "digits_events": DIGITS_EVENTS}


def split_indices(config: Config) -> dict[str, np.ndarray]:
    """Ascending sample indices of the parts `train`, `validation` and `test`, as the config divides its dataset."""
    data = config.data
    return split(DATASETS[data.name].labels(), data.validation, data.fraction, data.split_seed)


def check_data(config: Config) -> None:
    """Raise UserError, with a sentence for each, where model or training do not fit the dataset."""
    name, model, dataset = config.data.name, config.model, DATASETS[config.data.name]
    problems = []
    if model.in_channels != dataset.channels:
        problems.append(
            f"model.in_channels: must be {dataset.channels} for {name}, but got {model.in_channels}; "
            f"use model.in_channels={dataset.channels}"
        )
    if model.num_classes < dataset.classes:
        problems.append(
            f"model.num_classes: must be at least {dataset.classes} for {name}, but got {model.num_classes}; "
            f"use model.num_classes={dataset.classes}"
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
    problems += _batch_problems(config, len(split_indices(config)["train"]), config.scale.workers)
    if problems:
        raise UserError(problems)


def _batch_problems(config: Config, samples: int, world_size: int) -> list[str]:
    batch = config.train.batch_size
    if samples >= batch * world_size:
        return []
    if samples < world_size:
        return [
            f"scale.workers: {world_size} workers need at least one training sample each, but the training part of "
            f"{config.data.name} has {samples}; the most is scale.workers={samples}"
        ]
    return [
        f"train.batch_size: {world_size} x {batch} samples per step (scale.workers x train.batch_size) must not be more than "
        f"the training part of {config.data.name}, which has {samples}; the largest is train.batch_size={samples // world_size}"
    ]


def make_loaders(config: Config, rank: int = 0, world_size: int = 1) -> Loaders:
    """Training and validation batches of one rank. The test part is not touched."""
    dataset, parts, train = DATASETS[config.data.name], split_indices(config), config.train
    if problems := _batch_problems(config, len(parts["train"]), world_size):
        raise UserError(problems)
    samples = dataset.load(config)
    return Loaders(
        train=TrainLoader(
            dataset, samples, parts["train"], batch_size=train.batch_size, seed=train.seed, augment=config.data.augment,
            rank=rank, world_size=world_size, workers=config.data.workers, pin_memory=_pin_memory(config),
        ),
        validation=_eval_loader(config, parts["validation"], rank, world_size),
    )  # fmt: skip


def make_test_loader(config: Config, rank: int = 0, world_size: int = 1) -> EvalLoader:
    """Test batches of one rank; for `evaluate` alone."""
    return _eval_loader(config, split_indices(config)["test"], rank, world_size)


def _eval_loader(config: Config, indices: np.ndarray, rank: int, world_size: int) -> EvalLoader:
    dataset = DATASETS[config.data.name]
    return EvalLoader(
        dataset, dataset.load(config), indices, batch_size=config.train.eval_batch_size or config.train.batch_size,
        rank=rank, world_size=world_size, workers=config.data.workers, pin_memory=_pin_memory(config),
    )  # fmt: skip


def _pin_memory(config: Config) -> bool:
    import torch

    return config.scale.device != "cpu" and torch.cuda.is_available()
