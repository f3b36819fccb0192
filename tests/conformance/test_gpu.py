"""What only a GPU shows, for the kernels and for the model around them. Skipped where there is none."""

import pytest
import torch

from statten.config import ModelConfig, load_config
from statten.data import make_loaders
from statten.models import build_model
from statten.neurons import LIF, NEURON_BACKENDS
from statten.neurons.dynamics import Dynamics, Unavailable, Wanted
from statten.training.loop import NoCallback, fit, make_state, record_graphs
from statten.training.preflight import to_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(scope="module", autouse=True)
def cupy_runs():
    try:
        NEURON_BACKENDS["cupy"].check()
    except Unavailable as reason:
        pytest.fail(f"there is a GPU, but {reason}")


def trained(x, layer):
    """Spikes and input gradient."""
    x = x.detach().clone().requires_grad_()
    spikes = layer(x)
    spikes.square().sum().backward()
    return spikes.detach(), x.grad


def test_kernels_run_on_the_current_stream():
    x, layer, side = torch.randn(4, 1 << 22, device="cuda"), LIF(backend="cupy"), torch.cuda.Stream()
    expected = trained(x, layer)
    torch.cuda.synchronize()
    y = torch.zeros_like(x)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would read y before it is written
        y.copy_(x)
        found = trained(y, layer)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_kernels_run_on_the_tensors_device():
    x, layer = torch.randn(4, 1000, device="cuda:1"), LIF(backend="cupy")
    assert torch.cuda.current_device() == 0
    found, expected = trained(x, layer), trained(x.to("cuda:0"), layer)
    assert torch.cuda.current_device() == 0 and found[0].device == x.device
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))


def test_kernels_are_captured_in_graphs():
    layer, x = LIF(backend="cupy"), torch.randn(4, 4096, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes autograd's buffers
        for _ in range(3):
            layer(x).sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    graph, x.grad = torch.cuda.CUDAGraph(), None
    with torch.cuda.graph(graph):
        spikes = layer(x)
        spikes.square().sum().backward()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    expected = trained(x, layer)
    assert torch.equal(spikes, expected[0]) and torch.equal(x.grad, expected[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_training_pass_is_the_eager_one(precision):
    config = load_config("digits", {"train.precision": precision, "scale.device": "cuda", "scale.cuda_graphs": True})
    loaders, device = make_loaders(config), torch.device("cuda")
    eager, recorded = make_state(config, device), make_state(config, device)
    record_graphs(recorded.model, loaders.train, config, device)
    before = dict(eager.model.named_buffers())
    assert all(torch.equal(before[name], buffer) for name, buffer in recorded.model.named_buffers())
    images = next(iter(loaders.train.batches(0)))[0].cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        logits = [state.model.train()(images) for state in (eager, recorded)]
    assert torch.equal(*logits)
    for out in logits:
        out.float().square().sum().backward()
    for ours, theirs in zip(recorded.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


class NoWaiting(NoCallback):
    """Makes PyTorch refuse whatever waits for the GPU, from the third step of an epoch to its end."""

    def step(self, state, steps):
        torch.cuda.set_sync_debug_mode("error" if 2 <= state.step < steps else "default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_a_training_step_never_waits_for_the_gpu(neuron, precision):
    fields = {"model.neuron": neuron, "model.drop_path": 0.1, "train.precision": precision, "train.clip_grad": 1.0}
    config = load_config("digits", {**fields, "scale.device": "cuda", "scale.neuron_backend": "cupy", "train.epochs": 1})
    try:
        fit(make_state(config, "cuda"), make_loaders(config), config, NoWaiting())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_compiler_takes_the_whole_model():
    torch.manual_seed(0)
    model = to_device(build_model(ModelConfig(embed_dim=64, image_size=16, depth=1), "cupy"), "cuda").eval()
    x = torch.randn(4, 3, 16, 16, device="cuda")
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True)(x)
    assert found.shape == (4, 10) and found.isfinite().all()


def test_a_tensor_beyond_32_bits():
    x = torch.full((4, 2**29 + 8), 1.5, device="cuda", dtype=torch.bfloat16)
    spikes = NEURON_BACKENDS["cupy"].lif(x, 0.5, Dynamics(), Wanted(4, x.dtype))
    expected = NEURON_BACKENDS["torch"].lif(x[:, :1], 0.5, Dynamics(), Wanted(4, x.dtype))
    assert torch.equal(spikes.amin(1), expected[:, 0]) and torch.equal(spikes.amax(1), expected[:, 0])
