"""Neuron modules: choice of a backend, the learned time constant, and SpikingJelly's tools over them."""

import logging
import math
import os
import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import functional, monitor, op_counter
from spikingjelly.logger import logger
from torch import nn

from statten.config import ModelConfig
from statten.errors import UserError
from statten.metrics.spikes import FiringRates
from statten.models import build_model
from statten.neurons import LIF, PLIF, native, select_backend
from statten.neurons.dynamics import Unavailable

SMALL = {"timesteps": 4, "block_size": 2, "depth": 2, "embed_dim": 32, "num_heads": 4, "image_size": 16, "num_classes": 7}


def make(**fields) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(**{**SMALL, **fields}), "torch")


def images(batch: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def lively() -> nn.Module:
    """A model whose BatchNorm has seen data, so that its neurons fire in evaluation mode."""
    model = make().train()
    with torch.no_grad():
        model(images(8))
    return model.eval()


def test_auto_is_resolved_once_and_said_in_the_log(caplog):
    select_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="statten"):
        for _ in range(2):
            LIF()(torch.zeros(2, 3))
    said = [record.getMessage() for record in caplog.records if "neuron backend" in record.getMessage()]
    assert len(said) == 1 and f"neuron backend: {select_backend('auto', 'cpu').name} (automatic choice" in said[0]


def test_auto_takes_the_compiled_neuron_where_there_is_a_compiler():
    assert select_backend("auto", "cpu").name == "native"


def test_without_a_compiler_auto_takes_torch_and_says_why(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    select_backend.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="statten"):
            assert select_backend("auto", "cpu").name == "torch"
        assert "torch (automatic choice; not native: $CXX names no-such-compiler, which is not on the PATH)" in caplog.text
        with pytest.raises(UserError, match=r"neuron_backend: native cannot run here: \$CXX names no-such-compiler"):
            select_backend("native", "cpu")
    finally:
        native.library.cache_clear()
        select_backend.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text('#!/bin/sh\necho "native.cpp:1: fatal error: no space left" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("STATTEN_CACHE", str(tmp_path / "cache"))
    native.library.cache_clear()
    try:
        with pytest.raises(Unavailable, match=r"broken-c\+\+ cannot compile native.cpp: .*fatal error: no space left"):
            native.library()
        assert not list((tmp_path / "cache").glob("*.so"))
    finally:
        native.library.cache_clear()


def test_the_library_is_compiled_once_for_several_processes(tmp_path):
    """Two workers that start together: one compiles, the other waits and takes its file."""
    code = "from statten.neurons import native; native.library(); print(native.library().native_calls())"
    log = "import logging; logging.basicConfig(level=logging.INFO); "
    command = [sys.executable, "-c", log + code]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "STATTEN_CACHE": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = [worker.communicate(timeout=300) for worker in workers]
    assert [out.strip() for out, _ in found] == ["0", "0"]
    assert sum("compiled" in err for _, err in found) == 1 and len(list(tmp_path.glob("*.so"))) == 1


@pytest.mark.parametrize("name", ["native", "torch"])
def test_a_named_backend_is_taken(name):
    assert select_backend(name, "cpu").name == name


def test_cupy_is_refused_on_a_cpu_in_one_sentence():
    with pytest.raises(UserError, match=r"neuron_backend: cupy runs on cuda, not on cpu") as error:
        select_backend("cupy", "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cupy_without_cupy_or_a_gpu_says_what_is_missing():
    with pytest.raises(UserError, match=r"cupy cannot run here: (CuPy is not installed; type|there is no GPU)"):
        select_backend("cupy", "cuda")


def test_an_unknown_backend_is_one_sentence_with_the_nearest_name():
    with pytest.raises(UserError, match=r"'torhc' is no backend; did you mean torch\?") as error:
        select_backend("torhc", "cpu")
    assert len(error.value.problems) == 1 and "\n" not in str(error.value)


@pytest.mark.parametrize("tau", [1.5, 2.0, 8.0])
def test_plif_starts_from_tau_and_has_one_weight_called_w(tau):
    neuron = PLIF(tau=tau, backend="torch")
    assert {name: value.shape for name, value in neuron.state_dict().items()} == {"w": torch.Size([])}
    assert neuron.w.item() == pytest.approx(-math.log(tau - 1), abs=1e-6)
    x = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(neuron(x), LIF(tau=tau, backend="torch")(x))


def test_plif_learns():
    neuron = PLIF(backend="torch")
    neuron(torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert neuron.w.grad is not None and neuron.w.grad.abs() > 0


def test_lif_has_no_weights():
    assert not LIF(backend="torch").state_dict()


def test_importing_neurons_does_not_import_spikingjelly():
    code = "import sys, statten.neurons; print([m for m in ('spikingjelly', 'timm', 'ray') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.fixture
def warned():
    said: list[str] = []
    logger.enable("spikingjelly")
    sink = logger.add(lambda message: said.append(str(message)), level="WARNING")
    yield said
    logger.remove(sink)


def test_spikingjelly_reset_net_has_nothing_to_do_and_says_nothing(lively, warned):
    before = lively(images())
    functional.reset_net(lively)
    assert torch.equal(lively(images()), before) and warned == []


def test_spikingjelly_monitors_see_every_neuron(lively, warned):
    with monitor.OutputMonitor(lively, LIF, lambda spikes: spikes.mean().item()) as seen:
        lively(images())
    assert len(seen.records) == len(lively.spiking_layers()) and warned == []
    with FiringRates(lively.spiking_layers(), "cpu") as rates:
        lively(images())
    assert sorted(seen.records) == pytest.approx(sorted(rates.reduced().values()), abs=1e-6)


def test_spikingjelly_counts_the_synaptic_operations_of_the_convolutions(lively, warned):
    """A 1 x 1 convolution adds each of its input spikes once per output channel."""
    counter, inputs = op_counter.SynOpCounter(), {}
    fc2 = lively.blocks[0].mlp.fc2[0]
    handle = fc2.register_forward_hook(lambda _m, args, _o: inputs.update(spikes=args[0]))
    with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
        lively(images())
    handle.remove()
    scope = next(name for name in counter.get_counts() if name.endswith("blocks.0.mlp.fc2.0"))
    spikes = inputs["spikes"]
    assert sum(counter.get_counts()[scope].values()) == int(spikes.sum()) * fc2.out_channels > 0
    assert warned == []
