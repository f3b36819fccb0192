"""Attention modes against the definition: explicit loops over blocks, heads and tokens."""

from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from statten.config import AttentionMode, ModelConfig
from statten.models import ATTENTION
from statten.models.attention import STAttenCore, statten
from statten.neurons import LIF


def spikes(shape, seed, rate=0.4):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def by_definition(q, k, v, heads, block_size):
    T, B, D, H, W = q.shape
    out, d = torch.zeros(T, B, D, H * W, dtype=torch.float64), D // heads
    q, k, v = (x.double().flatten(3) for x in (q, k, v))
    for start in range(0, T, block_size):
        times = range(start, min(start + block_size, T))
        for b in range(B):
            for h in range(heads):
                rows = slice(h * d, (h + 1) * d)
                keys = torch.cat([k[t, b, rows].T for t in times])  # [b N, d]
                values = torch.cat([v[t, b, rows].T for t in times])
                kv = keys.T @ values
                for t in times:
                    out[t, b, rows] = (q[t, b, rows].T @ kv).T
    return out.reshape(T, B, D, H, W)


@pytest.mark.parametrize(("timesteps", "block_size"), [(4, 1), (4, 2), (4, 4), (5, 2), (7, 3), (1, 1), (3, 2)])
def test_statten_is_its_definition(timesteps, block_size):
    q, k, v = (spikes((timesteps, 2, 8, 3, 2), seed) for seed in range(3))
    counts = statten(q, k, v, heads=2, block_size=block_size)
    assert torch.equal(counts.double(), by_definition(q, k, v, 2, block_size))
    assert torch.equal(counts, counts.round())


def test_counts_do_not_depend_on_the_order_of_tokens():
    q, k, v = (spikes((4, 1, 16, 8, 8), seed) for seed in range(3))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    shuffled = statten(q[:, :, :, order], k[:, :, :, order], v[:, :, :, order], 4, 2)
    assert torch.equal(shuffled, statten(q, k, v, 4, 2)[:, :, :, order])


def test_counts_stay_exact_under_autocast():
    q, k, v = (spikes((2, 1, 8, 24, 24), seed, rate=0.9).bfloat16() for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        counts = statten(q, k, v, 1, 2)
    assert counts.dtype == torch.float32 and counts.max() > 2048
    assert torch.equal(counts.double(), by_definition(q, k, v, 1, 2))


def core(mode, **fields):
    shape = {"embed_dim": 16, "num_heads": 2, "image_size": 8, "pooling": "0001", "in_channels": 2}
    config = ModelConfig(backbone="spikformer" if mode == "ssa" else "sdt", attention=mode, **shape, **fields)
    return ATTENTION[mode](config, LIF, "torch"), config


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("mode", ATTENTION)
def test_every_mode_gives_spikes_of_the_same_shape_and_learns(mode, events):
    layer, config = core(mode, events=events)
    q, k, v, mask = (spikes((4, 2, 16, 4, 4), seed).requires_grad_() for seed in range(4))
    out = layer(q, k, v, mask if config.masked else None)
    assert out.shape == q.shape and set(out.unique().tolist()) <= {0.0, 1.0, 2.0}
    out.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (q, k, v))


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("block_size", [1, 2, 3, 4])
def test_the_scale_in_the_threshold_is_the_scale_on_the_counts(events, block_size):
    layer, config = core("statten", events=events, timesteps=4, block_size=block_size)
    q, k, v = (spikes((4, 2, 16, 4, 4), seed) for seed in range(3))
    mask = spikes(q.shape, 7) if events else None
    counts = by_definition(q, k, v, 2, block_size)
    for t in range(4):
        length = min(block_size, 4 - t // block_size * block_size)
        counts[t] /= 16 * length if events else 4  # divided, not multiplied by a rounded reciprocal: ties stay ties
    expected = LIF(config.attention_threshold)(counts).float()
    if events:
        expected = expected * mask + mask
    assert torch.equal(layer(q, k, v, mask), expected)


def test_every_mode_of_the_config_exists_and_no_other():
    assert set(ATTENTION) == set(get_args(AttentionMode)) and ATTENTION["statten"] is STAttenCore


class Copies(TorchDispatchMode):
    """Counts copies."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._overloadpacket.__name__ in ("copy_", "_to_copy", "clone")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_stays_with_one_copy_for_each_map(dtype):
    """Three in and one out, and the same backwards: type and layout change together."""
    maps = (torch.rand(3, 4 * 2, 16, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).to(dtype)
    q, k, v = (x.contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2)).requires_grad_() for x in maps)
    with Copies() as copies:
        counts = statten(q, k, v, 2, 2)
        assert copies.count == 4 and counts.stride() == q.stride()
        grads = torch.autograd.grad(counts, (q, k, v), counts)
    assert copies.count == 8 and {grad.stride() for grad in grads} == {q.stride()}
