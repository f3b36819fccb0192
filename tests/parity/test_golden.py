"""Every golden file is reproduced in float64: the published implementation and ours compute the same numbers."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models import build_model
from statten.models.published import from_published, load_published, published_config, to_published
from statten.training.losses import tet_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))
# Biases in front of a BatchNorm: their gradient is pure rounding noise.
NOISE = ("proj_conv.bias", "fc1_conv.bias", "fc2_conv.bias")


class Case:
    def __init__(self, name: str):
        self.about = json.loads((GOLDEN / f"{name}.json").read_text())
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        c = self.about["config"]
        arguments = {
            **c, "img_size": c["img_size_h"], "layer": c["depths"], "dim": c["embed_dims"], "mlp_ratio": c["mlp_ratios"],
            "time_steps": c["T"],
        }  # fmt: skip
        self.config = published_config(arguments)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def model(self) -> torch.nn.Module:
        model = build_model(self.config, "torch").double()
        model.load_state_dict(
            {k: v.double() if v.is_floating_point() else v for k, v in from_published(self.part("state.")).items()}
        )
        return model

    @property
    def x(self) -> torch.Tensor:
        return self.tensors["x"].double()

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        if self.about["loss_kind"].startswith("tet"):
            return tet_loss(logits, self.tensors["y"], mean=1.0, lamb=0.001)
        return torch.nn.functional.cross_entropy(logits, self.tensors["y"])


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return Case(request.param)


def close(ours: torch.Tensor, golden: torch.Tensor) -> None:
    """Equal to 1e-9 of the largest value; what the file stores in float32, to 1e-6."""
    assert ours.shape == golden.shape
    tolerance = 1e-6 if golden.dtype == torch.float32 else 1e-9
    error = (ours.double() - golden.double()).abs().max() / golden.double().abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.2e}"


def test_all_six_are_here():
    assert len(CASES) == 6


def test_evaluation_logits_at_every_block_size(case):
    model = case.model().eval()
    with torch.no_grad():
        close(model(case.x), case.tensors["eval.logits"])
        for name, golden in case.part("eval.logits.block").items():
            model.set_timesteps(case.config.timesteps, int(name))
            close(model(case.x), golden)


def test_training_logits_loss_gradients_and_buffers(case):
    model = case.model().train()
    logits = model(case.x)
    close(logits, case.tensors["train.logits"])
    loss = case.loss(logits)
    close(loss.reshape(1), case.tensors["train.loss"])
    loss.backward()
    gradients = to_published({name: p.grad for name, p in model.named_parameters()})
    golden = case.part("grad.")
    assert set(gradients) == set(golden)
    for name, value in golden.items():
        if not name.endswith(NOISE):
            close(gradients[name], value)
    buffers = to_published(dict(model.named_buffers()))
    for name, value in case.part("after.").items():
        close(buffers[name], value)


def test_firing_rates(case):
    model, seen = case.model().eval(), {}

    def note(name: str):
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    def note_core(prefix: str):
        def hook(module, inputs, output):
            q, k, v, mask = inputs
            seen[f"{prefix}_q_lif"], seen[f"{prefix}_k_lif"], seen[f"{prefix}_v_lif"] = q, k, v
            if case.config.attention == "sdsa":
                seen[f"{prefix}_kv_before"] = k * v
                seen[f"{prefix}_x_after_qkv"] = output
            else:
                seen[f"{prefix}_after_qkv"] = output
            if mask is not None:
                seen[f"{prefix}_mask"] = mask

        return hook

    for i, lif in enumerate(model.embed.lifs):
        lif.register_forward_hook(note(f"MS_SPS_lif{i or ''}"))
    for i, block in enumerate(model.blocks):
        block.attn.lif.register_forward_hook(note(f"MS_SSA_Conv{i}_first_lif"))
        block.attn.core.register_forward_hook(note_core(f"MS_SSA_Conv{i}"))
        if case.config.attention == "sdsa":
            block.attn.core.lif.register_forward_hook(note(f"MS_SSA_Conv{i}_kv"))
        block.mlp.lif1.register_forward_hook(note(f"MS_MLP_Conv{i}_fc1_lif"))
        block.mlp.lif2.register_forward_hook(note(f"MS_MLP_Conv{i}_fc2_lif"))
    model.head_lif.register_forward_hook(note("head_lif"))
    with torch.no_grad():
        model(case.x)
    for name, golden in case.about["firing_rates_eval"].items():
        spikes = seen[name]
        assert spikes.mean().item() == pytest.approx(golden["mean"], rel=1e-9), name
        assert (spikes != 0).double().mean().item() == pytest.approx(golden["nonzero"], rel=1e-9), name


@pytest.mark.parametrize("name", ["reference_checkpoint.pth.tar", "reference_checkpoint_ddp.pth.tar"])
def test_published_checkpoints_import(name):
    expected = load_file(GOLDEN / "reference_checkpoint.expected.safetensors")
    model = load_published(GOLDEN / name).double()
    with torch.no_grad():
        close(model(expected["x"].double()), expected["eval.logits"])


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("this must not run",))

    torch.save({"state_dict": {}, "args": argparse.Namespace(), "x": Hostile()}, tmp_path / "bad.pth.tar")
    with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
        load_published(tmp_path / "bad.pth.tar")
    with pytest.raises(UserError, match="no such file"):
        load_published(tmp_path / "none.pth.tar")


def test_names_go_there_and_back(case):
    state = {k: v for k, v in case.part("state.").items() if "talking_heads" not in k}
    back = to_published(from_published(case.part("state.")))
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_weights_without_a_place_or_a_partner_are_named(case):
    state = case.part("state.")
    with pytest.raises(UserError, match=r"no place for head\.scale"):
        from_published({**state, "head.scale": torch.ones(1)})
    with pytest.raises(UserError, match=r"block\.0\.attn\.k_conv\.weight missing"):
        from_published({k: v for k, v in state.items() if k != "block.0.attn.k_conv.weight"})


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({"embed_dim": 256}, 2.567),
        ({"embed_dim": 512}, 10.234),
        ({"embed_dim": 512, "num_classes": 100}, 10.280),
        ({"embed_dim": 256, "in_channels": 2, "image_size": 64, "events": True}, 2.567),
        ({"embed_dim": 256, "in_channels": 2, "image_size": 64, "events": True, "num_classes": 101}, 2.590),
        ({"embed_dim": 512, "depth": 8, "pooling": "1111", "image_size": 224, "num_classes": 1000}, 29.69),
        ({"embed_dim": 768, "depth": 8, "pooling": "1111", "image_size": 224, "num_classes": 1000}, 66.34),
    ],
)
def test_parameter_counts(fields, millions):
    with torch.device("meta"):
        config = ModelConfig(**fields)
        count = sum(p.numel() for p in build_model(config, "torch").parameters())
    count += config.depth * config.num_heads**2  # the published module list also counts unused `talking_heads`
    digits = 3 if millions < 20 else 2
    assert round(count / 1e6, digits) == millions, count
