"""A config to its network."""

import torch

from statten.config import Config, ModelConfig
from statten.models.backbones.base import Backbone
from statten.registry import BACKBONES


def build_model(config: ModelConfig | Config, backend: str = "auto") -> Backbone:
    """The network that a config describes, with fresh weights from torch's current random state.

    Args:
        config: a config, or its model's part.
        backend: implementation of the neurons; `auto` takes the fastest that runs here.

    Returns:
        A module of images [B, C, H, W] or, with `events`, clips [B, T, C, H, W] to logits [B, classes], or
        [T, B, classes] with `per_timestep_logits`.

    Raises:
        UserError: no such backend.

    Example:
        >>> import statten, torch
        >>> model = statten.build_model(statten.load_config("digits"))
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    config = config.model if isinstance(config, Config) else config
    return BACKBONES[config.backbone](config, backend)


def layer_names(config: ModelConfig) -> list[str]:
    """The spiking layers of a config's network in the order of the forward pass."""
    with torch.device("meta"):
        return list(build_model(config, "torch").spiking_layers())
