"""Train what a sweep found further."""

from pathlib import Path
from typing import Any

import torch

from statten.cluster.trainer import train
from statten.config import Config, get_field, with_overrides
from statten.errors import UserError
from statten.models import build_model
from statten.storage.checkpoint import weights_file
from statten.storage.run import Run


def promote(
    source: Run, config_overrides: dict[str, Any] | list[str], path: Path, recorded: dict[str, Any] | None = None
) -> Run:
    """Train a trial or run further in a new folder, from the (averaged) weights by which its best epoch was judged.

    The schedule may be longer, the timesteps more, the data whole; fields that own parameters must stay.

    Raises:
        UserError: the overrides change the shape of the weights, or anything that `train` refuses.
    """
    config = with_overrides(source.config, config_overrides)
    changed = _changed_shapes(source.config, config)
    if changed:
        raise UserError(
            f"--set: a promoted run starts from trained weights, so {changed} must stay as in {source.path}; "
            f"model.timesteps and model.block_size own no weights and may change"
        )
    checkpoint = source.best_checkpoint()
    origin = {"checkpoint": str(checkpoint), **(recorded or {})}
    return train(config, path, weights_file(checkpoint), origin)


def _changed_shapes(before: Config, after: Config) -> str:
    """The model fields that differ, if the shapes of the weights do."""
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in build_model(c.model, "torch").state_dict().items()} for c in (before, after)]
    if shapes[0] == shapes[1]:
        return ""
    free = {"timesteps", "block_size", "drop_path", "per_timestep_logits"}
    fields = [f"model.{name}" for name in type(before.model).model_fields if name not in free]
    differ = [f"{f}={get_field(before, f)}" for f in fields if get_field(before, f) != get_field(after, f)]
    return ", ".join(differ)
