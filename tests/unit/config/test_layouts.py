"""How backbones lay out their stages: the published sizes, and a sentence for everything that does not fit."""

import pytest
from networks import tiny

from statten.config import ModelConfig, build_config
from statten.errors import ConfigError


def laid_out(backbone, **fields):
    return [tuple(stage) for stage in ModelConfig(backbone=backbone, **fields).stages]


def refused(backbone, **fields):
    """The one sentence that a config of a backbone is refused with."""
    with pytest.raises(ConfigError) as caught:
        build_config({"model": {"backbone": backbone, **fields}})
    (problem,) = caught.value.problems
    return problem


PYRAMIDS = ["maxformer", "ms_qkformer", "qkformer"]


@pytest.mark.parametrize("backbone", PYRAMIDS)
def test_a_pyramid_is_laid_out_by_its_stem(backbone):
    images = {"embed_dim": 384, "depth": 10, "num_heads": 6, "image_size": 224, "stem_stride": 4}
    assert laid_out(backbone, **images) == [(96, 56, 1), (192, 28, 2), (384, 14, 7)]
    assert laid_out(backbone, embed_dim=384, depth=4) == [(96, 32, 1), (192, 16, 1), (384, 8, 2)]
    clips = {"events": True, "embed_dim": 256, "num_heads": 16, "image_size": 128, "in_channels": 2}
    assert laid_out(backbone, **clips) == [(128, 16, 1), (256, 8, 1)]
    odd = {"embed_dim": 64, "depth": 4, "image_size": 37, "stage_dims": (16, 48, 64), "stage_depths": (2, 1, 1)}
    assert laid_out(backbone, **odd) == [(16, 37, 2), (48, 19, 1), (64, 10, 1)]


@pytest.mark.parametrize("backbone", PYRAMIDS)
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"depth": 2}, "`depth` must be at least 3 for {}, whose stages all have blocks, but got 2"),
        ({"depth": 3, "stem_stride": 4}, "`depth` must be at least 4 for {}, whose stages all have blocks, but got 3"),
        (
            {"depth": 1, "stem_stride": 8, "embed_dim": 64},
            "`depth` must be at least 2 for {}, whose stages all have blocks, but got 1",
        ),
        (
            {"depth": 4, "embed_dim": 100},
            "`embed_dim` must be a multiple of 32 for {} with 8 heads in each of 3 stages, but got 100; the nearest is 96",
        ),
        ({"depth": 4, "image_size": 8, "stem_stride": 4}, "`image_size` must be at least 16 for {} (4 halvings), but got 8"),
        (
            {"depth": 4, "stage_depths": [1, 3]},
            "`stage_depths` must hold 3 numbers above 0 for {}, one a stage, but got [1, 3]",
        ),
        (
            {"depth": 4, "stage_depths": [1, 1, 1]},
            "`depth` must be the sum of `stage_depths`, but got (depth=4, stage_depths=[1, 1, 1]); the nearest is 3",
        ),
        (
            {"depth": 4, "stage_dims": [64, 256]},
            "`stage_dims` must hold 3 numbers above 0 for {}, one a stage, but got [64, 256]",
        ),
        (
            {"depth": 4, "stage_dims": [64, 128, 512]},
            "`embed_dim` must be that of `stage_dims`, but got (embed_dim=256, stage_dims=[64, 128, 512]); the nearest is 512",
        ),
        ({"depth": 4, "stage_dims": [64, 100, 256]}, "`stage_dims` must be divisible by `num_heads`, but 100 is not by 8"),
        (
            {"depth": 4, "num_heads": 1, "stage_dims": [63, 128, 256]},
            "`stage_dims` must begin with a multiple of 2 for {}'s stem, but got [63, 128, 256]",
        ),
        ({"depth": 4, "stem_stride": 2}, "model.stem_stride: must be one of 1, 4 or 8, but got 2"),
        ({"depth": 4, "attention": "sdsa"}, "`attention` must be one of statten, ssa for {}, but got sdsa"),
        ({"depth": 4, "pooling": "1111"}, "`pooling` has no effect on {}, but got '1111'; leave it out, or at '0011'"),
    ],
    ids=str,
)
def test_what_a_pyramid_cannot_be_is_a_sentence(backbone, fields, sentence):
    assert sentence.format(backbone) in refused(backbone, **fields)


@pytest.mark.parametrize("backbone", ["sdt", "spikformer"])
@pytest.mark.parametrize(
    ("field", "value"), [("early_mixer", "dwc"), ("stem_stride", 4), ("stage_depths", [1, 1]), ("stage_dims", [64, 256])]
)
def test_a_field_of_other_backbones_is_refused(backbone, field, value):
    said = refused(backbone, **{field: value})
    assert f"`{field}` has no effect on {backbone}, but got " in said and "leave it out" in said


def test_a_neuron_that_is_not_there_and_a_mixer_that_does_not_fit_are_refused():
    fields = {"depth": 4, "neuron": {"head": "plif"}}
    assert "`neuron.head` has no effect on qkformer" in refused("qkformer", **fields)
    assert tiny("maxformer", neuron={"head": "plif"}).neuron_at("head") == "plif"
    assert "`early_mixer` must be one of qk_token, qk_channel, identity for qkformer, but got dwc" in refused(
        "qkformer", depth=4, early_mixer="dwc"
    )
    assert "`attention_scale` has no effect on sdt" in refused("sdt", attention_scale=0.5)


def test_an_unknown_backbone_is_refused_with_the_nearest():
    said = refused("maxforme")
    assert "backbone" in said and "maxformer" in said
