"""docs/imagenet.md, "From a sweep to an ImageNet number": its job files, in ImageNet's layout, from sweep to report."""

import json
from pathlib import Path

import pytest
import torch
from formats import write_images
from PIL import Image
from torch import nn
from torchvision import transforms

from statten.evaluation import open_target
from statten.metrics.energy import check_file
from statten.metrics.inference import evaluating
from statten.search.sweep import Sweep
from statten.storage.run import Run

ROOT = Path(__file__).parents[2]
SPACE = """\
model.timesteps:  {choices: [1, 2]}
model.block_size: {divisors_of: model.timesteps}
model.depth:      {int: [1, 1]}
model.embed_dim:  {int: [32, 64], step: 32}
"""
SMALL = {
    "model.num_classes": 3, "model.image_size": 32, "train.batch_size": 4, "train.eval_batch_size": 4, "data.workers": 0,
    "scale.device": "cpu", "scale.workers": 1, "train.warmup_epochs": 1, "train.cooldown_epochs": 0,
}  # fmt: skip


def settings(**fields) -> list[str]:
    return [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.slow
def test_from_a_sweep_to_an_imagenet_number(ray, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where data/imagenet, search_spaces/ and runs/ of the job files are
    write_images(tmp_path / "data" / "imagenet", {"train": 12, "val": 5})
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "statten.yaml").write_text(SPACE)
    jobs = ROOT / "jobs"

    swept = settings(**SMALL, **{"search.trials": 2, "train.epochs": 2, "data.fraction": 0.5})
    done("run", jobs / "imagenet_sweep.yaml", *swept)
    sweep = Sweep.open(tmp_path / "runs" / "imagenet-sweep")
    best = sweep.trial(sweep.best_trial().number)
    assert len(list(sweep.rows())) == 2 and best.config.data.fraction == 0.5

    promoted = settings(**{"train.epochs": 3, "train.warmup_epochs": 0, "train.cooldown_epochs": 0, "scale.device": "cpu"})
    done("run", jobs / "imagenet_promote.yaml", *promoted, "--set", "scale.workers=1")
    run = Run.open(tmp_path / "runs" / "imagenet-promoted")
    assert run.state == "finished" and len(run.metrics()) == 3 and run.config.data.fraction == 1
    assert Path(run.info["origin"]["checkpoint"]).samefile(best.best_checkpoint())

    on_cpu = settings(**{"scale.device": "cpu", "scale.workers": 1})
    text = done("run", jobs / "imagenet_evaluate.yaml", *on_cpu)
    report = json.loads((run.path / "evaluation.json").read_text())
    assert f"top-1 {report['top1']:.2f} %" in text and report["samples"] == 15 and report["data"] == "imagenet"
    assert report["loss"] == pytest.approx(plain_loss(run, resize=33, size=32), rel=1e-5)  # 32 / 0.95 pixels
    energy = check_file(Path(report["folder"]) / "energy.json")
    assert energy["samples"] == 15

    done("evaluate", "imagenet-promoted", "--large", *settings(**{"scale.device": "cpu"}))
    folders = [folder for folder in (run.path / "evaluations").iterdir() if not folder.samefile(report["folder"])]
    large = json.loads((folders[0] / "report.json").read_text())
    assert len(folders) == 1 and large["samples"] == 15
    assert large["loss"] == pytest.approx(plain_loss(run, resize=320, size=288, large=True), rel=1e-5)
    assert large["energy"]["total"]["pj"] > energy["total"]["pj"]


def plain_loss(run: Run, resize: int, size: int, large: bool = False) -> float:
    """Mean cross-entropy over val/ by torchvision's transforms, image by image."""
    data = run.config.data
    mode = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(resize, mode), transforms.CenterCrop(size), transforms.ToTensor()]
    plain = transforms.Compose([*steps, transforms.Normalize(data.mean, data.std)])
    model, losses = open_target(run.path, large=large).model(), []
    with evaluating(model):
        for label, folder in enumerate(sorted((Path(data.root) / "val").iterdir())):
            for file in folder.iterdir():
                logits = model(plain(Image.open(file).convert("RGB"))[None])
                losses.append(nn.functional.cross_entropy(logits, torch.tensor([label])).item())
    return sum(losses) / len(losses)
