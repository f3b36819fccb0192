"""Slices of a larger network's weights: the network that they make is the small one that is built by itself."""

import pytest
import torch
from networks import NAMES, samples, tiny

from statten.errors import UserError
from statten.models import BACKBONES, build_model
from statten.models.slices import check_sliced, drawn, extract, hollow, part_of, sliced_call
from statten.training.loop import to_device

SLICED = [name for name in NAMES if BACKBONES[name].sliced is not None]
SMALLER = [{"embed_dim": 16}, {"depth": 1}, {"mlp_ratio": 1}, {"embed_dim": 16, "depth": 1, "mlp_ratio": 1.5, "num_heads": 2}]


def large(backbone, **fields):
    torch.manual_seed(0)
    network = to_device(build_model(tiny(backbone, timesteps=4, block_size=2, **fields)), "cpu")
    for name, value in network.state_dict().items():  # no entry like another, statistics included
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.5 + 0.1 if "running" in name else torch.randn_like(value) * 0.3)
    return network


def built(config, state):
    network = to_device(build_model(config), "cpu")
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("backbone", SLICED)
@pytest.mark.parametrize("fields", SMALLER, ids=str)
@pytest.mark.parametrize("events", [False, True], ids=["images", "clips"])
def test_an_extracted_network_computes_what_the_slices_do(backbone, fields, events):
    outer = large(backbone, events=events)
    config = tiny(backbone, timesteps=4, block_size=4, events=events, **fields)
    x = samples(config)
    small = built(config, extract(outer.state_dict(), config)).eval()
    with torch.no_grad():
        logits = small(x)
        assert torch.equal(logits, sliced_call(hollow(config).eval(), outer, x))
    assert logits.std(0).all(), "spikes of the samples reach the classifier"
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in outer.parameters())


@pytest.mark.parametrize("backbone", SLICED)
def test_gradients_of_slices_are_those_of_the_small_network(backbone):
    outer = large(backbone)
    config = tiny(backbone, timesteps=2, block_size=1, embed_dim=16, depth=1)
    x, parts = samples(config), BACKBONES[backbone].sliced
    before = {name: value.clone() for name, value in outer.named_buffers()}
    small = built(config, extract(outer.state_dict(), config)).train()
    small(x).square().sum().backward()
    sliced_call(hollow(config).train(), outer, x).square().sum().backward()
    found = dict(outer.named_parameters())
    assert found["embed.stages.0.0.weight"].grad.any()
    for name, parameter in small.named_parameters():
        gradient, mask = found[name].grad, drawn(name, found[name], parameter.shape, parts)
        assert torch.equal(part_of(name, gradient, parameter.shape, parts), parameter.grad), name
        assert mask.sum() == parameter.numel() and not gradient[~mask].any(), name
    unused = found.keys() - dict(small.named_parameters()).keys()
    assert unused and all(found[name].grad is None for name in unused)
    assert all(torch.equal(value, before[name]) for name, value in outer.named_buffers()), "statistics stay who found them"


@pytest.mark.parametrize("backbone", SLICED)
def test_the_slice_of_full_size_is_the_network_itself(backbone):
    outer = large(backbone).eval()
    state = outer.state_dict()
    whole = extract(state, outer.config)
    assert whole.keys() == state.keys() and all(torch.equal(whole[name], state[name]) for name in state)
    x = samples(outer.config)
    with torch.no_grad():
        assert torch.equal(outer(x), sliced_call(hollow(outer.config).eval(), outer, x))


def test_q_k_and_v_are_the_first_channels_of_each_and_heads_are_counted_anew():
    weight = torch.arange(24.0).reshape(12, 2)
    assert part_of("blocks.0.attn.qkv.0.weight", weight, (6, 1), {".attn.qkv.": 3}).flatten().tolist() == [0, 2, 8, 10, 16, 18]
    assert part_of("blocks.0.mlp.fc1.0.weight", weight, (6, 1), {".attn.qkv.": 3}).flatten().tolist() == [0, 2, 4, 6, 8, 10]
    core = next(iter(hollow(tiny("sdt", embed_dim=16)).attention_cores().values()))
    assert core.heads == 4, "four heads of four channels, and not two of eight"


def test_what_does_not_nest_is_refused_by_name():
    for name in set(NAMES) - set(SLICED):
        with pytest.raises(UserError, match=rf"model\.backbone: {name} does not say.*sdt, spikformer"):
            check_sliced(name)
    state = large("sdt").state_dict()
    with pytest.raises(UserError, match=r"embed\.stages\.0\.0\.weight: cannot be cut out, for it has \[8, 2.*got \[4, "):
        extract(state, tiny("sdt", embed_dim=64))
    with pytest.raises(UserError, match=r"cannot be cut out.*no such weight"):
        extract(state, tiny("sdt", depth=3))
