"""What `evaluate` can be pointed at: a checkpoint, a run, a sweep, an export, or a published checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from statten.config import Config, load_config, parse_overrides, with_overrides
from statten.data import check_split, open_source, resolved
from statten.errors import UserError
from statten.files import sha256
from statten.models import Backbone, build_model
from statten.models.published import fit_weights, read_published
from statten.records.measurements import Exported
from statten.records.reading import read
from statten.registry import BACKBONES
from statten.search.sweep import Sweep, open_folder
from statten.storage.checkpoint import EMA, MODEL, class_names, load_weights
from statten.storage.run import Run
from statten.storage.supernet import Supernet
from statten.training.preflight import Preflight, preflight, this_device, to_device

_LARGE = {"model.image_size": 288, "data.crop_pct": 0.9}
"""The published evaluation at a larger size: resized to 320, the centre of 288."""


@dataclass(frozen=True)
class Target:
    """Weights with the config that they are evaluated with."""

    source: Path
    """The checkpoint folder, the published file, or the weights of an export."""
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
    as_published: bool = False
    """Whether QKFormer mixes the samples of a batch, as its published code does."""
    exact: bool = False
    """Whether everything is computed in float64, so that no rounding flips a spike when batches or machines differ."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.exported:
            return self.source.absolute().parent.name
        if self.run is None:
            return self.source.name.removesuffix(".pth.tar")
        folder = self.run.path
        return f"{folder.parents[1].name}/{folder.name}" if folder.parent.name == "trials" else folder.name

    @property
    def exported(self) -> bool:
        """Whether it is what `statten export` wrote."""
        return _is_export(self.source)

    def evaluated_on(self, workers: int) -> Config:
        """The config of an evaluation on so many workers; training's batch size, which data must fill, says nothing here.

        Nor does the share of a GPU that training on several workers must leave whole: `preflight` has it.
        """
        train = self.config.train
        fields = {"train.batch_size": 2, "train.eval_batch_size": train.eval_batch_size or train.batch_size}
        return with_overrides(self.config, {**fields, "scale.workers": workers, "scale.gpus_per_worker": 1.0})

    def preflight(self, config: Config, capacity: dict[str, float] | None = None) -> Preflight:
        """What would fail, before it starts; a run is refused on data that are no longer those of its split."""
        plan = preflight(config, capacity, gpus_per_worker=self.config.scale.gpus_per_worker)
        self._check_split(config)
        return plan

    def _check_split(self, config: Config) -> None:
        if self.run and not {"data.name", "data.root"} & self.changed.keys():
            check_split(config, _split_file(self.run))

    @property
    def precision(self) -> str:
        """Of the computation."""
        return "fp64" if self.exact else self.config.train.precision

    def weights(self) -> dict[str, Tensor]:
        """The weights under our names, verified."""
        if self.run is None and not self.exported:
            return read_published(self.source, self.averaged).weights
        return load_weights(self.source, averaged=self.averaged)

    def model(self) -> Backbone:
        """The model with its weights on its device, in evaluation mode; raises UserError where they do not fit."""
        model = build_model(self.config.model, self.config.scale.neuron_backend)
        fit_weights(model, self.weights(), self.source)
        if self.as_published:
            model.mix_samples()
        return to_device(model.eval().double() if self.exact else model.eval(), this_device(self.config.scale))

    def classes(self) -> list[str]:
        """Name of each class that the model tells apart.

        They are kept with the checkpoint or the export. Of a published file, and of runs of earlier versions, they are those of
        its data where these are there as they were; else a class is called by its number.
        """
        names: Sequence[str] = class_names(self.source) if self.source.is_dir() else []
        if self.exported:
            names = label_names(self.source.parent)
        if not names:
            with suppress(UserError):
                self._check_split(self.config)
                names = open_source(self.config).classes
        count = self.config.model.num_classes
        return [*names[:count], *map(str, range(len(names), count))]

    def key(self, **further: Any) -> str:
        """A digest of everything that decides the numbers."""
        path = self.source if self.source.is_file() else self.source / (EMA if self.averaged else MODEL)
        if not path.is_file():
            raise UserError(f"{self.source}: not a usable checkpoint: {path.name} is missing")
        model, data = (getattr(self.config, part).model_dump(mode="json") for part in ("model", "data"))
        data.pop("workers")  # who reads does not matter
        # Evaluations from before there were these fields keep their folders.
        if data["regroup"] == "none":
            del data["regroup"]
        model = {name: value for name, value in model.items() if value is not None and (name, value) != ("backbone", "sdt")}
        decides = {"weights": sha256(path), "averaged": self.averaged, "precision": self.precision, **further}
        if self.as_published:
            decides |= {"as_published": self.config.train.eval_batch_size}
        text = json.dumps({"model": model, "data": data, **decides}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


_MIXED = "--as-published: samples of a batch mix, so that the result depends on their order and on train.eval_batch_size"
DECIDES = ("train.precision", "train.batch_size", "train.eval_batch_size")
"""Fields of training that matter to an evaluation."""


def open_target(
    path: Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    data: str | None = None,
    ema: bool = True,
    large: bool = False,
    exact: bool = False,
    as_published: bool = False,
) -> Target:
    """Find the weights and the config that a path means.

    Args:
        path: a sweep (its best trial), a run (its best epoch), a checkpoint folder, a folder that `statten export` wrote or a
            published `.pth.tar`.
        overrides: fields to change, such as model.timesteps, which owns no weights.
        data: name of the dataset, the same as data.name.
        ema: take the moving average of the weights where there is one.
        large: evaluate files of images larger than they were trained: 288 pixels, the centre of 320.
        exact: compute in float64.
        as_published: QKFormer, in batches of 32 if train.eval_batch_size is not among the overrides, whose samples mix.

    Raises:
        UserError: no such thing, or it cannot be read.
    """
    changed: dict[str, Any] = {"data.name": data} if data else {}
    if large:
        changed |= _LARGE
    changed |= parse_overrides(overrides)
    if idle := [field for field in changed if field.partition(".")[0] in ("train", "search", "log") and field not in DECIDES]:
        raise UserError(f"--set {idle[0]}: decides nothing of an evaluation; what does is in data, model and scale, and "
                        f"{' and '.join(DECIDES)}")  # fmt: skip
    if as_published and "train.eval_batch_size" not in changed:
        changed["train.eval_batch_size"] = 32
    mixed = [_MIXED] if as_published else []
    run, source = resolve(path)
    if _is_export(source):
        config = load_config(source.parent / EXPORTED_CONFIG)
        return Target(source, _changed(config, changed, large), False, None, changed, exact=exact)
    if run is None:
        found = read_published(source, ema)
        config, rows = found.translate(changed)
        dataset = next((row for row in rows if row["argument"] == "dataset"), None)
        if "data.name" not in changed and (dataset is None or dataset["field"] is None):
            why = f" ({dataset['value']}: {dataset['reason']})" if dataset else ""
            raise UserError(f"{source}: its arguments name no dataset that is known here{why}; name one with --data")
        config = _changed(config, changed, large)
        notes = [*found.notes, *found.untold(changed), *mixed, *_defaults(config, changed, rows)]
        return Target(source, _mixing(config, as_published), found.averaged, None, changed, rows, notes, as_published, exact)
    averaged = ema and (source / EMA).is_file()
    config = _mixing(_changed(run.config, changed, large), as_published)
    return Target(source, config, averaged, run, changed, notes=mixed, as_published=as_published, exact=exact)


def _mixing(config: Config, as_published: bool) -> Config:
    """The config, if it can be evaluated so."""
    m = config.model
    if as_published and not BACKBONES[m.backbone].published_mixes:
        mixing = [name for name in BACKBONES if BACKBONES[name].published_mixes]
        raise UserError(
            f"--as-published: is for {' and '.join(mixing)}, whose published code mixes the samples of a batch, "
            f"but the network is {m.backbone}; leave it out"
        )
    if as_published and m.neuron_at("attention") != "lif":
        raise UserError("--as-published: published neurons of attention are lif, but model.neuron has plif there; leave it out")
    return config


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


EXPORTED_CONFIG, TIMM_CONFIG = "config.yaml", "config.json"
"""What lies beside the weights in a folder that `statten export` wrote."""


def _is_export(weights: Path) -> bool:
    return weights.name == MODEL and weights.is_file() and (weights.parent / EXPORTED_CONFIG).is_file()


def label_names(folder: Path) -> list[str]:
    """Name of each class as the folder of an export keeps them for timm; none in those of earlier versions."""
    about = read(folder / TIMM_CONFIG, Exported)
    return about.get("label_names", []) if about else []


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
    if isinstance(folder, Supernet):
        Run.open(path)  # says what to do instead
    if folder is not None:
        return folder, folder.best_checkpoint()
    if (path / "state.json").is_file():
        return Run.open(path.resolve().parent.parent), path
    for weights in (path, path / MODEL):
        if _is_export(weights):
            return None, weights
    if path.is_file() and path.name.endswith((".tar", ".pth", ".pt")):
        return None, path
    raise UserError(
        f"{path}: is neither a run, a sweep nor a checkpoint folder, nor an export or a published checkpoint (.pth.tar); "
        f"list what is there with: statten runs"
    )
