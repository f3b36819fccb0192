"""What may change in a run's config.yaml between two attempts: what its newest checkpoint still fits."""

from typing import Any

import torch

from statten.config import Config, build_config, field_paths, get_field
from statten.errors import ConfigError, UserError, shown
from statten.models import build_model
from statten.records.reading import read
from statten.records.runs import State
from statten.storage.checkpoint import STATE
from statten.storage.run import Run, checkpoints

FREE = {"timesteps", "block_size", "drop_path", "per_timestep_logits"}
"""Fields of the model that own no weights."""


def changed_shapes(before: Config, after: Config) -> list[str]:
    """The model fields that differ, if the names or shapes of the weights do."""
    fields = [f"model.{name}" for name in type(before.model).model_fields if name not in FREE]
    differ = [f for f in fields if get_field(before, f) != get_field(after, f)]
    if not differ:
        return []
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in build_model(c.model, "torch").state_dict().items()} for c in (before, after)]
    return differ if shapes[0] != shapes[1] else []


def check_resumable(run: Run) -> list[str]:
    """Compare a run's config with the one that its newest checkpoint was written under.

    Returns what changed and may, such as "train.lr (0.004, now 0.002)"; nothing for a checkpoint that does not know its config.

    Raises:
        UserError: fields changed that the checkpoint's weights or its optimizer do not fit.
    """
    found = checkpoints(run.checkpoint_folder)
    try:
        saved = read(found[-1] / STATE, State) if found else None
    except UserError:  # damaged: the one before it counts
        return []
    config = saved.get("config") if saved else None
    if saved is None or config is None:
        return []
    try:
        before, after = build_config(config), run.config
    except ConfigError:  # a field that another version had
        return []
    paths = [path for path in field_paths() if path.partition(".")[0] in config]
    changed = {path: _change(before, after, path) for path in paths if get_field(before, path) != get_field(after, path)}
    fixed = {"data.name", "train.optimizer", *changed_shapes(before, after)}
    if (before.train.ema_decay is None) != (after.train.ema_decay is None):
        fixed.add("train.ema_decay")
    if saved["step"]:  # counted in batches
        fixed |= {"train.batch_size", "data.fraction"}
    may = [change for path, change in changed.items() if path not in fixed]
    if must := [change for path, change in changed.items() if path in fixed]:
        others = f"; free to change {'is' if len(may) == 1 else 'are'} {', '.join(may)}" if may else ""
        what = f"was edited, and {found[-1].name} does not fit it any more"
        raise UserError(f"{run.path / 'config.yaml'}: {what}: set back {', '.join(must)}{others}")
    return may


def _change(before: Config, after: Config, path: str) -> str:
    old, new = (shown(_plain(get_field(config, path))) for config in (before, after))
    return f"{path} ({old}, now {new})"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
