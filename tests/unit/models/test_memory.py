"""What keeps less for the backward pass gives the same numbers, and keeps less."""

import pytest
import torch
from torch import nn

from statten.bench import saved_bytes
from statten.config import ModelConfig
from statten.models import build_model, fold_batch_norm
from statten.models.memory import MaxPool
from statten.neurons import LIF, NEURON_BACKENDS, packed_spikes

SIZES = {"timesteps": 4, "block_size": 2, "depth": 2, "embed_dim": 64, "num_heads": 4, "image_size": 16}


def make(**fields):
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SIZES, **fields})).train()


def images(events=False):
    torch.manual_seed(1)
    return torch.randn(8, *((4,) if events else ()), 3, 16, 16)


def step(model, x, packed=False):
    torch.manual_seed(2)
    with packed_spikes(packed):
        out = model(x)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return out, gradients, dict(model.named_buffers())


@pytest.mark.parametrize(
    "fields", [{}, {"attention": "sdsa"}, {"events": True}, {"neuron": "plif"}, {"drop_path": 0.3}], ids=str
)
@pytest.mark.parametrize("way", ["activation_checkpointing", "packed_spikes"])
def test_a_step_is_the_same_to_the_bit(fields, way):
    events = bool(fields.get("events"))
    expected = step(make(**fields), images(events))
    model = make(**fields)
    model.activation_checkpointing = way == "activation_checkpointing"
    found = step(model, images(events), way == "packed_spikes")
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_save_memory(dtype):
    model, x = make(), images()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        plain, packed = saved_bytes(model, x), saved_bytes(model, x, packed=True)
        model.activation_checkpointing = True
        checkpointed = saved_bytes(model, x)
    assert packed < 0.8 * plain and checkpointed < 0.8 * plain


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 7, 8, 1001, 2**16 + 3])
def test_bits_there_and_back(name, dtype, count):
    backend = NEURON_BACKENDS[name]
    spikes = (torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.3).to(dtype)
    bits = backend.pack(spikes)
    assert bits.dtype == torch.uint8 and len(bits) == (count + 7) // 8
    assert torch.equal(bits, NEURON_BACKENDS["torch"].pack(spikes))
    assert torch.equal(backend.unpack(bits, count, dtype), spikes)


def test_values_that_are_no_spikes_are_never_packed():
    """What lies at the address of spikes that are gone is saved as it is."""
    layer, conv, lif = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), LIF()
    with packed_spikes():
        for _ in range(20):
            spikes = lif(torch.randn(4, 2, 8, 64, 64))
            del spikes
            x = torch.randn(8, 8, 64, 64)
            expected = torch.autograd.grad(conv(x).sum(), conv.weight)[0]
            assert torch.equal(expected, torch.autograd.grad(conv(x.clone()).sum(), conv.weight)[0])
            assert torch.allclose(expected[0, :, 0, 0], x.sum((0, 2, 3)), rtol=1e-3, atol=1e-2)
    del layer


@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_is_pytorchs_and_keeps_no_indices(stride):
    x = (torch.rand(4, 6, 9, 8) < 0.4).float()  # ties everywhere: the first of equals has the gradient
    ours, theirs, saved = x.clone().requires_grad_(), x.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = MaxPool(stride)(ours)
    expected = nn.functional.max_pool2d(theirs, 3, stride, 1)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.equal(found, expected) and torch.equal(ours.grad, theirs.grad)
    assert [t.dtype for t in saved] == [torch.float32]


@pytest.mark.parametrize("fields", [{}, {"attention": "sdsa", "events": True}], ids=str)
def test_folding_leaves_the_results_and_no_batch_norm(fields):
    model = make(**fields).double()
    x = images(bool(fields.get("events"))).double()
    with torch.no_grad():
        for _ in range(3):
            model(x)
    model.eval()
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
