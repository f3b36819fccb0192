"""Every neuron backend against the equations, written out naively in float64 with autograd doing the gradients."""

import math
import re
from pathlib import Path

import pytest
import torch
from emulated import EmulatedBackend

from statten.errors import UserError
from statten.models.norm import BatchNorm2d
from statten.neurons import LIF, NEURON_BACKENDS, PLIF, native, select_backend
from statten.neurons.dynamics import Dynamics, Norm, Unavailable, Wanted, dense_strides

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Step(torch.autograd.Function):
    """1 where u >= 0; backward alpha sigma(alpha u) (1 - sigma(alpha u))."""

    @staticmethod
    def forward(ctx, u, alpha):
        ctx.save_for_backward(u)
        ctx.alpha = alpha
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        sigma = 1 / (1 + torch.exp(-ctx.alpha * u))
        return grad * ctx.alpha * sigma * (1 - sigma), None


def equations(x, inv_tau, dynamics, timesteps):
    rest = dynamics.v_reset or 0.0
    v, spikes, distance = torch.full_like(x[0], rest), [], [torch.tensor(math.inf)]
    for t in range(timesteps):
        h = v + (x[t if len(x) > 1 else 0] - (v - rest)) * inv_tau
        s = Step.apply(h - dynamics.v_threshold, dynamics.alpha)
        if h.numel():
            distance.append((h - dynamics.v_threshold).abs().min())
        kept = s.detach() if dynamics.detach_reset else s
        v = h - kept * dynamics.v_threshold if dynamics.v_reset is None else h * (1 - kept) + rest * kept
        spikes.append(s)
    return torch.stack(spikes), min(distance)


def inputs(shape, seed=0, dtype=torch.float32):
    """Values that storage types hold exactly, away from ties of the membrane with the threshold."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.2 + 0.6).to(dtype)


def like(x, device="cpu"):
    """A leaf of its own on a device, with the strides of x: a clone of a view with gaps has none."""
    size = x.untyped_storage().nbytes() // x.element_size()
    memory = x.detach().as_strided((size,), (1,), 0).to(device, copy=True)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset()).requires_grad_()


def compare(backend, x, inv_tau=0.5, timesteps=None, spikes_dtype=None, **constants):
    """Spikes exactly, gradients to the rounding of the storage type."""
    dynamics, timesteps = Dynamics(**constants), timesteps or len(x)
    tolerance = TOLERANCE[spikes_dtype or x.dtype]
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    ours, theirs = like(x, device), x.detach().double().requires_grad_()
    assert ours.stride() == x.stride(), "a layout is only tested if it arrives"
    spikes = backend.lif(ours, inv_tau, dynamics, Wanted(timesteps, spikes_dtype or x.dtype))
    expected, distance = equations(theirs, inv_tau, dynamics, timesteps)
    assert spikes.dtype == (spikes_dtype or x.dtype) and spikes.shape == expected.shape
    assert torch.equal(spikes.cpu().double(), expected), f"spikes are exact (the nearest tie is {distance:.1e} away)"
    grad = inputs(expected.shape, seed=9, dtype=spikes.dtype)
    spikes.backward(grad.to(device))
    expected.backward(grad.double())
    scale = max(1.0, float(theirs.grad.abs().max())) if theirs.numel() else 1.0
    torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=tolerance, atol=tolerance * scale)
    return spikes.cpu()


def usable(name):
    if name == "emulated":
        return pytest.param(EmulatedBackend(), id=name)
    backend = NEURON_BACKENDS[name]
    try:
        backend.check()
    except Unavailable as reason:
        return pytest.param(backend, id=name, marks=pytest.mark.skip(reason=str(reason)))
    return pytest.param(backend, id=name)


@pytest.fixture(scope="module", params=[usable(name) for name in (*NEURON_BACKENDS, "emulated")])
def backend(request):
    return request.param


@pytest.mark.parametrize("timesteps", [1, 2, 3, 4, 10, 16, 17, 33, 64])
def test_any_number_of_timesteps(backend, timesteps):
    compare(backend, inputs((timesteps, 3, 5, 8), seed=timesteps))


def test_more_timesteps_than_kernels_are_made_for(backend):
    compare(backend, inputs((70, 6)))


@pytest.mark.parametrize("tau", [1.01, 1.5, 2.0, 3.0, 100.0])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, 0.2, None])
def test_any_time_constant_and_reset(backend, tau, v_reset):
    compare(backend, inputs((4, 104)), 1 / tau, v_reset=v_reset)


@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_detached_and_full_gradient_of_the_reset(backend, v_reset, detach_reset):
    compare(backend, inputs((6, 200), seed=2), 0.4, v_reset=v_reset, detach_reset=detach_reset, v_threshold=0.8)


@pytest.mark.parametrize("constants", [{"v_threshold": 0.5}, {"v_threshold": 7.0, "alpha": 4 / 14}, {"alpha": 1.0}])
def test_thresholds_and_slopes(backend, constants):
    compare(backend, inputs((4, 1000)) * constants.get("v_threshold", 1.0), **constants)


def test_a_slope_so_steep_that_the_exponential_would_overflow(backend):
    compare(backend, inputs((4, 100), seed=3) * 50, alpha=100.0)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
def test_storage_types_keep_an_exact_membrane(backend, dtype):
    compare(backend, inputs((6, 1000), dtype=dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_float32_in_and_half_out_as_behind_the_residual_stream(backend, dtype):
    compare(backend, inputs((4, 3, 40)), spikes_dtype=dtype)


@pytest.mark.parametrize("timesteps", [1, 4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_that_every_timestep_repeats(backend, timesteps, dtype):
    compare(backend, inputs((1, 3, 7, 8), dtype=dtype), timesteps=timesteps)


def test_layouts(backend):
    x = inputs((4, 2, 6, 5, 5))
    plain = compare(backend, x)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    out = compare(backend, last)
    assert torch.equal(out, plain) and out[0].is_contiguous(memory_format=torch.channels_last)
    both = last.flatten(0, 1).repeat(1, 2, 1, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    for gaps in (torch.cat([x, x], dim=2)[:, :, 3:9], both[:, :, 3:9], x[..., ::2], x[:, :, :, 1:4], last[..., 1:4]):
        assert gaps.stride() != dense_strides(gaps)
        compare(backend, gaps)
    compare(backend, x.transpose(0, 1)[:, :2].contiguous().transpose(0, 1)[:4])
    compare(backend, x[:1].expand(4, -1, -1, -1, -1))
    compare(backend, x[:, :, :1].expand(-1, -1, 6, -1, -1))
    compare(backend, inputs(4 * 48 + 1)[1:].view(4, 48))  # not aligned


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 1), (3, 8193), (2, 2**16 + 5)])
def test_sizes(backend, shape):
    if backend.name == "emulated" and math.prod(shape) > 1e5:
        pytest.skip("a thread at a time")
    compare(backend, inputs(shape))


def test_values_beyond_32_bits_of_elements(backend):
    """Frames that lie 2^30 values apart, and 2^31 spikes of one frame."""
    if backend.name != "native":
        pytest.skip("the others' indices are PyTorch's, or are tested on a GPU")
    available = int(re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())[1])
    if available < 12e6:
        pytest.skip("needs 12 GB of memory")
    x = torch.empty(4 << 30, dtype=torch.bfloat16).as_strided((4, 512), (1 << 30, 1))  # only what is touched takes memory
    compare(backend, x.copy_(inputs((4, 512))))
    x, grad = inputs((1, (1 << 25) + 8), dtype=torch.bfloat16), torch.ones(64, (1 << 25) + 8, dtype=torch.bfloat16)
    spikes = backend.lif(x, 0.5, Dynamics(), Wanted(64, x.dtype))
    found, _ = backend.lif_backward(grad, x, 0.5, Dynamics())
    for part in (slice(0, 99), slice(-99, None)):
        few = x[:, part].detach().requires_grad_()
        expected = backend.lif(few, 0.5, Dynamics(), Wanted(64, x.dtype))
        expected.backward(grad[:, part])
        assert torch.equal(spikes[:, part], expected) and torch.equal(found[:, part], few.grad)


@pytest.mark.parametrize("constants", [{}, {"v_reset": None, "detach_reset": False}, {"v_reset": 0.1}])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_time_constant_has_a_gradient(backend, constants, frames):
    dynamics, wanted = Dynamics(**constants), Wanted(5, torch.float32)
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    x, w = inputs((frames, 304)), torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    w_ours = w.detach().float().to(device).requires_grad_()
    expected, _ = equations(x.double(), w.sigmoid(), dynamics, 5)
    spikes = backend.lif(x.to(device), w_ours.sigmoid(), dynamics, wanted)
    assert torch.equal(spikes.cpu().double(), expected)
    weight = inputs(expected.shape, seed=3)
    (expected * weight.double()).sum().backward()
    (spikes * weight.to(device)).sum().backward()
    assert w_ours.grad.item() == pytest.approx(w.grad.item(), rel=1e-4)


def test_spikes_are_counted(backend):
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    count = torch.full((1,), 7, dtype=torch.int64, device=device)
    x = inputs((4, 3, 1000)).to(device)
    spikes = backend.lif(x, 0.5, Dynamics(), Wanted(4, x.dtype, count))
    assert count.item() == 7 + int(spikes.sum())


def normed(backend, timesteps, x, weight, bias, weight_of_sum):
    """Spikes, statistics and all gradients of BatchNorm and neuron."""
    x, weight, bias = like(x), like(weight), like(bias)
    spikes, mean, var = backend.norm_lif(x, 0.5, Dynamics(), Wanted(timesteps, x.dtype), Norm(weight, bias, 1e-5))
    (spikes * weight_of_sum.to(spikes)).sum().backward()
    return spikes, mean, var, x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("frames", "timesteps"), [(4, 4), (1, 4), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_batch_norm_in_front(backend, layout, frames, timesteps, dtype):
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    x = (inputs((frames * 3, 8, 6, 5), seed=1) * 2 + 5).to(dtype)
    x[:, 3] = 1.0  # as of neurons that never, or always, fire: no variance
    x = x.contiguous(memory_format=layout).unflatten(0, (frames, 3))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    others = inputs((8,), seed=5), inputs((8,), seed=6), inputs((timesteps, *x.shape[1:]), seed=7)
    found = normed(backend, timesteps, x.to(device), *(value.to(device, exact) for value in others))
    wanted = normed(NEURON_BACKENDS["torch"], timesteps, x.double(), *(value.double() for value in others))
    assert torch.equal(found[0].cpu().double(), wanted[0])
    tolerance = TOLERANCE[dtype] if dtype != torch.float32 else 1e-4
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_that_never_fires_leaves_finite_statistics(backend, dtype, monkeypatch):
    """Of a variance of 0 an inverse deviation of 0 makes an infinite one, which averages keep for good."""
    monkeypatch.setitem(NEURON_BACKENDS, backend.name, backend)
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    norm, layer = torch.nn.BatchNorm2d(8).to(device), LIF(backend=backend.name)
    for seed in range(2):
        x = inputs((4 * 3, 8, 5, 5), seed=seed).to(dtype)
        x[:, 2] = 0.0
        x = like(x.contiguous(memory_format=torch.channels_last).unflatten(0, (4, 3)), device)
        layer(x, 4, norm).sum().backward()
        assert x.grad.isfinite().all() and norm.weight.grad.isfinite().all()
    assert norm.running_mean[2] == 0 and norm.running_var[2] == 0
    assert norm.running_var.isfinite().all() and (norm.running_var > 1).sum() == 7


def test_batch_norm_in_front_keeps_running_statistics(backend, monkeypatch):
    monkeypatch.setitem(NEURON_BACKENDS, backend.name, backend)
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    x = inputs((1, 4, 6, 3, 3)).to(device)
    ours, theirs = torch.nn.BatchNorm2d(6).to(device), torch.nn.BatchNorm2d(6).to(device)
    layer = LIF(backend=backend.name)
    for momentum, pytorchs in ((0.1, 1.0), (0.1, 1 / 2), (0.4, 0.4), (None, None)):  # a plain average until momentum is more
        ours.momentum, theirs.momentum = momentum, pytorchs
        spikes = layer(x, 3, ours)
        y = theirs(x.expand(3, -1, -1, -1, -1).flatten(0, 1)).unflatten(0, (3, 4))
        assert torch.equal(spikes, layer(y))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        assert torch.equal(layer(x, 3, ours), layer(theirs(x[0])[None], 3))
    gradient = like(x)
    layer(gradient, 3, ours).sum().backward()
    assert gradient.grad.abs().sum() > 0


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 24, 7, 5), (3, 1, 4, 4), (70, 130, 16, 16)])
def test_batch_norm_alone_is_pytorchs(shape, dtype, layout, momentum):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    ours, theirs = BatchNorm2d(shape[1], "native").to(exact), torch.nn.BatchNorm2d(shape[1]).double()
    ours.momentum = theirs.momentum = momentum
    ours.num_batches_tracked += 9  # from the tenth batch on a momentum of 0.1 is more than that of the plain average
    theirs.num_batches_tracked += 9
    with torch.no_grad():
        for i, name in enumerate(("weight", "bias")):
            for norm in (ours, theirs):
                getattr(norm, name).copy_(inputs((shape[1],), seed=i))
    x = (inputs(shape, seed=3) * 2 + 5).to(dtype).contiguous(memory_format=layout)
    grad, mine, other = inputs(shape, seed=4).to(dtype), like(x), x.detach().double().requires_grad_()
    before = native.library().native_calls()
    y, expected = ours(mine), theirs(other)
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    if layout == torch.channels_last and shape[1] > 1:  # one channel has both layouts
        assert native.library().native_calls() - before == 4
    pairs = [(y, expected), (mine.grad, other.grad), (ours.weight.grad, theirs.weight.grad), (ours.bias.grad, theirs.bias.grad)]
    pairs += [(ours.running_mean, theirs.running_mean), (ours.running_var, theirs.running_var)]
    for found, wanted in pairs:
        scale = max(1.0, float(wanted.detach().abs().max()))
        torch.testing.assert_close(found.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


def test_only_the_input_is_saved(backend):
    saved = []
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    x = inputs((4, 50)).to(device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        backend.lif(x, 0.5, Dynamics(), Wanted(4, x.dtype))
    assert len(saved) == 1 and saved[0].data_ptr() == x.data_ptr()


def test_the_kernel_under_test_is_the_one_that_runs(backend):
    device = "cuda" if backend.devices == ("cuda",) else "cpu"
    count = {
        "native": lambda: native.library().native_calls(),
        "emulated": lambda: backend.emulator.launches,
        "cupy": lambda: len(backend.kernels.launch.kernels),
    }.get(backend.name)
    if count is None:
        pytest.skip("torch needs no kernel")
    if backend.name == "cupy":
        backend.kernels.launch.kernels.clear()
    before, x = count(), inputs((4, 24), seed=4).to(device).requires_grad_()
    backend.lif(x, 0.37, Dynamics(), Wanted(4, x.dtype)).sum().backward()
    assert count() - before == 2


def test_a_learned_time_constant_is_not_read_by_the_host(backend):
    if backend.devices != ("cuda",):
        pytest.skip("there is nothing to wait for")
    x, tau = inputs((4, 64)).cuda().requires_grad_(), torch.tensor(0.5, device="cuda", requires_grad=True)
    backend.lif(x, tau, Dynamics(), Wanted(4, x.dtype)).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        backend.lif(x, tau, Dynamics(), Wanted(4, x.dtype)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", HALF)
def test_half_types_are_converted_as_pytorch_does(dtype):
    """`combine` writes a grad + b x + c: with a = 1 every bit pattern goes to float32 and back, with c it is only rounded."""
    kernels, halves = native.NativeKernels(), torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    there_and_back = halves.clone()[None]
    unchanged = torch.tensor([[1.0], [0.0], [0.0]])
    kernels.combine(there_and_back, torch.zeros_like(there_and_back), unchanged, len(halves), there_and_back)
    torch.testing.assert_close(there_and_back[0], halves, rtol=0, atol=0, equal_nan=True)
    wide = torch.cat([torch.linspace(-70000, 70000, 100_001), torch.linspace(-1e-4, 1e-4, 100_001), torch.tensor([math.inf])])
    rounded, nothing = torch.zeros(1, len(wide), dtype=dtype), torch.zeros(len(wide))
    kernels.combine(rounded, torch.zeros_like(rounded), torch.stack([nothing, nothing, wide]), 1, rounded)
    assert torch.equal(rounded[0], wide.to(dtype))


def test_no_state_survives_a_forward():
    layer, x = LIF(), inputs((4, 50))
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert not list(layer.buffers()) and not list(layer.parameters())
    assert [name for name, _ in PLIF().named_parameters()] == ["w"]


def test_plif_starts_from_its_time_constant():
    assert PLIF(tau=3.0).inv_tau.item() == pytest.approx(1 / 3)
    assert torch.equal(PLIF(tau=2.0)(inputs((4, 99))), LIF(tau=2.0)(inputs((4, 99))))


def test_a_backend_that_is_none_is_named():
    with pytest.raises(UserError, match="'troch' is no backend; did you mean torch"):
        select_backend("troch", "cpu")
    assert select_backend("auto", "cpu").name in NEURON_BACKENDS
