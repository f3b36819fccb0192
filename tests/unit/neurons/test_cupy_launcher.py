"""How kernels are started through CuPy, where there is no GPU: what is kept, which stream it is, where CuPy's cache lies."""

import contextlib
import os
import subprocess
import sys
import types
from importlib.util import find_spec

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from statten.neurons import cupy_backend
from statten.neurons.compiled import CompiledBackend
from statten.neurons.cupy_backend import CupyKernels, Launcher
from statten.neurons.dynamics import Dynamics, Norm, Wanted, frames


class Card:
    """What of CuPy and PyTorch's CUDA a launch meets, written down; what the kernel itself does stands in tests/conformance."""

    def __init__(self, monkeypatch):
        self.compiled, self.asked, self.launched, self.stream = 0, [], [], 11
        card = self

        class RawModule:
            def __init__(self, code, options):
                self.options = options

            def compile(self):
                card.compiled += 1

            def get_function(self, name):
                card.asked.append(name)
                return types.SimpleNamespace(kernel=lambda *call: card.launched.append((name, *call)))

        monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(RawModule=RawModule))
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=self.stream, device=device)
        )


def test_a_kernel_is_loaded_once_and_follows_pytorchs_stream(monkeypatch):
    card, kernels = Card(monkeypatch), CupyKernels(Launcher())
    x = torch.randn(4, 1000)
    for card.stream in (11, 11, 12):
        kernels.forward(frames(x), torch.empty_like(x), 0.5, Dynamics(), None, 1, None)
    assert (card.compiled, card.asked) == (1, ["lif_forward"])
    kernels.backward(frames(x), x, torch.empty_like(x), 0.5, Dynamics(), None, 1, False)
    assert card.asked == ["lif_forward", "lif_backward"], "and no more when it runs again"
    _, grid, block, arguments, shared, stream = card.launched[2]
    assert (block, shared, stream.ptr) == ((256,), 0, 12) and card.launched[0][-1].ptr == 11
    assert grid[0] * block[0] >= 1000 / 4 and arguments[0] == x.data_ptr()


@pytest.mark.parametrize("first", ["", "import cupy"])
def test_cupy_keeps_what_it_compiles_beside_our_libraries(first, tmp_path):
    """Also where another package has imported it, and with it the place of its cache, before."""
    if find_spec("cupy") is None:
        pytest.skip("CuPy is not installed")
    code = f"{first}\nfrom statten.neurons.cupy_backend import keep_compiled_kernels\nkeep_compiled_kernels()\n"
    code += "from cupy.cuda import compiler\nprint(compiler._kernel_cache_backend._cache_dir)"
    outside = {name: value for name, value in os.environ.items() if name != "CUPY_CACHE_DIR"}
    places = {"HOME": str(tmp_path), "STATTEN_CACHE": str(tmp_path / "own")}
    for chosen, expected in ({}, tmp_path / "own" / "cupy"), ({"CUPY_CACHE_DIR": str(tmp_path / "mine")}, tmp_path / "mine"):
        environ = {**outside, **places, **chosen}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
        assert done.stdout.strip() == str(expected), done.stderr


def test_the_cache_of_cupy_is_named_once(monkeypatch, tmp_path):
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path))
    monkeypatch.setenv("CUPY_CACHE_DIR", "theirs")
    cupy_backend.keep_compiled_kernels()
    assert os.environ["CUPY_CACHE_DIR"] == "theirs"
    monkeypatch.delenv("CUPY_CACHE_DIR")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    cupy_backend.keep_compiled_kernels()
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "cupy")
    monkeypatch.delenv("CUPY_CACHE_DIR")


class OnCpu(CompiledBackend):
    """A backend whose kernels are written down, and do nothing."""

    def check(self):
        """Runs everywhere."""


class Counted(TorchDispatchMode):
    """Operations of PyTorch that start a kernel on a GPU."""

    FREE = (
        "empty",
        "empty_strided",
        "empty_like",
        "detach",
        "select",
        "unbind",
        "view",
        "as_strided",
        "unflatten",
        "_unsafe_view",
    )

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        self.names += [name] * (name not in self.FREE)
        return function(*args, **(kwargs or {}))


def test_few_kernels_are_started_around_a_fused_layer():
    """A small model is as fast as the host can start kernels: what is done for each channel is done in one of them."""
    started, dynamics = [], Dynamics()
    kernels = CupyKernels(lambda variant, name, *rest: started.append(name))
    x = torch.randn(4, 2, 16, 5, 5).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    weight, bias = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    backend = OnCpu(kernels, ("cpu",))
    x.requires_grad_()
    with Counted() as counted:
        spikes, *_ = backend.norm_lif(x, 0.5, dynamics, Wanted(4, x.dtype), Norm(weight, bias, 1e-5))
        forward = len(counted.names)
        spikes.backward(x.detach())
    assert started == ["norm_affine", "lif_forward", "lif_backward", "norm_coefficients", "norm_combine"]
    assert counted.names[:forward] == ["batch_norm_update_stats"]
    assert counted.names[forward:] == ["sum"], counted.names
