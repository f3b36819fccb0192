"""The ledger of every backbone against SpikingJelly's counters on one batch, and of a Spikformer's stream by hand.

Where ours counts otherwise, by convention:
    a stream of added spikes (0, 1, 2, ...)  a 3 is three additions; SpikingJelly counts a dense layer of numbers
    RepConv                                  the one convolution that it is at inference
    a classifier behind no neuron            once a sample, on the mean over timesteps; it runs at each of them
    the Q-K gate's sum                       an addition per spike of q; SpikingJelly has no rule for it
"""

import pytest
import torch
from networks import NAMES, alive, samples, tiny
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter
from torch import nn

from statten.config import ModelConfig
from statten.metrics.energy import Conventions, check, ledger, operations
from statten.metrics.inference import evaluating
from statten.metrics.meter import SpikeMeter
from statten.metrics.spikes import SpikeTotals
from statten.models import build_model, fold_batch_norm

SKIPPED = Conventions(padding="skipped", first_layer="once")
BATCH = 4
CASES = [(name, events) for name in NAMES for events in (False, True)]


def counted(module: nn.Module, x: torch.Tensor, counter) -> float:
    """SpikingJelly's count of one layer."""
    with torch.no_grad(), DispatchCounterMode([counter]):
        module(x.clone())
    return counter.get_total()


@pytest.mark.parametrize(("name", "events"), CASES)
def test_every_layer_is_what_spikingjelly_counts(name, events):
    config = tiny(name, events=events, timesteps=3, block_size=2)
    model, x = alive(config), samples(config, BATCH)
    with evaluating(model), SpikeMeter(model) as meter:
        model(x)
    found = ledger(config, 3, meter.counts(), BATCH, SKIPPED)
    check(found)
    layers = {op.layer: op for op in operations(config) if op.kind not in ("product", "gate")}
    rows = [row for row in found["rows"] if row["layer"] in layers]

    folded, inputs = fold_batch_norm(model), []
    handles = [
        module.register_forward_pre_hook(lambda module, args: inputs.append((module, args[0])))
        for module in folded.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        folded(x)
    for handle in handles:
        handle.remove()
    assert len(inputs) == len(rows), "a row for every layer, in the order of the forward pass"
    for row, (module, x_in) in zip(rows, inputs, strict=True):
        if row["unit"] == "MACs":
            theirs = counted(module, x_in, MACCounter())
            if layers[row["layer"]].once:
                theirs /= 3
        else:
            trains = [(x_in >= level).float() for level in range(1, int(x_in.max()) + 1)]
            theirs = sum(counted(module, train, SynOpCounter()) for train in trains)
            assert torch.equal(sum(trains), x_in), "whole numbers"
            assert x_in.max() <= layers[row["layer"]].levels
            assert theirs > 0, row["layer"]
        assert row["operations"] == pytest.approx(theirs / BATCH, rel=1e-3), row["layer"]


@pytest.mark.parametrize(("name", "events"), CASES)
def test_products_are_what_spikingjelly_counts(name, events):
    config = tiny(name, events=events, timesteps=3, block_size=2)
    model, x = alive(config), samples(config, BATCH)
    counter = SynOpCounter()
    with evaluating(model), SpikeMeter(model) as meter:
        model(x)
    with torch.no_grad(), DispatchCounterMode([counter]):
        model(x)
    rows = ledger(config, 3, meter.counts(), BATCH, SKIPPED)["rows"]
    ours = sum(row["operations"] for row in rows if row["kind"] == "product")
    bmm = torch.ops.aten.bmm.default
    theirs = counter.get_counts()["Global"][bmm]
    assert ours == pytest.approx(theirs / BATCH, rel=1e-3) and ours > 0
    whole = {op.point: meter.counts()[op.point].double().sum() for op in operations(config) if op.point}
    with evaluating(model), SpikeTotals(model, "cpu") as totals:
        model(x)
    found, _ = totals.inputs()
    assert all(found[point] == value for point, value in whole.items()), "validation's totals are those of the whole meter"


def test_a_stream_of_twos_and_threes_by_hand():
    """Spikformer, D = 16, 2 heads, 4 x 4 tokens of an 8 x 8 image, one block, T = 2; the stream is what we say it is."""
    config = ModelConfig(
        backbone="spikformer", embed_dim=16, num_heads=2, depth=1, mlp_ratio=2, pooling="0001", image_size=8, in_channels=1,
        num_classes=5, timesteps=2, block_size=1,
    )  # fmt: skip
    model = build_model(config, "torch").eval()
    stream = torch.zeros(2, 1, 16, 4, 4)
    stream[0, 0, 0, 0, 0], stream[1, 0, 3, 2, 1], stream[1, 0, 5, 3, 3] = 2.0, 1.0, 2.0
    model.embed.register_forward_hook(lambda *_: stream)
    model.blocks[0].attn.register_forward_hook(lambda _module, args, _output: (args[0] > 1).float())  # the twos become threes
    with evaluating(model), SpikeMeter(model) as meter:
        model(torch.zeros(1, 1, 8, 8))
    rows = {row["layer"]: row for row in ledger(config, 2, meter.counts(), 1)["rows"]}
    assert rows["blocks.0.attn.qkv"]["operations"] == pytest.approx((2 + 1 + 2) * 48, rel=1e-12)
    assert rows["blocks.0.mlp.fc1"]["operations"] == pytest.approx((3 + 1 + 3) * 32, rel=1e-12)
    assert rows["blocks.0.mlp.fc1"]["bytes"] == 4 * 16 * 32 + 256 * 2 / 8 + 4 * 512, "0 to 3 are two bits"
    head = rows["head"]
    assert (head["unit"], head["operations"]) == ("MACs", 16 * 5), "once a sample, on the mean over both timesteps"
