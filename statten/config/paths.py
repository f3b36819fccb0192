"""Dotted paths of fields: what lies at one, and which was meant by a name that is none."""

import difflib
from typing import Any, get_args

from statten.config.parts import Part
from statten.config.schema import Config
from statten.errors import ConfigError

SYNONYMS = {
    "data.auto_augment": "aa augmentation autoaugment randaugment",
    "data.crop_scale": "crop scale",
    "data.hflip": "flip horizontal_flip",
    "data.name": "dataset",
    "data.root": "data data_dir data_path data_root dir folder path",
    "data.validation": "val val_split validation_split",
    "data.workers": "loader_workers n_workers num_workers",
    "log.mlflow": "mlflow_uri tracking_uri",
    "log.project": "experiment wandb_project",
    "log.wandb": "weights_and_biases",
    "model.attention": "attn",
    "model.block_size": "b block",
    "model.depth": "blocks layers n_layers num_blocks num_layers",
    "model.drop_path": "drop_path_rate dropout stochastic_depth",
    "model.embed_dim": "d_model dim embedding_dim hidden_dim hidden_size width",
    "model.image_size": "img_size imgsz input_size resolution size",
    "model.in_channels": "channels in_chans",
    "model.num_classes": "classes n_classes",
    "model.num_heads": "heads n_heads",
    "model.surrogate_alpha": "alpha surrogate",
    "model.timesteps": "t num_steps steps time_steps",
    "model.v_threshold": "threshold v_th vth",
    "scale.activation_checkpointing": "checkpointing gradient_checkpointing",
    "scale.cpus_per_worker": "cores cpus num_cpus",
    "scale.device": "gpu",
    "scale.workers": "gpus num_gpus world_size",
    "search.max_hours": "budget hours",
    "search.objectives": "metric objective",
    "search.scheduler": "pruner",
    "search.trials": "n_trials num_samples num_trials",
    "train.batch_size": "batch bs",
    "train.checkpoint_every_steps": "checkpoint_every save_every",
    "train.clip_grad": "clip gradient_clip grad_clip",
    "train.ema_decay": "ema",
    "train.epochs": "epoch max_epoch n_epochs num_epochs",
    "train.label_smoothing": "smoothing",
    "train.lr": "learning_rate",
    "train.optimizer": "opt optim",
    "train.precision": "amp dtype fp16 mixed_precision",
    "train.warmup_epochs": "warmup",
    "train.weight_decay": "decay wd",
}
"""What fields are called elsewhere."""


def field_at(path: str) -> Any:
    """The pydantic field at a dotted path; raises ConfigError with the nearest path when there is none."""
    model: Any = Config
    field: Any = None
    for key in path.split("."):
        owner = part_of(model)
        fields = owner.model_fields if owner else {}
        if key not in fields:
            raise ConfigError(f"{path}: no such field; {nearest_field(path)}")
        field = fields[key]
        model = field.annotation
    if isinstance(model, type) and issubclass(model, Part):
        raise ConfigError(f"{path}: is a part, not a field; its fields are {', '.join(model.model_fields)}")
    return field


def fields_called(name: str) -> list[str]:
    """The fields whose last part is a name, or which others call so."""
    name = name.lower().replace("-", "_")
    same = [path for path in field_paths() if path.rpartition(".")[2] == name]
    return same or [path for path, names in SYNONYMS.items() if name in names.split()]


def fields_meant(path: str) -> list[str]:
    """The fields that a path which is none may mean: by its last part, by what others call it, or spelled almost so."""
    part, last, paths = path.partition(".")[0], path.rpartition(".")[2], field_paths()
    if called := fields_called(last):
        return called
    for among in ([known for known in paths if known.startswith(f"{part}.")], paths):
        ends = [known.rpartition(".")[2] for known in among]
        if close := difflib.get_close_matches(last, ends, n=1):
            return [known for known in among if known.endswith(f".{close[0]}")]
    return []


def nearest_field(path: str) -> str:
    """The end of an error sentence: the field that was meant, or how to list all."""
    if meant := fields_meant(path):
        return f"did you mean {' or '.join(meant)}?"
    part = path.partition(".")[0]
    return f"list them with: statten fields{f' {part}.' if part in Config.model_fields else ''}"


def part_of(annotation: Any) -> type[Part] | None:
    """The part that an annotation such as `NeuronKind | NeuronMap` names, or None."""
    parts = [m for m in (annotation, *get_args(annotation)) if isinstance(m, type) and issubclass(m, Part)]
    return parts[0] if parts else None


def is_text(path: str) -> bool:
    """Whether the field at a dotted path takes text."""
    try:
        annotation = field_at(path).annotation
    except ConfigError:
        return False  # said where the override is applied
    return str in (annotation, *get_args(annotation))


def field_paths() -> list[str]:
    """Dotted paths of all fields, in order."""
    return [f"{part}.{name}" for part, field in Config.model_fields.items() for name in field.annotation.model_fields]  # type: ignore[union-attr]


def get_field(config: Config, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
    return value
