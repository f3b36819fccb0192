"""Every attention mode of ATTENTION against loops over blocks, samples and heads."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from statten.config import AttentionMode, ModelConfig
from statten.models import ATTENTION
from statten.models.attention import statten
from statten.neurons import LIF

torch.set_num_threads(1)

T, B, D, HEADS, SIDE = 5, 2, 16, 4, 4
BLOCKS = [1, 2, 3, 4, 5]


def spikes(rate: float, seed: int, dtype: torch.dtype = torch.float64, frames: int = T) -> Tensor:
    draw = torch.rand(frames, B, D, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return (draw < rate).to(dtype)


def qkvs(dtype: torch.dtype = torch.float64, rate: float = 0.4) -> list[Tensor]:
    return [spikes(rate, seed, dtype) for seed in range(4)]


def core(mode: str, block_size: int, events: bool) -> torch.nn.Module:
    # Pooling "0000" keeps the token grid at the image's size. Each mode in a network that has it.
    backbone = "spikformer" if mode == "ssa" else "sdt"
    config = ModelConfig(
        backbone=backbone, attention=mode, timesteps=T, block_size=block_size, embed_dim=D, num_heads=HEADS, image_size=SIDE,
        pooling="0000", events=events,
    )  # fmt: skip
    return ATTENTION[mode](config, LIF, "torch")


def counts_by_loops(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """o[i] = sum over all tokens j of the block of (q[i] . k[j]) v[j]: the sum that defines the attention, pair by pair."""
    out, d = torch.zeros_like(q), D // HEADS
    for start in range(0, T, block_size):
        block = slice(start, min(start + block_size, T))
        for sample in range(B):
            for head in range(HEADS):
                part = slice(head * d, (head + 1) * d)
                # Tokens in the order (timestep, row, column): [b N, d].
                q_, k_, v_ = (x[block, sample, part].movedim(1, -1).reshape(-1, d) for x in (q, k, v))
                o = torch.einsum("id,jd,je->ie", q_, k_, v_)
                out[block, sample, part] = o.reshape(-1, SIDE, SIDE, d).movedim(-1, 1)
    return out


def lif_by_loops(x_T: Tensor, v_threshold: float = 0.5) -> Tensor:
    v, out = torch.zeros_like(x_T[0]), []
    for x in x_T:
        h = v + (x - v) / 2
        s = (h >= v_threshold).to(x.dtype)
        v = h * (1 - s)
        out.append(s)
    return torch.stack(out)


def plane_pool(x: Tensor) -> Tensor:
    """Published SDSA: 3 x 3 max-pool over the plane [tokens, channels of a head]."""
    d, out = D // HEADS, torch.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * d, (head + 1) * d)
        plane = x[:, :, part].flatten(3).transpose(-1, -2).flatten(0, 1)  # [T B, N, d]
        padded = torch.nn.functional.pad(plane, (1, 1, 1, 1), value=-1.0)
        shifts = [padded[:, i : i + plane.shape[1], j : j + d] for i in range(3) for j in range(3)]
        pooled = torch.stack(shifts).amax(0).transpose(-1, -2)
        out[:, :, part] = pooled.reshape(T, B, d, SIDE, SIDE)
    return out


def statten_by_loops(q, k, v, s, block_size, events):
    counts = counts_by_loops(q, k, v, block_size)
    if not events:
        return lif_by_loops(counts / SIDE)
    scaled = counts.clone()
    for t in range(T):
        length = min(block_size, T - t // block_size * block_size)
        scaled[t] /= SIDE**2 * length
    fired = lif_by_loops(scaled)
    return fired * s + s


def sdsa_by_loops(q, k, v, s, block_size, events):
    pool = plane_pool if events else (lambda x: x)
    kv = lif_by_loops(pool(k * v).sum((-1, -2), keepdim=True))
    return pool(q * kv)


def ssa_by_loops(q, k, v, s, block_size, events):
    """Every timestep by itself, whatever the block size; Spikformer's scale, and no mask."""
    return lif_by_loops(counts_by_loops(q, k, v, 1) * (0.25 if events else 0.125))


ORACLES = {"statten": statten_by_loops, "sdsa": sdsa_by_loops, "ssa": ssa_by_loops}


def test_every_mode_of_the_config_has_an_entry_and_an_oracle():
    assert set(ATTENTION) == set(get_args(AttentionMode)) == set(ORACLES)


@pytest.mark.parametrize("events", [False, True], ids=["images", "events"])
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("mode", ATTENTION)
def test_against_loops(mode, block_size, events):
    q, k, v, s = qkvs()
    ours = core(mode, block_size, events)(q, k, v, s if events and mode != "ssa" else None)
    wanted = ORACLES[mode](q, k, v, s, block_size, events)
    assert torch.equal(ours, wanted) and 0 < (wanted > 0).double().mean() < 1


@pytest.mark.parametrize("mode", ATTENTION)
def test_gradients_reach_q_k_and_v(mode):
    q, k, v, _ = (x.requires_grad_() for x in qkvs())
    core(mode, 2, False)(q, k, v, None).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() and x.grad.any() for x in (q, k, v))


@pytest.mark.parametrize("block_size", BLOCKS)
def test_counts_are_whole_and_the_same_in_every_precision(block_size):
    q, k, v, _ = qkvs(rate=0.97)
    wanted = counts_by_loops(q, k, v, block_size)
    assert wanted.max() > 256 or block_size < T  # more than bfloat16 can count
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            ours = statten(q.to(dtype), k.to(dtype), v.to(dtype), HEADS, block_size)
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(ours.double(), wanted)


@pytest.mark.parametrize("block_size", [2, 5])
def test_the_order_of_tokens_does_not_matter(block_size):
    q, k, v, _ = qkvs(torch.float32, rate=0.8)
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(5))

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(3)[..., order].reshape(x.shape)

    ours = statten(q, shuffled(k), shuffled(v), HEADS, block_size)
    assert torch.equal(ours, statten(q, k, v, HEADS, block_size))


def test_layout_does_not_matter():
    q, k, v, _ = qkvs(torch.float32)
    last = [x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (T, B)) for x in (q, k, v)]
    chunks = torch.cat([q, k, v], dim=2).chunk(3, dim=2)
    assert torch.equal(statten(*last, HEADS, 2), statten(q, k, v, HEADS, 2))
    assert torch.equal(statten(*chunks, HEADS, 2), statten(q, k, v, HEADS, 2))


def test_one_block_is_independent_of_the_others():
    q, k, v, _ = qkvs()
    changed = k.clone()
    changed[4] = 1 - changed[4]  # the last, shorter block of b = 2
    assert torch.equal(statten(q, k, v, HEADS, 2)[:4], statten(q, changed, v, HEADS, 2)[:4])
    assert not torch.equal(statten(q, k, v, HEADS, 2)[4], statten(q, changed, v, HEADS, 2)[4])


@pytest.mark.parametrize("v_threshold", [0.5, 1.0 / 3.0])
def test_the_folded_scale_has_the_gradient_of_the_scaled_neuron(v_threshold):
    counts, unit = 7 * torch.rand(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 14.0
    grads = []
    for x, threshold, alpha, scale in [(counts, v_threshold * unit, 4 / unit, 1.0), (counts, v_threshold, 4.0, 1 / unit)]:
        leaf = x.clone().requires_grad_()
        LIF(threshold, 2.0, alpha, backend="torch")(leaf * scale).sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-12, atol=0)
