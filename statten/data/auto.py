"""What a config leaves to the folder of its dataset: fields that say `auto`, read from it before a run is made.

`config.yaml` then holds plain values, so resume, evaluate and every trial of a sweep see the same.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from statten.config import Config, get_field, with_overrides
from statten.config.parts import absolute_place
from statten.data.dataset import CorruptSample, Files, Source
from statten.data.factory import open_source
from statten.data.pixels import Look, Moments, look
from statten.data.split import split
from statten.data.work import default_workers, gathered
from statten.errors import UserError
from statten.registry import BACKBONES, DATASETS

LOOKED_AT = 500
"""Samples of the training part at most, evenly spaced, that sizes, mean and std are taken from."""
LARGEST = {False: 224, True: 64}
"""Of `model.image_size`, for images and for event clips: those of the published recipes."""
FINE, STEP = 32, 16
"""Above the first, `model.image_size` is a multiple of the second."""
TOKENS = 8
"""Tokens that pooling leaves on a side, at least."""
PIXELS = ("data.mean", "data.std")


def resolved(config: Config) -> Config:
    """The config as its run keeps it: places absolute, for workers have folders of their own, and no field at auto.

    The same folder gives the same values. Classes are those of the folder; image size, mean and std are those of the training
    part; `model.pooling` follows `model.image_size`.

    Raises:
        UserError: `data.root` does not hold the dataset, or a field cannot be found in it.
    """
    root = config.data.root
    if root is not None:
        config = with_overrides(config, {"data.root": str(Path(root).absolute())})
    if config.log.mlflow:
        config = with_overrides(config, {"log.mlflow": absolute_place(config.log.mlflow)})
    return with_overrides(config, found(config)) if config.auto else config


def lacks_data(config: Config) -> bool:
    """Whether a config does not say yet where its dataset is."""
    return config.data.root is None and not DATASETS[config.data.name].bundled


def found(config: Config) -> dict[str, Any]:
    """A value for every field of a config that says auto, by dotted path; raises UserError."""
    name, dataset = config.data.name, DATASETS[config.data.name]
    if dataset.bundled:
        raise UserError(f"{config.auto[0]}: auto is read from a folder, but {name} comes with the package; give a value")
    if dataset.events and (idle := [path for path in PIXELS if path in config.auto]):
        raise UserError(f"{idle[0]}: has no effect on {name}, which holds event clips, but got auto; leave it out")
    if config.data.download:
        from statten.data.prepare import fetch

        fetch(config)
    source = open_source(config)
    values: dict[str, Any] = {"model.in_channels": dataset.channels, "model.num_classes": len(source.classes)}
    size = config.model.image_size
    if {*PIXELS, "model.image_size"} & set(config.auto):
        looks = _looks(config, source)
        if "model.image_size" in config.auto:
            size = values["model.image_size"] = image_size(looks, dataset.events)
        moments = Moments()
        for one in looks:
            moments.add(one)
        values |= dict(zip(PIXELS, ([round(v, 4) for v in part] for part in (moments.mean, moments.std)), strict=True))
    if "pooling" in BACKBONES.line(config.model.backbone).fields:
        values["model.pooling"] = pooling(size)
    return {path: values.get(path, get_field(config, path)) for path in config.auto}


def image_size(looks: list[Look], events: bool) -> int:
    """The median of the shorter sides, at most that of the published recipes, in steps of 16 above 32."""
    side = min(int(median(min(one.size) for one in looks)), LARGEST[events])
    return side if side <= FINE else side - side % STEP


def pooling(size: int) -> str:
    """One digit for each of four stages: the last ones halve the map, as often as leaves at least 8 tokens on a side."""
    halvings = min(4, max(0, (size // TOKENS).bit_length() - 1))
    return ("1" * halvings).rjust(4, "0")


def _looks(config: Config, source: Source) -> list[Look]:
    assert isinstance(source, Files)
    data = config.data
    parts = split(source.labels, data.validation, data.fraction, data.split_seed, source.test, source.validation)
    train = parts["train"]
    chosen = train[np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).round().astype(int)].tolist()
    with ThreadPoolExecutor(default_workers()) as pool:
        seen = list(gathered(pool, lambda i: look(source, chosen[i]), len(chosen)))
    looks = [one for one in seen if not isinstance(one, CorruptSample)]
    if not looks:
        raise UserError(f"{', '.join(config.auto)}: auto needs a sample that can be read, but none can: {seen[0]}")
    return looks
