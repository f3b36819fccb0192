"""From a folder of pictures to a model in another process, with every class called by its name on the way."""

import json
import subprocess
import sys

import numpy as np
import pytest
from evaluated import SMALL
from PIL import Image

import statten
from statten.cluster.session import ray_cluster

COLOURS = {"Zinnia": (220, 40, 60), "aster": (80, 60, 220), "oxeye daisy": (230, 230, 210)}
"""Names that are sorted otherwise than people, or a dictionary, would."""
FIELDS = {
    **SMALL, "data.name": "image_folder", "model.in_channels": 3, "model.num_classes": 3, "model.image_size": 16,
    "model.timesteps": 2, "train.batch_size": 16, "train.epochs": 3, "train.lr": 3e-3, "data.validation": 0.2,
}  # fmt: skip


def paint(path, colour, draw) -> None:
    """A noisy picture of one colour."""
    pixels = np.array(colour) + draw.normal(0, 25, (20, 22, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.mark.slow
def test_from_pictures_to_a_model_elsewhere(work):
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (work / "flowers" / name).mkdir(parents=True)
        (work / "new").mkdir(exist_ok=True)
        for i in range(100):
            paint(work / "flowers" / name / f"{i:03d}.png", colour, draw)
        for i in range(3):
            paint(work / "new" / f"{name}-{i}.png", colour, draw)
    with ray_cluster(None):
        config = statten.load_config("digits", {**FIELDS, "data.root": "flowers"})
        first = statten.train(config, name="first")
        sweep = statten.tune(config, {"model.embed_dim": {"choices": [16, 32]}}, "sizes", trials=2)
        promoted = statten.promote(sweep, {"train.epochs": 5}, "best")
    report = statten.evaluate("best")
    assert report["top1"] > 95 and report["class_names"] == sorted(COLOURS)
    assert {row["name"]: row["samples"] for row in report["classes"]} == dict.fromkeys(COLOURS, 20)
    for target in (first, "sizes", promoted):
        found = statten.load_model(target).predict("new")
        assert len(found) == 9 and sum(answer.name in answer.source for answer in found) >= 8, found
    run = subprocess.run(
        [sys.executable, "-m", "statten", "export", "best", "--output", "out", "--format", "safetensors", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = json.loads(run.stdout)["open"]
    code = "\n".join([
        *lines,
        "import torch, pathlib; from PIL import Image; from timm.data import create_transform, resolve_model_data_config",
        "transform, names = create_transform(**resolve_model_data_config(model)), model.pretrained_cfg['label_names']",
        "for path in pathlib.Path('new').iterdir():",
        "    with torch.inference_mode():",
        "        print(path.name, '=', names[int(model.eval()(transform(Image.open(path))[None]).argmax())])",
    ])  # fmt: skip
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    here = {answer.source.removeprefix("new/"): answer.name for answer in found}
    assert dict(line.split(" = ") for line in elsewhere) == here and len(here) == 9
