"""Weights of published implementations, recognised by their names, and written back under them.

Depth, widths, channels and classes are those of the weights; what owns none - timesteps, heads, the size of the input - comes
from the arguments that a file holds, or is the network's published default.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statten.config import Config, ModelConfig, NeuronMap, build_config, get_field, with_overrides
from statten.errors import ConfigError, UserError
from statten.models.archive import read_saved
from statten.models.backbones.base import Backbone
from statten.models.backbones.weights import plain_names
from statten.models.factory import build_model
from statten.registry import BACKBONES

log = logging.getLogger("statten")


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The backbone that published weights are of, by their names; None where no network that is known here has such."""
    state = plain_names(state)
    return next((name for name in BACKBONES if BACKBONES[name].recognises(state)), None)


def from_published(state: Mapping[str, Tensor], backbone: str | None = None) -> dict[str, Tensor]:
    """A published state_dict, with or without wrappers' prefixes such as "module.", as one of ours.

    Args:
        state: the published weights.
        backbone: the network that they are of; empty means the one that their names tell.

    Raises:
        UserError: weights of another network or of none that is known, that have no place here, or lack their partners.
    """
    found = recognise(state)
    if backbone and found and found != backbone:
        raise UserError(f"published weights: their names are those of {found}, not of {backbone}")
    name = backbone or found
    if name is None:
        raise _unknown(state)
    return BACKBONES[name].from_published(state)


def to_published(state: Mapping[str, Tensor], config: ModelConfig | None = None) -> dict[str, Tensor]:
    """The state_dict of a config's network, by default `sdt`, under the published names; raises UserError."""
    config = config or ModelConfig()
    return BACKBONES[config.backbone].to_published(state, config)


def _unknown(state: Mapping[str, Tensor]) -> UserError:
    return UserError(
        f"published weights: are of none of the networks that are known here ({', '.join(BACKBONES)}); "
        f"there is no place for {', '.join([*state][:3]) or 'nothing'}"
    )


# Arguments of the published trainers and the fields that they are here. The Spike-driven Transformer's shape it, and must be
# there; the others' trainers have further names for the same.
_SHAPE = {
    "num_classes": "model.num_classes",
    "img_size": "model.image_size",
    "in_channels": "model.in_channels",
    "pooling_stat": "model.pooling",
    "layer": "model.depth",
    "dim": "model.embed_dim",
    "num_heads": "model.num_heads",
    "mlp_ratio": "model.mlp_ratio",
    "time_steps": "model.timesteps",
    "chunk_size": "model.block_size",
    "TET": "model.per_timestep_logits",
}
_SYNONYMS = {
    "nb_classes": "model.num_classes",
    "input_size": "model.image_size",
    "time_step": "model.timesteps",
    "T": "model.timesteps",
}
_MODES = {"spike_mode": "model.neuron", "attention_mode": "model.attention", "dvs_mode": "model.events"}
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
_ATTENTION = {"SDT": "sdsa", "STAtten": "statten", "SSA": "ssa"}
"""`attention_mode`; without one and without `chunk_size` a file is older than STAtten, and has the network's own."""


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
    backbone: str = "sdt"
    """The network that its weights are of."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Fields of the model that its weights tell."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Fields of the model where neither arguments nor weights tell them."""
    notes: list[str] = field(default_factory=list)
    """What whoever uses it should know."""

    def translate(self, overrides: Mapping[str, Any] | None = None) -> tuple[Config, list[dict[str, Any]]]:
        """The config that it describes, and what became of each argument.

        Args:
            overrides: fields of the model that win over what the file says.

        Returns:
            The config, and a row per argument: `argument`, `value`, `field` (None if it was dropped) and `reason` of that.

        Raises:
            UserError: an argument that shapes the network is missing or breaks a rule.
        """
        told = {**_SHAPE, **_SYNONYMS, **_MODES}
        fields = self._fields(told) | {path: v for path, v in (overrides or {}).items() if path.startswith("model.")}
        try:
            config = build_config({}, fields)
        except ConfigError as error:
            raise ConfigError(
                [f"published arguments: {problem.removeprefix('--set ')}" for problem in error.problems]
            ) from None
        rows = [self._told(name, path) for name, path in told.items() if name in self.arguments]
        # All others may fail one by one, for the network runs without them; in this order, as their rules build on each other.
        for name, path in _OTHERS.items():
            if name in self.arguments:
                value = self.arguments[name]
                wanted = str(value).rpartition("/")[2].replace("-", "") if name == "dataset" else value
                if not _plain(wanted):
                    rows.append(_row(name, value, None, f"is a {type(value).__name__}"))
                    continue
                try:
                    config = with_overrides(config, {path: wanted})
                    rows.append(_row(name, value, path))
                except ConfigError as error:
                    rows.append(_row(name, value, None, error.problems[0].removeprefix("--set ")))
        unknown = [name for name in self.arguments if name not in told and name not in _OTHERS]
        return config, rows + [_row(name, self.arguments[name], None, "has no field here") for name in unknown]

    def untold(self, overrides: Mapping[str, Any] | None = None) -> list[str]:
        """A line for each field that neither weights nor arguments tell, and that is not set either."""
        told = {path for name, path in {**_SHAPE, **_SYNONYMS}.items() if name in self.arguments} | set(overrides or {})
        return [
            f"{path}: neither weights nor arguments tell it; {self.defaults[path]}, as published, is taken, another goes with "
            f"--set {path}="
            for path in ("model.timesteps", "model.num_heads", "model.image_size")
            if path in self.defaults and path not in told
        ]

    def _fields(self, told: Mapping[str, str]) -> dict[str, Any]:
        """The fields of the model and the loss: defaults, then arguments, then what the weights tell."""
        arguments, sdt = self.arguments, self.backbone == "sdt"
        older = "attention_mode" not in arguments and "chunk_size" not in arguments  # than STAtten
        if sdt:
            needed = [name for name, path in _SHAPE.items() if path not in self.shape and not (older and name == "chunk_size")]
            if missing := [name for name in needed if name not in arguments]:
                raise UserError(f"published arguments: {', '.join(missing)} missing")
        if odd := [name for name in told if not _plain(arguments.get(name))]:
            raise UserError(f"published arguments: {', '.join(odd)}: must be a plain value")
        own = "sdsa" if sdt else "ssa"
        fields: dict[str, Any] = {
            "model.backbone": self.backbone,
            "model.attention": own if older else _ATTENTION.get(str(arguments.get("attention_mode")), "statten"),
            "model.block_size": 1,
            **self.defaults,
            **{path: arguments[name] for name, path in {**_SYNONYMS, **_SHAPE}.items() if name in arguments},
            # The published model uses PLIF in the MLP and the head only.
            "model.neuron": {"mlp": "plif", "head": "plif"} if arguments.get("spike_mode") == "plif" else "lif",
            "train.loss": "tet" if arguments.get("TET") else "cross_entropy",
            **self.shape,
        }
        if sdt or "dvs_mode" in arguments:
            fields["model.events"] = bool(arguments.get("dvs_mode", fields["model.in_channels"] == 2))
        if sdt and older and fields["model.events"]:
            raise UserError(
                "published arguments: dvs_mode: the Spike-driven Transformer's own event mode, which does not pool q, is not "
                "built here; what is has STAtten's, whose arguments hold attention_mode and chunk_size"
            )
        return fields

    def _told(self, name: str, path: str) -> dict[str, Any]:
        """The row of an argument that shapes the network: dropped where the weights say otherwise."""
        value = self.arguments[name]
        if path in self.shape and self.shape[path] != value:
            return _row(name, value, None, f"the weights say {self.shape[path]:g}")
        return _row(name, value, path)


def translate(arguments: Mapping[str, Any]) -> tuple[Config, list[dict[str, Any]]]:
    """The config that the arguments of a published `sdt` describe, and a row for each, as `Published.translate`."""
    return Published(dict(arguments), {}, averaged=False, epoch=None).translate()


def published_config(arguments: Mapping[str, Any]) -> ModelConfig:
    """The model that the arguments of a published `sdt` describe; raises UserError when one is missing or wrong."""
    return translate(arguments)[0].model


def published_arguments(config: Config) -> dict[str, Any]:
    """The published trainer's arguments that describe a config's network; `translate` reads them back.

    Other networks than `sdt` know nothing of STAtten: with it they get its arguments all the same, which their code ignores.

    Raises:
        UserError: the published network cannot be this one.
    """
    m = config.model
    published: dict[Any, str] = {"lif": "lif"}
    if m.backbone == "sdt":
        published[NeuronMap(mlp="plif", head="plif")] = "plif"
    same = {"tau": 2.0, "v_threshold": 1.0, "attention_threshold": 0.5}
    problems = [f"model.{k}: must be {v:g} in the published network, but is {getattr(m, k):g}" for k, v in same.items()
                if getattr(m, k) != v]  # fmt: skip
    if m.neuron not in published:
        other = ", or plif in mlp and head" if m.backbone == "sdt" else ""
        problems.append(f"model.neuron: the published network has lif everywhere{other}")
    problems += [f"model.{name}: has the published network's own value there, but is {getattr(m, name)}"
                 for name in ("attention_scale", "early_mixer") if getattr(m, name) is not None]  # fmt: skip
    if problems:
        raise UserError(problems)
    arguments = {theirs: get_field(config, ours) for theirs, ours in _SHAPE.items()}
    arguments["mlp_ratio"] = int(m.mlp_ratio) if m.mlp_ratio == int(m.mlp_ratio) else m.mlp_ratio
    mode = next(theirs for theirs, ours in _ATTENTION.items() if ours == m.attention)
    modes = {"spike_mode": published[m.neuron], "attention_mode": mode}
    return {"model": m.backbone, "dataset": f"torch/{config.data.name}", **arguments, **modes, "dvs_mode": m.events}


def _plain(value: Any) -> bool:
    """Whether a config's field could hold a value."""
    return isinstance(value, str | int | float | None) or (isinstance(value, list | tuple) and all(map(_plain, value)))


def _row(argument: str, value: Any, field: str | None, reason: str = "") -> dict[str, Any]:
    plain = value if isinstance(value, str | int | float | bool | None) else str(value)
    return {"argument": argument, "value": plain, "field": field, "reason": reason}


def read_published(path: str | Path, ema: bool = True) -> Published:
    """Read a checkpoint (.pth.tar, .pth) as published trainers write them, without running anything that is in it.

    Args:
        path: the file.
        ema: take the averaged weights (`state_dict_ema`) where the file has them, instead of the trained ones.

    Raises:
        UserError: unreadable, damaged, holding more than tensors and plain arguments, or weights of an unknown network.
    """
    path = Path(path)
    saved = read_saved(path, ema)
    try:
        state, notes = plain_names(saved.state), []
        backbone = recognise(state)
        named = saved.arguments.get("model")
        if backbone is None and isinstance(named, str) and named in BACKBONES:
            backbone = named  # whose own sentence says what is wrong with these weights
        if backbone is None:
            backbone, state = _by_order(state)
            notes.append(
                f"its names are not those of {backbone}'s code, but every weight has the shape of the one in its place"
            )
        network = BACKBONES[backbone]
        weights, shape = network.from_published(state), network.published_shape(state)
        defaults = network.published_defaults(state)
        notes += [network.published_note] if network.published_note else []
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from None
    return Published(saved.arguments, weights, saved.averaged, saved.epoch, backbone, shape, defaults, notes)


def _by_order(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Weights under names that no code has, matched by their order and shapes as their authors match them.

    Returns:
        The network, and the weights under its published names.

    Raises:
        UserError: they fit no network whose released files are older than its code.
    """
    shapes = [value.shape for value in state.values()]
    for backbone in BACKBONES:
        for theirs in BACKBONES[backbone].published_in_order(backbone, shapes):
            if list(theirs.values()) == shapes:
                return backbone, dict(zip(theirs, state.values(), strict=True))
    raise _unknown(state)


def load_published(
    path: str | Path, ema: bool = False, backend: str = "auto", overrides: Mapping[str, Any] | None = None
) -> Backbone:
    """The model of a published checkpoint in evaluation mode; what became of each of its arguments is logged.

    Args:
        path: the file; see `read_published`, whose errors it has too.
        ema: take the averaged weights where the file has them.
        backend: implementation of the neurons.
        overrides: fields of the model that the file does not tell, such as {"model.num_heads": 8}.
    """
    found = read_published(path, ema)
    config, rows = found.translate(overrides)
    for row in rows:
        log.info("%s: %s = %s %s", path, row["argument"], row["value"], row["field"] or f"dropped: {row['reason']}")
    for note in found.notes + found.untold(overrides):
        log.warning("%s: %s", path, note)
    model = build_model(config.model, backend)
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
