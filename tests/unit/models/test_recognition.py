"""Networks recognised by their published names, in every form of file."""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from statten.config import ModelConfig
from statten.errors import UserError
from statten.models import BACKBONES, build_model
from statten.models.published import from_published, load_published, read_published, recognise, to_published, translate

GOLDEN = Path(__file__).parents[2] / "golden"
EVERY = [GOLDEN, *map(Path, filter(None, [os.environ.get("STATTEN_GOLDEN")]))]
"""$STATTEN_GOLDEN names a folder with checkpoints that are too large to lie here."""
CHECKPOINTS = sorted({path for folder in EVERY for path in folder.glob("*_checkpoint.pth*") if "reference" not in path.name})
CASES = sorted(path.stem for path in (GOLDEN / "backbones").glob("*.json") if not path.stem.endswith("_statten"))


class Case:
    """A golden file of the published code of a network."""

    def __init__(self, name: str):
        self.config = json.loads((GOLDEN / "backbones" / f"{name}.json").read_text())["config"]
        tensors = load_file(GOLDEN / "backbones" / f"{name}.safetensors")
        self.x, self.tensors = tensors["x"].double(), tensors
        self.state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}

    @property
    def in_order(self) -> dict:
        """The weights in the order of the public modules."""
        fields = {k: v for k, v in self.config.items() if k in ModelConfig.model_fields and not k.startswith("stage_")}
        config = ModelConfig(**{"block_size": 1, **fields})
        return {name: self.state[name] for name in to_published(build_model(config).state_dict(), config)}

    @property
    def untold(self) -> dict:
        """What neither weights nor a file without arguments tell."""
        return {f"model.{name}": self.config[name] for name in ("num_heads", "image_size", "timesteps")}


def logits(model, x):
    with torch.no_grad():
        return model.double()(x)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_gives_its_logits(path):
    expected = load_file(path.with_name(path.name.partition(".")[0] + ".expected.safetensors"))
    overrides = {} if "sdt" in path.name else {"model.image_size": expected["x"].shape[-1]}
    model = load_published(path, overrides=overrides)
    wanted = expected.get("logits", expected.get("eval.logits"))
    torch.testing.assert_close(logits(model, expected["x"].double()), wanted, rtol=1e-9, atol=1e-9)
    state = torch.load(path, weights_only=False)
    state = state.get("state_dict") or state.get("model")
    back = to_published(model.state_dict(), model.config)
    assert all(torch.equal(back[name].double(), state[name].double()) for name in back if not name.endswith(_MOVED))
    again = from_published(back)
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


_MOVED = tuple(f"attn.{q}_{part}" for q in "qkv" for part in ("linear.bias", "bn.running_mean"))
"""Biases in front of a BatchNorm, which go into its mean."""


@pytest.mark.parametrize("name", CASES)
def test_weights_alone_tell_their_network_and_its_shape(name, tmp_path):
    case = Case(name)
    assert recognise(case.state) == case.config["backbone"]
    torch.save(case.state, tmp_path / "weights.pth")
    model = load_published(tmp_path / "weights.pth", overrides=case.untold)
    m = model.config
    for field in (
        "backbone",
        "attention",
        "embed_dim",
        "depth",
        "mlp_ratio",
        "in_channels",
        "num_classes",
        "events",
        "pooling",
    ):
        assert getattr(m, field) == case.config.get(field, getattr(m, field)), field
    assert m.stem == case.config.get("stem_stride", m.stem)
    torch.testing.assert_close(logits(model, case.x), case.tensors["eval.logits"], rtol=1e-9, atol=1e-9)


FORMS = {
    "timm's saver": lambda state, args: {
        "epoch": 3, "arch": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}, "version": 2,
        "args": args, "metric": 1.0,
    },
    "MAE's": lambda state, args: {"model": state, "optimizer": {}, "epoch": 199, "scaler": {"scale": 65536.0}, "args": args},
    "torchvision's": lambda state, args: {
        "model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 3, "args": args, "max_test_acc1": 1.0,
        "test_acc5_at_max_test_acc1": 2.0,
    },
    "bare": lambda state, args: {"state_dict": state, "epoch": 3, "arch": "x", "version": 2, "metric": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, tmp_path):
    case = Case("qkformer_static")
    arguments = argparse.Namespace(model="QKFormer_10_384", time_step=4, input_size=32, nb_classes=1000, layer=99, num_heads=8)
    torch.save(FORMS[form](case.state, arguments), tmp_path / "model.pth")
    found = read_published(tmp_path / "model.pth")
    config, rows = found.translate({} if form != "bare" else case.untold)
    assert (found.backbone, config.model.depth, config.model.num_classes, config.model.num_heads) == ("qkformer", 4, 10, 8)
    assert found.weights.keys() == from_published(case.state).keys()
    assert found.epoch == (199 if form == "MAE's" else 3)
    wanted = ["model.timesteps", "model.num_heads", "model.image_size"] if form == "bare" else []
    assert [line.partition(":")[0] for line in found.untold()] == wanted and found.untold(case.untold) == []
    if form != "bare":
        told = {row["argument"]: row for row in rows}
        assert told["time_step"]["field"] == "model.timesteps" and told["input_size"]["field"] == "model.image_size"
        assert told["layer"]["field"] is None and told["layer"]["reason"] == "the weights say 4"
        assert told["nb_classes"]["reason"] == "the weights say 10" and told["model"]["field"] is None


def test_arguments_that_are_not_there_are_those_of_the_published_type():
    wanted = {
        "spikformer_static": (8, 32, False, "0011", 1), "spikformer_imagenet": (1, 224, False, "1111", 1),
        "spikformer_events": (16, 128, True, "1111", 8), "maxformer_static": (8, 32, False, "0011", 1),
        "qkformer_imagenet": (1, 224, False, "0011", 4), "qkformer_events": (16, 128, True, "0011", 8),
    }  # fmt: skip
    for name, fields in wanted.items():
        case = Case(name)
        network = BACKBONES[case.config["backbone"]]
        found = {**network.published_defaults(case.state), **network.published_shape(case.state)}
        c = ModelConfig(**{k.removeprefix("model."): v for k, v in found.items()}, backbone=case.config["backbone"])
        assert (c.num_heads, c.image_size, c.events, c.pooling, c.stem) == fields, name


@pytest.mark.parametrize("name", ["maxformer_imagenet", "ms_qkformer_imagenet", "maxformer_static"])
def test_older_names_are_matched_by_order_and_that_is_said(name, tmp_path, caplog):
    case = Case(name)
    older = {f"old.{i}": value for i, value in enumerate(case.in_order.values())}
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": older}, path)
    model = load_published(path, overrides=case.untold)
    assert "its names are not those of" in caplog.text and model.config.backbone == case.config["backbone"]
    torch.testing.assert_close(logits(model, case.x), case.tensors["eval.logits"], rtol=1e-9, atol=1e-9)
    for changed in (
        {**older, "old.9": older["old.9"][:-1]},  # one of another shape
        {name: value for name, value in older.items() if name != "old.9"},
        {**older, "more": torch.ones(3)},
    ):
        torch.save({"state_dict": changed}, path)
        with pytest.raises(
            UserError, match=r"are of none of the networks that are known here \(sdt, .*\); there is no place for old"
        ):
            read_published(path)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TAMPERED = {
    "extra": (lambda state: {**state, "stage3.0.extra.weight": torch.ones(2)}, None, r"no place for stage3\.0\.extra\.weight"),
    "shape": (
        lambda state: {**state, "stage3.0.ssa.proj_conv.weight": torch.ones(64, 32, 1)}, None,
        r"blocks\.2\.attn\.proj\.0\.weight must be \[64, 64, 1, 1\], but is \[64, 32, 1, 1\]",
    ),
    "axes": (lambda state: {**state, "head.weight": torch.ones(10)}, None, r"head\.weight must have 2 axes"),
    "empty": (lambda state: {**state, "head.weight": torch.ones(0, 64)}, None, r"head\.weight must have 2 axes"),
    "missing": (
        lambda state: {k: v for k, v in state.items() if k != "stage3.0.ssa.v_conv.weight"}, None,
        r"stage3\.0\.ssa\.v_conv\.weight missing",
    ),
    "block": (
        lambda state: {k: v for k, v in state.items() if not k.startswith("stage3.0.")}, None,
        r"stage3\.1 is there, but stage3\.0 is missing",
    ),
    "bit": (lambda state: state, _flipped, "does not match its check sum"),
}  # fmt: skip


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_file_is_refused(how, tmp_path):
    change, damage, sentence = TAMPERED[how]
    path = tmp_path / "model.pth"
    torch.save({"model": change(Case("qkformer_static").state), "args": argparse.Namespace()}, path)
    if damage:
        damage(path)
    with pytest.raises(UserError, match=sentence) as caught:
        load_published(path)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)


def test_another_network_is_named():
    state = Case("qkformer_static").state
    with pytest.raises(UserError, match="their names are those of qkformer, not of spikformer"):
        from_published(state, "spikformer")
    with pytest.raises(UserError, match=r"are of none of the networks that are known here \(sdt, .*no place for layers"):
        from_published({"layers.0.0.ln.weight": torch.ones(3)})


def test_a_plain_network_goes_through_a_file_with_stattens_arguments(tmp_path):
    """What is written of STAtten inside another network is read back as it was: its block size is in the arguments."""
    from statten.config import build_config
    from statten.models.published import published_arguments

    fields = {"backbone": "spikformer", "depth": 1, "embed_dim": 32, "num_heads": 4, "timesteps": 3, "pooling": "0111"}
    config = build_config({}, {f"model.{name}": value for name, value in fields.items()})
    model = build_model(config.model)
    arguments = argparse.Namespace(**published_arguments(config))
    torch.save({"state_dict": to_published(model.state_dict(), config.model), "args": arguments}, tmp_path / "model.pth.tar")
    assert load_published(tmp_path / "model.pth.tar").config == config.model
    with pytest.raises(UserError, match=r"model\.attention_scale: has the published network's own value there, but is 0\.5"):
        published_arguments(build_config({}, {**{f"model.{k}": v for k, v in fields.items()}, "model.attention_scale": 0.5}))


@pytest.mark.parametrize("name", ["qkformer_static", "qkformer_imagenet", "qkformer_events"])
def test_qkformer_as_published_mixes_samples(name, caplog, tmp_path):
    case = Case(name)
    torch.save(case.state, tmp_path / "model.pth")
    model = load_published(tmp_path / "model.pth", overrides=case.untold)
    assert "mixes the samples of a batch" in caplog.text
    own = logits(model, case.x)
    model.mix_samples()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(logits(model, case.x), case.tensors["published.eval.logits"], **close)
    assert not torch.allclose(own, case.tensors["published.eval.logits"])
    alone = torch.cat([logits(model, x[None]) for x in case.x])
    torch.testing.assert_close(alone, case.tensors["published.eval.logits.alone"], **close)
    with pytest.raises(AssertionError, match="not for training"):
        model.train()(case.x)


def test_the_spike_driven_transformer_s_own_files_have_its_attention_but_not_its_event_mode():
    arguments = dict(vars(torch.load(GOLDEN / "sdt_checkpoint.pth.tar", weights_only=False)["args"]))
    model = translate(arguments)[0].model
    assert (model.attention, model.block_size) == ("sdsa", 1)
    with pytest.raises(UserError, match="dvs_mode: the Spike-driven Transformer's own event mode"):
        translate({**arguments, "dvs_mode": True, "in_channels": 2})
