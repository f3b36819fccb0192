"""The published sizes in timm's registry: `timm.create_model("statten_8_768")` after `import statten`.

This module is imported when timm has been, perhaps while a backbone's own module is still importing timm; so that one is
imported when a model is made.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from timm.models import register_model
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError

_SMALL: dict[str, Any] = {"image_size": 32, "num_classes": 10}
_LARGE: dict[str, Any] = {"image_size": 224, "num_classes": 1000}


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


def _sizes() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The published sizes: depth and embedding dimension in the name; the smaller ones for CIFAR, the others for ImageNet."""
    for D in (256, 512):
        yield f"statten_2_{D}", {**_SMALL, "depth": 2, "embed_dim": D}
    for D in (512, 768):
        yield f"statten_8_{D}", {**_LARGE, "depth": 8, "embed_dim": D, "pooling": "1111"}
    small, large = ({**size, "backbone": "spikformer"} for size in (_SMALL, _LARGE))
    yield "statten_spikformer_4_384", {**small, "depth": 4, "embed_dim": 384, "num_heads": 12}
    for D in (384, 512, 768):
        yield f"statten_spikformer_8_{D}", {**large, "depth": 8, "embed_dim": D, "num_heads": D // 64, "pooling": "1111"}
    for name in ("maxformer", "ms_qkformer", "qkformer"):
        small, large = ({**size, "backbone": name} for size in (_SMALL, _LARGE))
        yield f"statten_{name}_4_384", {**small, "depth": 4, "embed_dim": 384, "num_heads": 8}
        for D in (384, 512, 768):
            yield f"statten_{name}_10_{D}", {**large, "depth": 10, "embed_dim": D, "num_heads": D // 64, "stem_stride": 4}


def _register(name: str, defaults: Mapping[str, Any]) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(dict(defaults), pretrained, options)

    create.__name__ = create.__qualname__ = name  # what timm registers it as
    globals()[name] = register_model(create)


__all__: list[str] = []  # timm adds the names to it
for _name, _defaults in _sizes():
    _register(_name, _defaults)
