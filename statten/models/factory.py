"""A config to its network."""

import torch

from statten.config import ModelConfig
from statten.models.backbones.base import Backbone
from statten.registry import BACKBONES


def build_model(config: ModelConfig, backend: str = "auto") -> Backbone:
    """The network that a config describes, with fresh weights from torch's current random state.

    Args:
        config: the model's part of a config.
        backend: implementation of the neurons; `auto` takes the fastest that runs here.

    Raises:
        UserError: no such backend.
    """
    return BACKBONES[config.backbone](config, backend)


def layer_names(config: ModelConfig) -> list[str]:
    """The spiking layers of a config's network in the order of the forward pass."""
    with torch.device("meta"):
        return list(build_model(config, "torch").spiking_layers())
