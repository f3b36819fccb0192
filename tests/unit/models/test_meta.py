"""Meta-SpikeFormer: convolutions that become one, padding that follows statistics, sizes, names, and what is counted of it."""

import pytest
import timm
import torch
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError
from statten.metrics.energy import Conventions, check, ledger
from statten.metrics.meter import SpikeMeter
from statten.models import build_model, fold_batch_norm, layer_names
from statten.models.backbones.meta import RepConv
from statten.models.published import from_published, to_published

SMALL = {
    "backbone": "sdt2", "attention": "ssa", "depth": 3, "embed_dim": 16, "num_heads": 4, "image_size": 32, "timesteps": 3,
    "block_size": 1,
}  # fmt: skip


def network(**fields):
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SMALL, **fields}), "torch").double()


def used(module, *shape):
    """A module whose BatchNorms have met data, in evaluation mode."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(*shape, dtype=torch.float64))
    return module.eval()


@pytest.mark.parametrize("branches", [1, 3])
def test_a_repconv_is_one_dense_convolution(branches):
    torch.manual_seed(0)
    module = used(RepConv(8, branches, "torch").double(), 4, 8, 5, 5)
    folded = module.folded()
    assert folded.kernel_size == (3, 3) and folded.padding == (1, 1) and folded.groups == 1 and folded.bias is not None
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-12, atol=1e-12)


def test_padding_follows_the_statistics_of_the_step_and_has_no_gradient():
    """The published order: BatchNorm first moves its running statistics, then the border is made of them."""
    torch.manual_seed(0)
    module = used(RepConv(4, 1, "torch").double(), 4, 4, 5, 5).train()
    x, norm = torch.randn(2, 4, 5, 5, dtype=torch.float64), module.norm1
    seen = []
    module.depthwise.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    module(x)
    border = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(seen[0][:, :, 0, 0], border.expand(2, 4))
    seen[0][:, :, 0].sum().backward()
    assert not norm.weight.grad.any() and not norm.bias.grad.any()


def test_folding_leaves_the_results_and_one_convolution_for_each_repconv():
    model = used(network(), 4, 3, 32, 32)
    folded, x = fold_batch_norm(model), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert not any(isinstance(module, nn.BatchNorm2d | RepConv) for module in folded.modules())
    assert any(isinstance(module, RepConv) for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_checkpointed_blocks_pad_as_in_their_first_run():
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    grads, buffers = [], []
    for checkpointing in (False, True):
        model = network(attention="statten", block_size=2).train()
        model.activation_checkpointing = checkpointing
        model(x).square().sum().backward()
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
        buffers.append(list(model.buffers()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*buffers, strict=True))


@pytest.mark.parametrize(("width", "parameters"), [(384, 31_333_864), (512, 55_350_248), (768, 123_741_160)])
def test_published_sizes(width, parameters):
    with torch.device("meta"):
        model = timm.create_model(f"statten_meta_8_{width}")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_layers_stand_in_the_order_of_the_forward_pass():
    model, seen = network().eval(), []
    for name, layer in model.spiking_layers().items():
        layer.register_forward_hook(lambda _module, _inputs, _spikes, name=name: seen.append(name))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    names = layer_names(model.config)
    assert seen == names and len(seen) == 19 + 3 * 7 + 2
    assert names[:5] == ["embeds.0.0.sep1", "embeds.0.0.sep2", "embeds.0.0.conv1", "embeds.0.0.conv2", "embeds.1.in"]
    assert names.index("embeds.4.in") == names.index("blocks.1.attn.in") - 1


def test_two_heads_of_a_distilled_network_are_imported_as_one():
    model = used(network(), 4, 3, 32, 32)
    theirs = to_published(model.state_dict(), model.config)
    other = {f"head_kd.{name}": torch.randn_like(theirs[f"head.{name}"]) for name in ("weight", "bias")}
    ours = from_published({**theirs, **other}, "sdt2")
    for name in ("weight", "bias"):
        torch.testing.assert_close(ours[f"head.{name}"], (theirs[f"head.{name}"] + other[f"head_kd.{name}"]) / 2)


def test_weights_that_have_no_place_or_no_partner_are_named():
    model = network()
    theirs = to_published(model.state_dict(), model.config)
    for extra in ("block3.0.attn.x_conv.0.body.0.weight", "downsample9.encode_conv.weight", "ConvBlock1_1.0.Conv.bn9.weight"):
        with pytest.raises(UserError, match=f"no place for {extra}"):
            from_published({**theirs, extra: torch.ones(1)}, "sdt2")
    del theirs["block3.0.attn.k_conv.0.body.0.weight"]
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.0\.enter\.weight: k missing"):
        from_published(theirs, "sdt2")


def test_the_ledger_counts_repconvs_folded_and_sums_of_separable_convolutions_as_numbers():
    model = used(network(), 4, 3, 32, 32)
    with SpikeMeter(model) as meter, torch.no_grad():
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    found = ledger(model.config, 3, meter.counts(), 2, Conventions(first_layer="once"))
    check(found)
    rows = {row["layer"]: row for row in found["rows"]}
    D, N = 16, 4
    assert rows["blocks.0.attn.qkv"]["flops"] == 9 * D * 3 * D * N and rows["blocks.0.attn.proj"]["flops"] == 9 * D * D * N
    assert rows["embeds.0.0.dw"]["kind"] == "depthwise7x7" and rows["embeds.0.0.dw"]["flops"] == 49 * 4 * 16**2
    numbers = {name: row["timesteps"] for name, row in rows.items() if row["unit"] == "MACs"}
    separable = [f"embeds.{name}.pw2" for name in ("0.0", "1.0", "2.0", "2.1")]
    assert numbers == {"embeds.0.down": 1, **dict.fromkeys(separable, 3)}
