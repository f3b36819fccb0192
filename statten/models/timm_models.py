"""The published sizes in timm's registry: `timm.create_model("statten_8_768")` after `import statten`.

`timm.create_model("local-dir:DIR", pretrained=True)` opens what `statten export` wrote, and `hf-hub:` the same on a hub.

This module is imported when timm has been, perhaps while a backbone's own module is still importing timm; so that one is
imported when a model is made.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from timm.models import load_pretrained, register_model, resolve_pretrained_cfg
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError

TIMM_NAMES = {"in_chans": "in_channels", "img_size": "image_size", "drop_path_rate": "drop_path"}
"""What timm calls fields of the model."""

_SMALL: dict[str, Any] = {"image_size": 32, "num_classes": 10}
_LARGE: dict[str, Any] = {"image_size": 224, "num_classes": 1000}


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
    for D in (384, 512, 768):
        yield f"statten_meta_8_{D}", {**_LARGE, "backbone": "sdt2", "depth": 8, "embed_dim": D, "num_heads": 8}


def _register(name: str, defaults: Mapping[str, Any]) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(dict(defaults), pretrained, options)

    create.__name__ = create.__qualname__ = name  # what timm registers it as
    globals()[name] = register_model(create)


__all__: list[str] = []  # timm adds the names to it
for _name, _defaults in _sizes():
    _register(_name, _defaults)
