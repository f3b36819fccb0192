"""The published sizes in timm's registry: `timm.create_model("statten_8_768")` after `import statten`.

`timm.create_model("local-dir:DIR", pretrained=True)` opens what `statten export` wrote, and `hf-hub:` the same on a hub.

This module is imported when timm has been, perhaps while a backbone's own module is still importing timm; so that one is
imported when a model is made.
"""

from typing import Any

from timm.models import load_pretrained, register_model, resolve_pretrained_cfg
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError

__all__ = ["statten_2_256", "statten_2_512", "statten_8_512", "statten_8_768"]

TIMM_NAMES = {"in_chans": "in_channels", "img_size": "image_size", "drop_path_rate": "drop_path"}
"""What timm calls fields of the model."""

_SMALL = {"depth": 2, "pooling": "0011", "image_size": 32, "num_classes": 10}
_LARGE = {"depth": 8, "pooling": "1111", "image_size": 224, "num_classes": 1000}


def _create(defaults: dict[str, Any], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from statten.models.factory import build_model

    # What timm hands to every model; `about` says where weights lie, and how their input is made.
    about, _, overlay, cache = (
        options.pop(name, None) for name in ("pretrained_cfg", "pretrained_model_args", "pretrained_cfg_overlay", "cache_dir")
    )
    if pretrained and not about:
        raise UserError(
            "no pretrained weights are bundled; load a published file with statten.models.published.load_published(path)"
        )
    fields = {TIMM_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    config = ModelConfig.model_validate({**defaults, **fields})
    model: Any = build_model(config)
    if not about:
        about = {"input_size": (config.in_channels, *[config.image_size] * 2), "num_classes": config.num_classes}
    model.pretrained_cfg = resolve_pretrained_cfg("statten", about, overlay).to_dict()
    if pretrained:
        load_pretrained(
            model, model.pretrained_cfg, num_classes=config.num_classes, in_chans=config.in_channels, cache_dir=cache
        )
    return model


@register_model
def statten_2_256(pretrained: bool = False, **options: Any) -> nn.Module:
    """CIFAR and event data: 2 blocks, D = 256."""
    return _create({**_SMALL, "embed_dim": 256}, pretrained, options)


@register_model
def statten_2_512(pretrained: bool = False, **options: Any) -> nn.Module:
    """CIFAR: 2 blocks, D = 512."""
    return _create({**_SMALL, "embed_dim": 512}, pretrained, options)


@register_model
def statten_8_512(pretrained: bool = False, **options: Any) -> nn.Module:
    """ImageNet: 8 blocks, D = 512."""
    return _create({**_LARGE, "embed_dim": 512}, pretrained, options)


@register_model
def statten_8_768(pretrained: bool = False, **options: Any) -> nn.Module:
    """ImageNet: 8 blocks, D = 768."""
    return _create({**_LARGE, "embed_dim": 768}, pretrained, options)
