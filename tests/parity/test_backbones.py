"""Every backbone against the published code of its network, and against a second implementation with STAtten inside.

The files in tests/golden/backbones are condensed (see condense.py there); $STATTEN_GOLDEN names a folder with the whole ones.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from statten.config import ModelConfig
from statten.models import build_model
from statten.models.published import from_published, to_published

HERE = Path(__file__).parents[1] / "golden" / "backbones"
GOLDEN = Path(os.environ.get("STATTEN_GOLDEN", HERE))
sys.path.insert(0, str(HERE))
from condense import sketch  # noqa: E402

CASES = sorted(path.stem.removesuffix("_statten") for path in HERE.glob("*_statten.json"))
TOLERANCE = 1e-9
"""Of the largest value; 1e-6 for what a file holds in float32."""


class Case:
    """A golden file, and the network of its config with its weights."""

    def __init__(self, name: str):
        self.about = json.loads((GOLDEN / f"{name}.json").read_text())
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        fields = {k: v for k, v in self.about["config"].items() if k in ModelConfig.model_fields}
        if fields["backbone"] == "sdt2":  # what its own rules give
            del fields["stage_dims"], fields["stage_depths"]
        self.config = ModelConfig(**{"block_size": 1, **fields, "per_timestep_logits": False})

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def model(self, **fields) -> torch.nn.Module:
        """The network in float64 on PyTorch's neurons."""
        model = build_model(self.config.model_copy(update=fields), "torch").double()
        # Behind its tenth batch: before that a BatchNorm here averages, where PyTorch's does not.
        state = {k: v.double() if v.is_floating_point() else torch.tensor(10) for k, v in self.part("state.").items()}
        model.load_state_dict(from_published(state, self.config.backbone))
        return model

    @property
    def x(self) -> torch.Tensor:
        return self.tensors["x"].double()


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return Case(request.param)


def close(ours: torch.Tensor, golden: torch.Tensor, what: str, tolerance: float | None = None) -> None:
    tolerance = tolerance or (1e-6 if golden.dtype == torch.float32 else TOLERANCE)
    assert ours.shape == golden.shape, what
    error = (ours.double() - golden.double()).abs().max() / golden.double().abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def trained(model: torch.nn.Module, case: Case, golden: Case, suffix: str) -> None:
    """A training step's logits, loss, gradients and buffers against those of a golden file."""
    logits = model.train()(case.x)
    close(logits, golden.tensors[f"train.logits{suffix}"], "logits")
    loss = torch.nn.functional.cross_entropy(logits, case.tensors["y"])
    close(loss.reshape(1), golden.tensors[f"train.loss{suffix}"].reshape(1), "loss")
    loss.backward()
    assert all(p.grad is not None for p in model.parameters()), "every parameter has a gradient"
    gradients = to_published({name: p.grad for name, p in model.named_parameters()}, case.config)
    part = suffix[1:] + "." if suffix else ""
    whole, sketches = golden.part(f"grad.{part}"), golden.part(f"sketch.{part}")
    sizes = {name: float(value.double().norm()) for name, value in whole.items()}
    sizes |= {name: float(value[-1]) for name, value in sketches.items()}
    for name, size in sizes.items():
        if size <= 1e-10 * max(sizes.values()):
            continue  # a bias in front of a BatchNorm: rounding alone
        if name in whole:
            close(gradients[name], whole[name], name)
        else:
            close(sketch(f"grad.{part}{name}", gradients[name]), sketches[name], name, tolerance=2e-6)
    buffers = to_published({**dict(model.named_parameters()), **dict(model.named_buffers())}, case.config)
    biases = case.part("state.")
    for name, value in golden.part(f"after.{part}").items():
        if name.endswith("num_batches_tracked"):
            continue
        found = buffers[name]
        if name.endswith("running_mean"):  # a bias in front of a BatchNorm that has none here
            before = name.removesuffix("_bn.running_mean")
            bias = next((biases[key] for key in (f"{before}_linear.bias", f"{before}_conv.bias") if key in biases), None)
            if bias is not None and before[-1] in "qkv":
                found = found + bias
        close(found, value, name)


def test_evaluation_logits(case):
    model = case.model().eval()
    with torch.no_grad():
        close(model(case.x), case.tensors["eval.logits"], "logits")


def test_training_step(case):
    trained(case.model(), case, case, "")


def test_statten_at_every_block_size(case, request):
    golden = Case(f"{request.node.callspec.params['case']}_statten")
    model = case.model(attention="statten").eval()
    blocks = golden.part("eval.logits.block")
    assert sorted(map(int, blocks)) == list(range(1, case.config.timesteps + 1))
    for name, logits in blocks.items():
        model.set_timesteps(case.config.timesteps, int(name))
        with torch.no_grad():
            close(model(case.x), logits, f"block {name}")


def test_statten_training_step(case, request):
    golden = Case(f"{request.node.callspec.params['case']}_statten")
    trained(case.model(attention="statten", block_size=2), case, golden, ".block2")


def test_firing_rates(case):
    model, seen = case.model().eval(), []
    for layer in model.spiking_layers().values():
        layer.register_forward_hook(lambda _module, _inputs, spikes: seen.append(spikes))
    with torch.no_grad():
        model(case.x)
    rates = case.about["firing_rates_eval"]
    assert len(seen) == len(rates)
    ours = sorted((spikes.numel(), spikes.mean().item(), (spikes != 0).double().mean().item()) for spikes in seen)
    theirs = sorted((torch.Size(rate["shape"]).numel(), rate["mean"], rate["nonzero"]) for rate in rates.values())
    for found, golden in zip(ours, theirs, strict=True):
        assert found == pytest.approx(golden, rel=TOLERANCE)


def test_published_names_there_and_back(case):
    ours = from_published(case.part("state."), case.config.backbone)
    theirs = to_published(ours, case.config)
    back = from_published(theirs, case.config.backbone)
    assert set(back) == set(ours) and all(torch.equal(back[name], ours[name]) for name in ours)
    assert set(theirs) <= set(case.part("state.")), "no name that the published network does not have"
