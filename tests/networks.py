"""The smallest config of each backbone, by the layout of its line: a new backbone is tested by existing."""

from typing import Any

import torch

from statten.config import ModelConfig
from statten.models import BACKBONES, Backbone, build_model

BY_LAYOUT = {
    "columns": {"image_size": 8, "pooling": "0001", "embed_dim": 32, "depth": 2, "mlp_ratio": 2},
    "pyramid": {"image_size": 16, "embed_dim": 64, "depth": 4, "mlp_ratio": 2},
    "meta": {"image_size": 32, "embed_dim": 32, "depth": 4, "mlp_ratio": 2},
}
FOR_CLIPS = {"pyramid": {"image_size": 32}}
"""What is larger for event clips, whose stem halves three times."""
NAMES = list(BACKBONES)


def tiny(backbone: str, **fields) -> ModelConfig:
    """A config of a backbone with 4 heads, 2 channels and 5 classes."""
    layout = BACKBONES.line(backbone).layout
    clips = FOR_CLIPS.get(layout, {}) if fields.get("events") else {}
    # With the published thresholds so few tokens hardly fire.
    common = {"num_heads": 4, "in_channels": 2, "num_classes": 5, "v_threshold": 0.1, "attention_threshold": 0.05}
    return ModelConfig(**{"backbone": backbone, **common, **BY_LAYOUT[layout], **clips, **fields})


def on_digits(backbone: str) -> dict[str, Any]:
    """What makes the `digits` recipe such a config."""
    layout = BACKBONES.line(backbone).layout
    fields = {"pooling": "0011", "backbone": backbone, "num_heads": 4, "timesteps": 2, **BY_LAYOUT[layout]}
    return {f"model.{name}": value for name, value in fields.items()}


def samples(config: ModelConfig, batch: int = 4, seed: int = 0) -> torch.Tensor:
    """Random numbers in the shape of a config's images or clips, in the spread of normalised pixels."""
    clip = (config.timesteps,) if config.events else ()
    shape = (batch, *clip, config.in_channels, config.image_size, config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2


def alive(config: ModelConfig, backend: str = "torch") -> Backbone:
    """A network whose BatchNorms have seen three batches, so that its neurons fire, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(config, backend).train()
    with torch.no_grad():
        for seed in range(3):
            model(samples(config, seed=seed))
    return model.eval()
