"""Exported files: opened by other programs, and run to the same logits."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from evaluated import make_run
from safetensors.torch import load_file, save_file

from statten.config import UserError, load_config
from statten.evaluation import open_target
from statten.evaluation.export import example, export
from statten.metrics import evaluating

NEURONS = {"mlp": "plif", "head": "plif"}
CASES = {
    "digits": ("digits", {}),
    "digits_events": ("digits_events", {}),
    "sdsa_plif": ("digits", {"model__attention": "sdsa", "model__neuron": NEURONS}),
    "odd_blocks": ("digits", {"model__timesteps": 3, "model__block_size": 2}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    recipe, fields = CASES[request.param]
    run = make_run(folder / "run", recipe, **fields)
    return run, export(run.path, folder / "out"), folder / "out"


def test_every_file_gives_the_model_s_logits(case):
    run, report, folder = case
    assert set(report["files"]) == {"model.safetensors", "published.pth.tar", "model.pt2"}
    model = open_target(run.path).model()
    x = example(model.config, model.timesteps)
    with evaluating(model):
        wanted = model(x)
    about = json.loads((folder / "config.json").read_text())
    opened = timm.create_model(about["architecture"], checkpoint_path=str(folder / "model.safetensors"), **about["model_args"])
    with evaluating(opened):
        assert torch.equal(opened(x), wanted)
    assert load_config(folder / "config.yaml").model == model.config
    published = open_target(folder / "published.pth.tar", data=run.config.data.name)
    assert published.config.model == model.config
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in published.weights().items())


def test_the_exported_network_runs_without_this_package(case, tmp_path):
    run, _, folder = case
    model = open_target(run.path).model()
    x = example(model.config, model.timesteps)[:2]
    with evaluating(model):
        wanted = model(x)
    save_file({"x": x.contiguous()}, tmp_path / "x.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        f"x = load_file({str(tmp_path / 'x.safetensors')!r})['x']\n"
        f"y = torch.export.load({str(folder / 'model.pt2')!r}).module()(x)\n"
        "assert not [m for m in sys.modules if m.startswith('statten')]\n"
        f"save_file({{'y': y.contiguous()}}, {str(tmp_path / 'y.safetensors')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
    torch.testing.assert_close(load_file(tmp_path / "y.safetensors")["y"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("formats", "sentence"),
    [
        (["nir"], "NIR cannot express this network"),
        (["onnx"], "ONNX is not written: torch's exporter needs the packages onnx and onnxscript"),
        (["tensorflow"], "'tensorflow' is no format; choose from"),
        (["publised"], "did you mean published?"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, formats, sentence):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        export(run.path, tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UserError, match="out: exists already"):
        export(run.path, tmp_path / "out", ["safetensors"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
