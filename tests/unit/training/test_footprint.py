"""What a network is and costs is told without data, for every backbone, and in the numbers of ledger and model."""

import json

import pytest
import torch

from statten.config import Config, ModelConfig, load_config, recipe_names
from statten.metrics.energy import check, ledger_at
from statten.models import build_model
from statten.registry import BACKBONES
from statten.training.footprint import footprint


@pytest.mark.parametrize("events", [False, True], ids=["images", "clips"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_tells_its_layers(backbone, events):
    model = ModelConfig(backbone=backbone, events=events, image_size=32, in_channels=2 if events else 3, depth=4, embed_dim=256)
    found = footprint(Config(model=model), 0.2)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(model, "torch").parameters())
    assert found["parameters"] == parameters
    if backbone != "sdt2":  # whose RepConvs are listed as the larger convolution that each is at inference
        assert sum(row["parameters"] for row in found["layers"]) <= parameters
    assert found["layers"][0]["reads"] == [model.in_channels, 32, 32] and found["layers"][0]["unit"] == "MACs"
    assert found["sops"] == pytest.approx(sum(r["operations"] for r in found["layers"] if r["unit"] == "SOPs"))
    assert set(found["neurons"]) >= set(build_model(model, "torch").spiking_layers())
    ledger = ledger_at(model, 0.2)
    check(ledger)
    rates = {round(row["rate"], 12) for row in ledger["rows"]}
    assert rates <= {1.0, 0.2, 0.04}, "numbers, spikes, and k and v together"


def test_twice_the_rate_is_twice_the_spikes():
    config = load_config("digits")
    one, two = footprint(config, 0.1), footprint(config, 0.2)
    assert two["macs"] == one["macs"] and 2 <= two["sops"] / one["sops"] < 2.1
    assert footprint(config, 0.0)["sops"] == 0


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_has_a_plan_without_its_data(name, tmp_path, typed):
    code, out, err = typed("train", name, "--dry-run", "--json", "--set", "scale.device=cpu", "--storage", tmp_path / "runs")
    assert code == 0, err
    plan, bundled = json.loads(out), name.startswith("digits")
    assert plan["parameters"] > 100_000 and plan["memory_bytes"] > 0
    assert (plan["steps_per_epoch"] is not None) == bundled == (not plan["lacks_data"])
    assert not (tmp_path / "runs").exists()


def test_the_commands_say_what_is_missing(tmp_path, typed):
    code, out, _ = typed("train", "image_folder", "--dry-run", "--set", "scale.device=cpu", "--storage", tmp_path)
    assert code == 0 and "still missing    data.root, the folder of image_folder: --data DIR" in out
    assert "by the folder    data.mean, data.std, model.in_channels" in out
    code, out, _ = typed("model", "image_folder")
    assert code == 0 and "auto, counted as: model.in_channels 3" in out and "embed.conv0" in out
    code, out, _ = typed("model", "digits", "--rate", 0.1, "--set", "model.depth=1", "--json")
    assert code == 0 and json.loads(out) == footprint(load_config("digits", {"model.depth": 1}), 0.1)
