"""Every neuron backend against the equations, written out naively in float64 with autograd doing the gradients."""

import math

import pytest
import torch

from statten.config import UserError
from statten.neurons import LIF, NEURON_BACKENDS, PLIF, select_backend


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


def equations(x, inv_tau, v_threshold=1.0, v_reset=0.0, alpha=4.0):
    v, spikes, distance = torch.full_like(x[0], v_reset) if len(x) else None, [], [torch.tensor(math.inf)]
    for x_t in x:
        h = v + (x_t - (v - v_reset)) * inv_tau
        s = Step.apply(h - v_threshold, alpha)
        distance.append((h - v_threshold).abs().min() if h.numel() else torch.tensor(math.inf))
        kept = s.detach()  # the reset is not differentiated
        v = h * (1 - kept) + v_reset * kept
        spikes.append(s)
    return (torch.stack(spikes) if spikes else x), min(distance)


def inputs(shape, seed=0, dtype=torch.float32):
    """Values that storage types hold exactly, away from ties of the membrane with the threshold."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 1.2 + 0.6).to(dtype)


def compare(backend, x, inv_tau=0.5, tolerance=1e-5, **constants):
    ours = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    theirs = x.detach().double().requires_grad_()
    values = {"v_threshold": 1.0, "v_reset": 0.0, "alpha": 4.0, **constants}
    spikes = NEURON_BACKENDS[backend](ours, inv_tau, *values.values())
    expected, distance = equations(theirs, inv_tau, **values)
    assert spikes.dtype == x.dtype and spikes.shape == x.shape
    near = distance < 1e-6 and x.dtype != torch.float64
    assert near or torch.equal(spikes.double(), expected), "spikes are exact"
    grad = inputs(x.shape, seed=9, dtype=x.dtype)
    spikes.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)
    return spikes


@pytest.fixture(params=NEURON_BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("timesteps", [1, 2, 3, 4, 10, 16, 64])
def test_any_number_of_timesteps(backend, timesteps):
    compare(backend, inputs((timesteps, 3, 5, 7)))


@pytest.mark.parametrize("tau", [1.01, 1.5, 2.0, 3.0, 100.0])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, 0.2])
def test_any_time_constant_and_reset(backend, tau, v_reset):
    compare(backend, inputs((4, 101)), 1 / tau, v_reset=v_reset)


@pytest.mark.parametrize("constants", [{"v_threshold": 0.5}, {"v_threshold": 7.0, "alpha": 4 / 14}, {"alpha": 1.0}])
def test_thresholds_and_slopes(backend, constants):
    compare(backend, inputs((4, 999)) * constants.get("v_threshold", 1.0), **constants)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_storage_types_keep_an_exact_membrane(backend, dtype, tolerance):
    compare(backend, inputs((6, 1000), dtype=dtype), tolerance=tolerance)


def test_layouts(backend):
    x = inputs((4, 2, 6, 5, 5))
    plain = compare(backend, x)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    chunk = torch.cat([x, x], dim=2)[:, :, 3:9]
    expanded = x[:1].expand(4, -1, -1, -1, -1)
    assert torch.equal(compare(backend, last), plain)
    compare(backend, chunk)
    compare(backend, expanded)


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 1), (3, 8193), (2, 2**16 + 5)])
def test_sizes(backend, shape):
    compare(backend, inputs(shape))


def test_the_time_constant_has_a_gradient(backend):
    x, w = inputs((5, 300)).double(), torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    w_ours = w.detach().clone().requires_grad_()
    expected, _ = equations(x, w.sigmoid())
    spikes = NEURON_BACKENDS[backend](x, w_ours.sigmoid(), 1.0, 0.0, 4.0)
    assert torch.equal(spikes, expected)
    weight = inputs(x.shape, seed=3).double()
    (expected * weight).sum().backward()
    (spikes * weight).sum().backward()
    assert w_ours.grad.item() == pytest.approx(w.grad.item(), rel=1e-10)


def test_only_the_input_is_saved(backend):
    saved = []
    x = inputs((4, 50)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        NEURON_BACKENDS[backend](x, 0.5, 1.0, 0.0, 4.0)
    assert len(saved) == 1 and saved[0].data_ptr() == x.data_ptr()


def test_no_state_survives_a_forward(backend):
    layer, x = LIF(backend=backend), inputs((4, 50))
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert not list(layer.buffers()) and not list(layer.parameters())
    assert [name for name, _ in PLIF(backend=backend).named_parameters()] == ["w"]


def test_plif_starts_from_its_time_constant(backend):
    assert PLIF(tau=3.0, backend=backend).inv_tau.item() == pytest.approx(1 / 3)
    assert torch.equal(PLIF(tau=2.0, backend=backend)(inputs((4, 99))), LIF(tau=2.0, backend=backend)(inputs((4, 99))))


def test_a_backend_that_is_none_is_named():
    with pytest.raises(UserError, match="'troch' is no backend; did you mean torch"):
        select_backend("troch")
    assert select_backend("auto") in NEURON_BACKENDS
