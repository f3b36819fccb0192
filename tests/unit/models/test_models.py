"""The network as a user meets it: shapes, names, timm, mixed precision, SpikingJelly's tools, and no state."""

import subprocess
import sys

import pytest
import timm
import torch

import statten
from statten.config import ModelConfig
from statten.models import build_model
from statten.models.backbones.base import dropped, init_weights
from statten.neurons import LIF

SMALL = {"embed_dim": 16, "num_heads": 2, "depth": 2, "image_size": 8, "pooling": "0001", "in_channels": 2}


def model(**fields):
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SMALL, **fields}), "torch")


def clip(events, batch=3, timesteps=4):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, timesteps, 2, 8, 8) if events else (batch, 2, 8, 8)
    return torch.rand(shape, generator=generator) * 2


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("attention", ["statten", "sdsa"])
def test_shapes(events, attention):
    assert model(events=events, attention=attention)(clip(events)).shape == (3, 10)
    assert model(events=events, attention=attention, per_timestep_logits=True)(clip(events)).shape == (4, 3, 10)


def test_wrong_input_is_a_sentence():
    with pytest.raises(ValueError, match=r"input must be \[B, C, H, W\] = \[B, 2, 8, 8\], but got \[3, 4, 2, 8, 8\]"):
        model()(clip(True))
    with pytest.raises(ValueError, match=r"input must be \[B, T, C, H, W\] = \[B, 4, 2, 8, 8\], but got \[3, 5, 2, 8, 8\]"):
        model(events=True)(clip(True, timesteps=5))
    with pytest.raises(ValueError, match="`block_size` must be between 1 and `timesteps`"):
        model().set_timesteps(2, 3)


def test_no_state_survives_a_forward():
    net = model().eval()
    first = net(clip(False))
    net(clip(False, batch=5))
    assert torch.equal(net(clip(False)), first)


def test_weights_run_at_every_timestep_and_block_size():
    net = model().eval()
    for timesteps, block_size in [(1, 1), (4, 3), (8, 4)]:
        net.set_timesteps(timesteps, block_size)
        other = model(timesteps=timesteps, block_size=block_size).eval()
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(clip(False)), other(clip(False)))


@pytest.mark.parametrize("attention", ["statten", "sdsa"])
def test_spiking_layers_are_all_of_them_in_order(attention):
    net = model(attention=attention)
    layers = net.spiking_layers()
    assert {id(layer) for layer in layers.values()} == {id(m) for m in net.modules() if isinstance(m, LIF)}
    order = []
    handles = [m.register_forward_hook(lambda _m, _i, _o, name=name: order.append(name)) for name, m in layers.items()]
    net(clip(False))
    assert order == list(layers) and len(handles) == len(layers) == 4 + 2 * 7 + 1


def test_plif_by_place():
    assert sum(name.endswith(".w") for name, _ in model(neuron="plif").named_parameters()) == 4 + 2 * 7 + 1
    names = [name for name, _ in model(neuron={"mlp": "plif", "head": "plif"}).named_parameters() if name.endswith(".w")]
    assert names == ["blocks.0.mlp.lif1.w", "blocks.0.mlp.lif2.w", "blocks.1.mlp.lif1.w", "blocks.1.mlp.lif2.w", "head_lif.w"]


def test_equal_widths_in_the_mlp_add_its_inner_shortcut():
    x = torch.rand(4, 2, 16, 4, 4)
    mlp = model(mlp_ratio=1).eval().blocks[0].mlp
    first = mlp.fc1(mlp.lif1(x).flatten(0, 1)).unflatten(0, (4, 2))
    expected = first + mlp.fc2(mlp.lif2(x + first).flatten(0, 1)).unflatten(0, (4, 2))
    assert torch.equal(mlp(x), expected)


def test_stochastic_depth_drops_whole_samples():
    assert [block.drop_rate for block in model(drop_path=0.5).blocks] == [0, 0.5]
    branch = torch.ones(4, 64, 16, 4, 4)
    kept = dropped(branch, 0.5, training=True).flatten(2).mean(-1)
    assert torch.equal(kept, kept[:1].expand(4, -1)), "all timesteps of a sample share their fate"
    assert set(kept[0].tolist()) == {0.0, 2.0}
    assert torch.equal(dropped(branch, 0.5, training=False), branch)


def test_mixed_precision_keeps_the_stream_and_the_statistics_in_float32():
    net, streams = model(), []
    for block in net.blocks:
        block.register_forward_hook(lambda _m, _i, output: streams.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(clip(False))
    logits.float().sum().backward()
    assert streams == [torch.float32] * 2
    assert all(b.dtype in (torch.float32, torch.int64) for b in net.buffers())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("name", "depth", "dim", "size"), [("statten_2_256", 2, 256, 32), ("statten_8_768", 8, 768, 224)])
def test_timm_knows_the_published_sizes(name, depth, dim, size):
    assert statten.__version__
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=7, in_chans=3)
    assert (net.config.depth, net.config.embed_dim, net.config.image_size, net.config.num_classes) == (depth, dim, size, 7)


@pytest.mark.parametrize("order", ["statten, timm", "timm, statten"])
def test_timm_knows_them_whichever_is_imported_first(order):
    code = f"import {order}; print(timm.create_model('statten_2_256', depth=1, embed_dim=32, num_heads=2).config.depth)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_spikingjellys_tools_work(caplog):
    from spikingjelly.activation_based import functional, monitor

    net = model().eval()
    with monitor.OutputMonitor(net, LIF) as seen:
        first = net(clip(False))
    assert len(seen.records) == 4 + 2 * 7 + 1
    assert all(set(record.unique().tolist()) <= {0.0, 1.0} for record in seen.records)
    functional.reset_net(net)
    assert torch.equal(net(clip(False)), first)


def test_spikingjellys_operation_counter_reads_the_model():
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, FlopCounter

    net, counter = model().eval(), FlopCounter()
    with DispatchCounterMode([counter]), torch.no_grad():
        net(clip(False, batch=1))
    # The first convolution alone: 2 channels to 2, 3 x 3, at 8 x 8 positions and 4 timesteps, a multiplication and an addition.
    assert counter.get_total() > 2 * 2 * 2 * 9 * 64 * 4


def test_a_seed_begins_with_the_same_weights_under_every_torch():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    torch.manual_seed(0)
    init_weights(layer)
    assert layer.weight.double().sum().item() == pytest.approx(-1.3916845888370517, abs=1e-9)
