"""The published sizes of networks in stages, and what is theirs alone."""

import pytest
import timm
import torch
from networks import alive, samples, tiny
from timm.models import group_parameters

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models import build_model
from statten.models.attention.gates import QKGate
from statten.models.backbones.embeddings import Pointwise
from statten.models.published import from_published, to_published
from statten.neurons import LIF

PYRAMIDS = ["maxformer", "ms_qkformer", "qkformer"]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("spikformer_4_384", 9_324_730), ("spikformer_8_384", 16_816_024), ("spikformer_8_512", 29_689_384),
        ("spikformer_8_768", 66_338_632), ("qkformer_4_384", 6_706_234), ("qkformer_10_384", 16_473_688),
        ("qkformer_10_512", 29_079_336), ("qkformer_10_768", 64_962_760), ("ms_qkformer_4_384", 6_706_234),
        ("ms_qkformer_10_384", 16_473_688), ("ms_qkformer_10_512", 29_079_336), ("ms_qkformer_10_768", 64_962_760),
        ("maxformer_4_384", 6_568_282), ("maxformer_10_384", 16_237_240), ("maxformer_10_512", 28_653_480),
        ("maxformer_10_768", 63_992_200),
    ],
)  # fmt: skip
def test_timm_has_the_published_sizes(name, count):
    assert f"statten_{name}" in timm.list_models("statten_*")
    with torch.device("meta"):
        model = timm.create_model(f"statten_{name}")
    # Spikformer's CIFAR type has biases in front of the BatchNorms of q, k and v, which ours has not.
    biases = 3 * 384 * 4 if name == "spikformer_4_384" else 0
    assert parameters(model) + biases == count
    assert f"_{model.config.depth}_{model.config.embed_dim}" in name


@pytest.mark.parametrize(
    ("backbone", "fields", "count"),
    [
        ("qkformer", {"mlp_ratio": 1}, 1_504_138),
        ("qkformer", {"mlp_ratio": 4, "num_classes": 11}, 1_999_371),
        ("maxformer", {"mlp_ratio": 1}, 1_455_626),
    ],
)
def test_published_sizes_for_event_clips(backbone, fields, count):
    clips = {"events": True, "embed_dim": 256, "num_heads": 16, "image_size": 128, "in_channels": 2, "timesteps": 16}
    with torch.device("meta"):
        assert parameters(build_model(ModelConfig(backbone=backbone, **clips, **fields), "torch")) == count


@pytest.mark.parametrize("mixer", ["qk_token", "qk_channel"])
def test_a_gate_lets_k_pass_where_any_q_spikes(mixer):
    generator = torch.Generator().manual_seed(0)
    q, k = ((torch.rand(4, 2, 8, 3, 3, generator=generator) < rate).double() for rate in (0.1, 0.5))
    gate = QKGate(mixer, 2, LIF(0.5, backend="torch"))
    if mixer == "qk_channel":
        anywhere = q.amax((-1, -2), keepdim=True)
    else:
        anywhere = q.unflatten(2, (2, 4)).amax(3, keepdim=True).expand(4, 2, 2, 4, 3, 3).flatten(2, 3)
    assert torch.equal(gate(q, k), k * anywhere) and 0 < anywhere.mean() < 1


def test_a_gate_with_a_higher_threshold_integrates_over_time():
    q = torch.zeros(2, 1, 2, 1, 1)
    q[:, :, 0] = 1
    gate = QKGate("qk_token", 1, LIF(0.7, backend="torch"))  # one spike of q is 0.5, and another one a timestep later 0.75
    assert gate(q, torch.ones_like(q))[:, 0, 0, 0, 0].tolist() == [0.0, 1.0]


def test_early_mixers_are_the_backbones_own_or_chosen():
    def mixers(backbone, **fields):
        config = tiny(backbone, **fields)
        return [type(block.mixer).__name__ if hasattr(block, "mixer") else "attn" for block in build_model(config).blocks]

    assert mixers("maxformer") == ["NoneType", "DepthwiseConv", "attn", "attn"]
    assert mixers("maxformer", early_mixer="qk_token") == mixers("ms_qkformer") == ["GateAttention"] * 2 + ["attn"] * 2
    assert mixers("ms_qkformer", early_mixer="dwc") == mixers("maxformer")
    assert mixers("qkformer", early_mixer="identity") == ["NoneType"] * 2 + ["attn"] * 2
    large = build_model(tiny("maxformer", stem_stride=4, depth=5, image_size=32)).blocks
    assert [block.mixer.conv[0].kernel_size[0] for block in large[:3]] == [7, 5, 5]


def test_names_of_spiking_layers_say_who_reads_them():
    max_former = list(build_model(tiny("maxformer")).spiking_layers())
    assert max_former[:6] == ["embeds.0.0", "embeds.0.1", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "embeds.1.0", "embeds.1.1"]
    assert max_former[6] == "blocks.1.mix.in" and max_former[-1] == "head"
    ms = list(build_model(tiny("ms_qkformer")).spiking_layers())
    assert ms[2:7] == [f"blocks.0.attn.{name}" for name in ("in", "q", "k", "gate")] + ["blocks.0.mlp.fc1"]
    qk = list(build_model(tiny("qkformer")).spiking_layers())
    assert qk[:3] == ["embeds.0.0", "embeds.0.1", "embeds.0.short"]
    assert qk[3:9] == [f"blocks.0.{n}" for n in ("attn.q", "attn.k", "attn.gate", "attn.proj", "mlp.fc2", "mlp.out")]
    assert qk[-1] == "blocks.3.mlp.out"


@pytest.mark.parametrize("backbone", PYRAMIDS)
def test_an_embedding_is_grouped_with_the_block_behind_it(backbone):
    model = build_model(tiny(backbone))
    groups = group_parameters(model, model.group_matcher())
    of = {name: group for group, names in groups.items() for name in names}
    assert set(of) == {name for name, _ in model.named_parameters()}
    assert of["embeds.0.convs.0.0.weight"] == 0 and of["embeds.1.convs.0.0.weight"] == of["blocks.1.mlp.fc1.0.weight"] == 2
    assert of["embeds.2.convs.0.0.weight"] == of["blocks.2.mlp.fc1.0.weight"] == 3 < of["blocks.3.mlp.fc1.0.weight"]
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    assert len(coarse) == 3, "stem, blocks, head"


@pytest.mark.parametrize("backbone", PYRAMIDS)
@pytest.mark.parametrize("fields", [{}, {"stem_stride": 4, "depth": 5, "image_size": 32}, {"events": True}], ids=str)
def test_published_names_go_there_and_back_for_every_type(backbone, fields):
    config = tiny(backbone, **fields)
    state = build_model(config, "torch").state_dict()
    theirs = to_published(state, config)
    back = from_published({f"module.{name}": value for name, value in theirs.items()}, backbone)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    stages = [name.split(".")[0] for name in theirs]
    assert stages == sorted(stages, key=lambda name: (name == "head", name.startswith("stage"), name)), "the public order"


def test_a_strided_branch_is_the_strided_convolution():
    """And its backward pass over channels-last maps ends, which PyTorch's own need not on CPUs."""
    theirs = torch.nn.Conv2d(4, 8, 1, stride=2, bias=False)
    ours = Pointwise(4, 8, 1, stride=2, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(16, 4, 111, 111)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = ours(last)
    torch.testing.assert_close(y, theirs(x))
    y.square().sum().backward()
    assert last.grad is not None and last.grad[..., 1::2, :].abs().max() == 0 and last.grad[..., ::2, ::2].abs().min() > 0


def test_published_weights_that_do_not_fit_are_named():
    config = tiny("ms_qkformer")
    theirs = to_published(build_model(config, "torch").state_dict(), config)
    with pytest.raises(UserError, match=r"stage1\.0\.attn\.k_conv\.weight missing"):
        from_published({n: v for n, v in theirs.items() if n != "stage1.0.attn.k_conv.weight"}, "ms_qkformer")
    with pytest.raises(UserError, match=r"no place for stage1\.0\.other\.weight"):
        from_published({**theirs, "stage1.0.other.weight": torch.zeros(1)}, "ms_qkformer")
    with pytest.raises(UserError, match="their names are those of ms_qkformer, not of qkformer"):
        from_published(theirs, "qkformer")
    with pytest.raises(UserError, match="patch_embed1 is that of no known network"):
        from_published({n: v for n, v in theirs.items() if not n.startswith("patch_embed1.proj")}, "ms_qkformer")
    with pytest.raises(UserError, match=r"stage3\.1 is there, but stage3\.0 is missing"):
        from_published({n: v for n, v in theirs.items() if not n.startswith("stage3.0.")}, "ms_qkformer")
    with pytest.raises(UserError, match=r"head_lif\.w: the published model has no such weight"):
        plif = tiny("ms_qkformer", neuron={"head": "plif"})
        to_published(build_model(plif, "torch").state_dict(), plif)


def test_a_stream_of_added_spikes_counts_every_one():
    config = tiny("qkformer")
    model, seen = alive(config), {}
    for point, (module, values) in model.derived_inputs().items():
        module.register_forward_hook(lambda _m, i, o, point=point, values=values: seen.update({point: values(i, o)}))
    model(samples(config))
    assert all(torch.equal(value, value.round()) and value.min() >= 0 for value in seen.values())
    assert seen["blocks.3.mlp.stream"].max() > 1 and set(seen["blocks.0.attn.mixed"].unique().tolist()) == {0.0, 1.0}
