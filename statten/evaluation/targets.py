"""What `evaluate` can be pointed at: a checkpoint, a run, a sweep, or a published checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from statten.config import Config, parse_overrides, with_overrides
from statten.data import check_split, resolved
from statten.errors import UserError
from statten.files import sha256
from statten.models import Backbone, build_model
from statten.models.published import fit_weights, read_published, translate
from statten.search.sweep import Sweep, open_folder
from statten.storage.checkpoint import EMA, MODEL, load_weights
from statten.storage.run import Run
from statten.training.loop import to_device
from statten.training.preflight import Preflight, preflight, this_device

_LARGE = {"model.image_size": 288, "data.crop_pct": 0.9}
"""The published evaluation at a larger size: resized to 320, the centre of 288."""


@dataclass(frozen=True)
class Target:
    """Weights with the config that they are evaluated with."""

    source: Path
    """The checkpoint folder, or the published file."""
    config: Config
    """Its config with the overrides."""
    averaged: bool
    """Whether the moving average (EMA) of the weights is taken."""
    run: Run | None = None
    """The run that it belongs to."""
    changed: dict[str, Any] = field(default_factory=dict)
    """The overrides."""
    imported: list[dict[str, Any]] = field(default_factory=list)
    """What became of each argument of a published checkpoint."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers should know of the preprocessing."""
    exact: bool = False
    """Whether everything is computed in float64, so that no rounding flips a spike when batches or machines differ."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.run is None:
            return self.source.name.removesuffix(".pth.tar")
        folder = self.run.path
        return f"{folder.parents[1].name}/{folder.name}" if folder.parent.name == "trials" else folder.name

    def evaluated_on(self, workers: int) -> Config:
        """The config of an evaluation on so many workers; training's batch size, which data must fill, says nothing here."""
        train = self.config.train
        fields = {"train.batch_size": 2, "train.eval_batch_size": train.eval_batch_size or train.batch_size}
        return with_overrides(self.config, {**fields, "scale.workers": workers})

    def preflight(self, config: Config, capacity: dict[str, float] | None = None) -> Preflight:
        """What would fail, before it starts; a run is refused on data that are no longer those of its split."""
        plan = preflight(config, capacity)
        if self.run and not {"data.name", "data.root"} & self.changed.keys():
            check_split(config, _split_file(self.run))
        return plan

    @property
    def precision(self) -> str:
        """Of the computation."""
        return "fp64" if self.exact else self.config.train.precision

    def weights(self) -> dict[str, Tensor]:
        """The weights under our names, verified."""
        if self.run is None:
            return read_published(self.source, self.averaged).weights
        return load_weights(self.source, averaged=self.averaged)

    def model(self) -> Backbone:
        """The model with its weights on its device, in evaluation mode; raises UserError where they do not fit."""
        model = build_model(self.config.model, self.config.scale.neuron_backend)
        fit_weights(model, self.weights(), self.source)
        return to_device(model.eval().double() if self.exact else model.eval(), this_device(self.config.scale))

    def key(self, **further: Any) -> str:
        """A digest of everything that decides the numbers."""
        path = self.source if self.source.is_file() else self.source / (EMA if self.averaged else MODEL)
        if not path.is_file():
            raise UserError(f"{self.source}: not a usable checkpoint: {path.name} is missing")
        model, data = (getattr(self.config, part).model_dump(mode="json") for part in ("model", "data"))
        data.pop("workers")  # who reads does not matter
        # Evaluations from before there were other backbones, and their fields, keep their folders.
        model = {name: value for name, value in model.items() if value is not None and (name, value) != ("backbone", "sdt")}
        decides = {"weights": sha256(path), "averaged": self.averaged, "precision": self.precision, **further}
        text = json.dumps({"model": model, "data": data, **decides}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


DECIDES = ("train.precision", "train.batch_size", "train.eval_batch_size")
"""Fields of training that matter to an evaluation."""


def open_target(
    path: Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    data: str | None = None,
    ema: bool = True,
    large: bool = False,
    exact: bool = False,
) -> Target:
    """Find the weights and the config that a path means.

    Args:
        path: a sweep (its best trial), a run (its best epoch), a checkpoint folder or a published `.pth.tar`.
        overrides: fields to change, such as model.timesteps, which owns no weights.
        data: name of the dataset, the same as data.name.
        ema: take the moving average of the weights where there is one.
        large: evaluate files of images larger than they were trained: 288 pixels, the centre of 320.
        exact: compute in float64.

    Raises:
        UserError: no such thing, or it cannot be read.
    """
    changed: dict[str, Any] = {"data.name": data} if data else {}
    if large:
        changed |= _LARGE
    changed |= parse_overrides(overrides)
    if idle := [field for field in changed if field.partition(".")[0] in ("train", "search") and field not in DECIDES]:
        raise UserError(f"--set {idle[0]}: decides nothing of an evaluation; what does is in data, model and scale, and "
                        f"{' and '.join(DECIDES)}")  # fmt: skip
    run, source = resolve(path)
    if run is None:
        found = read_published(source, ema)
        config, rows = translate(found.arguments)
        dataset = next((row for row in rows if row["argument"] == "dataset"), None)
        if "data.name" not in changed and (dataset is None or dataset["field"] is None):
            why = f" ({dataset['value']}: {dataset['reason']})" if dataset else ""
            raise UserError(f"{source}: its arguments name no dataset that is known here{why}; name one with --data")
        config = _changed(config, changed, large)
        return Target(source, config, found.averaged, None, changed, rows, _defaults(config, changed, rows), exact)
    averaged = ema and (source / EMA).is_file()
    return Target(source, _changed(run.config, changed, large), averaged, run, changed, exact=exact)


def _changed(config: Config, changed: dict[str, Any], large: bool) -> Config:
    name = changed.get("data.name", config.data.name)
    if large and name not in ("imagenet", "image_folder"):
        raise UserError(f"--large: is for imagenet and image_folder, but the data are {name}; leave it out")
    return resolved(with_overrides(config, changed))


def _defaults(config: Config, changed: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """A line for each field of the preprocessing of image files that a published file's arguments leave open."""
    if config.data.name not in ("imagenet", "image_folder"):
        return []
    told = {row["field"] for row in rows} | changed.keys()
    open_fields = [name for name in ("crop_pct", "interpolation") if f"data.{name}" not in told]
    return [
        f"data.{name}: the published file does not say it; the default {getattr(config.data, name)} is taken, "
        f"another goes with --set data.{name}="
        for name in open_fields
    ]


def _split_file(run: Run) -> Path:
    """Where the parts of a run's data are recorded: of a sweep's trial in the sweep, unless its trials differ in data."""
    own, sweep = run.path / "splits.json", open_folder(run.path.absolute().parents[1])
    if own.is_file() or not isinstance(sweep, Sweep):
        return own
    data, shared = run.config.data, sweep.config.data
    return sweep.path / "splits.json" if (data.name, data.root) == (shared.name, shared.root) else own


def resolve(path: Path) -> tuple[Run | None, Path]:
    """The run and the checkpoint that a path means; no run with a published checkpoint."""
    folder = open_folder(path)
    if isinstance(folder, Sweep):
        folder = folder.checked(folder.best_trial())
    if folder is not None:
        return folder, folder.best_checkpoint()
    if (path / "state.json").is_file():
        return Run.open(path.resolve().parent.parent), path
    if path.is_file() and path.name.endswith((".tar", ".pth", ".pt")):
        return None, path
    raise UserError(
        f"{path}: is neither a run, a sweep nor a checkpoint folder, nor a published checkpoint (.pth.tar); "
        f"list what is there with: statten runs"
    )
