"""What a config leaves to the folder of its dataset is found there before the run, and written down as plain values."""

import json
from dataclasses import replace

import numpy as np
import pytest
from formats import write_images
from gratings import write_gratings

from statten.config import config_tree, dump_config, load_config, with_overrides
from statten.data import open_source, resolved
from statten.data.auto import pooling
from statten.data.check import check
from statten.data.events import regrouped
from statten.errors import UserError
from statten.jobs.submit import from_command
from statten.registry import BACKBONES
from statten.training.preflight import preflight


def write_clips(root, frames, size=(30, 20), classes=("left", "right"), each=5):
    """Clips root/CLASS/*.npz with so many frames, [W, H] pixels."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            clip = rng.integers(0, 200, (frames, 2, size[1], size[0]), dtype=np.uint8)
            np.savez(root / name / f"{i}.npz", frames=clip)
    return root


def test_images_say_what_they_are(tmp_path):
    root = write_gratings(tmp_path / "photos", images=60, classes=3, side=50)
    config = load_config("image_folder", {"data.root": str(root)})
    assert config.auto and config_tree(config)["model"]["num_classes"] == "auto"
    found = resolved(config)
    model = found.model
    assert found.auto == ()
    assert (model.num_classes, model.in_channels, model.image_size, model.pooling) == (3, 3, 48, "0011")
    report = check("image_folder", root)
    assert found.data.mean == pytest.approx(report["mean"], abs=0.02) and found.data.std == pytest.approx(
        report["std"], abs=0.02
    )
    assert resolved(config) == found, "the same folder gives the same values"
    assert load_config(_file(tmp_path, dump_config(found))) == found
    assert resolved(found) == found
    assert preflight(with_overrides(found, {"train.batch_size": 8})).parameters > 0


def test_test_images_are_not_looked_at(tmp_path):
    root = write_images(tmp_path, {"train": 4, "test": 4}, ["a", "b"])
    config = load_config("image_folder", {"data.root": str(root)})
    found = resolved(config)
    for path in (root / "test").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    assert resolved(config) == found
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="auto needs a sample that can be read, but none can"):
        resolved(config)


def test_what_the_user_says_stays(tmp_path):
    root = write_gratings(tmp_path / "photos", images=30, classes=3, side=32)
    config = load_config("image_folder", {"data.root": str(root), "model.image_size": 64, "data.mean": [0.5, 0.5, 0.5]})
    found = resolved(config)
    assert (found.model.image_size, found.data.mean, found.model.pooling) == (64, (0.5, 0.5, 0.5), "0111")
    later = with_overrides(config, {"train.epochs": 3})
    assert later.auto == config.auto, "an override elsewhere leaves auto"
    assert load_config(_file(tmp_path, dump_config(config))) == config


def test_what_the_backbone_lacks_stays_at_its_default(tmp_path, monkeypatch):
    root = write_gratings(tmp_path / "photos", images=30, side=64)
    config = load_config("image_folder", {"data.root": str(root), "model.backbone": "spikformer"})
    assert resolved(config).model.pooling == "0111"
    without = replace(BACKBONES.line("spikformer"), fields=("attention_scale",))
    monkeypatch.setitem(BACKBONES.lines, "spikformer", without)
    assert resolved(config).model.pooling == "0011"


def _file(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_pooling_leaves_eight_tokens_on_a_side():
    assert {size: pooling(size) for size in (8, 16, 28, 32, 64, 128, 224, 512)} == {
        8: "0000", 16: "0001", 28: "0001", 32: "0011", 64: "0111", 128: "1111", 224: "1111", 512: "1111",
    }  # fmt: skip


def test_clips_say_what_they_are_and_are_read_at_any_t(tmp_path):
    root = write_clips(tmp_path / "clips", frames=10)
    config = load_config("event_folder", {"data.root": str(root)})
    found = resolved(config)
    assert (found.model.num_classes, found.model.in_channels, found.model.image_size) == (2, 2, 20)
    whole = np.load(root / "left" / "0.npz")["frames"].astype(np.int64)
    for frames in (10, 4, 1):
        source = open_source(with_overrides(found, {"model.timesteps": frames, "model.block_size": 1}))
        clip = source.read(0).numpy()
        assert clip.shape == (frames, 2, 20, 30) and (clip.sum(0) == whole.sum(0)).all(), "no event is lost"
    with pytest.raises(UserError, match=r"model\.timesteps: must be at most 10, the frames of the clips in .*, but got 11"):
        open_source(with_overrides(found, {"model.timesteps": 11}))
    with pytest.raises(UserError, match=r"must be 10, .*; use model\.timesteps=10, or data\.regroup=sum"):
        open_source(with_overrides(found, {"data.regroup": "none"}))


def test_frames_are_grouped_evenly():
    clip = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    assert regrouped(clip, 4, "sum")[:, 0, 0, 0].tolist() == [0 + 1, 2 + 3 + 4, 5 + 6, 7 + 8 + 9]
    assert regrouped(clip, 4, "subsample")[:, 0, 0, 0].tolist() == [1, 3, 6, 8]
    assert (regrouped(np.full((4, 2, 1, 1), 200, np.uint8), 1, "sum") == 800).all(), "a sum does not wrap around"


def test_an_unresolved_config_is_refused(tmp_path):
    root = write_gratings(tmp_path / "photos", images=30)
    with pytest.raises(UserError, match=r"model\.num_classes: says auto"):
        preflight(load_config("image_folder", {"data.root": str(root), "train.batch_size": 4}))


def test_a_sweep_finds_them_once_for_all_trials(tmp_path, typed, monkeypatch):
    root = write_gratings(tmp_path / "photos", images=80, classes=4)
    (tmp_path / "space.yaml").write_text("model.embed_dim: {choices: [8, 16]}\nmodel.num_heads: {constant: 2}\n")
    monkeypatch.chdir(tmp_path)
    line = ["tune", "image_folder", "--data", "photos", "--space", "space.yaml", "--dry-run", "--json"]
    code, out, err = typed(*line, "--batch-size", 4, "--epochs", 3, "--lr", "1e-2", "--trials", 2)
    assert code == 0, err
    plan = json.loads(out)
    assert plan["epochs"] == 6 and plan["config"]["data"]["root"] == str(root)
    assert plan["config"]["model"]["num_classes"] == 4 and plan["config"]["model"]["image_size"] == 32
    assert (plan["config"]["train"]["batch_size"], plan["config"]["train"]["lr"]) == (4, 0.01)


def test_a_submitted_command_names_the_folder_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", "image_folder", "--data", "photos", "--epochs", "3"]
    sent = from_command(
        line, "train", {"recipe": "image_folder", "data": "photos", "epochs": 3, "storage": None, "overrides": []}
    )
    assert sent.entrypoint.endswith(f"--data {tmp_path}/photos") and "data.root" not in sent.entrypoint
