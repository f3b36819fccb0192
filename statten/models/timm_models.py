"""The published sizes in timm's registry: `timm.create_model("statten_8_768")` after `import statten`.

This module is imported when timm has been, perhaps while a backbone's own module is still importing timm; so that one is
imported when a model is made.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError

__all__ = ["statten_2_256", "statten_2_512", "statten_8_512", "statten_8_768"]

_SMALL = {"depth": 2, "pooling": "0011", "image_size": 32, "num_classes": 10}
_LARGE = {"depth": 8, "pooling": "1111", "image_size": 224, "num_classes": 1000}


def _create(defaults: dict[str, Any], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from statten.models.factory import build_model

    if pretrained:
        raise UserError(
            "no pretrained weights are bundled; load a published file with statten.models.published.load_published(path)"
        )
    names = {"in_chans": "in_channels", "img_size": "image_size", "drop_path_rate": "drop_path"}
    for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(unused, None)  # what timm hands to every model
    fields = {names.get(name, name): value for name, value in options.items() if value is not None}
    return build_model(ModelConfig.model_validate({**defaults, **fields}))


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
