"""Exported files: opened by other programs, and run to the same logits."""

import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import timm
import torch
from evaluated import make_run
from safetensors.torch import load_file, save_file
from torch import nn

from statten.config import load_config
from statten.errors import UserError
from statten.evaluation import export as exporting
from statten.evaluation import open_target
from statten.evaluation.export import FORMATS, example, export, nir_lacks
from statten.metrics.inference import evaluating

NEURONS = {"mlp": "plif", "head": "plif"}
ONE = {"model__depth": 1}  # tracing takes its time for every block
CASES = {
    "digits_events": ("digits_events", {}),
    "sdsa_plif": ("digits", {"model__attention": "sdsa", "model__neuron": NEURONS, **ONE}),
    "odd_blocks": ("digits", {"model__timesteps": 3, "model__block_size": 2, **ONE}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    recipe, fields = CASES[request.param]
    run = make_run(folder / "run", recipe, **fields)
    return run, export(run.path, folder / "out", FORMATS), folder / "out"


def test_every_file_gives_the_model_s_logits(case):
    run, report, folder = case
    assert set(report["files"]) == {"model.safetensors", "published.pth.tar", "model.pt2", "model.onnx"}
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


def test_onnx_runs_on_any_batch_in_another_runtime(case):
    run, _, folder = case
    model, session = open_target(run.path).model(), onnxruntime.InferenceSession(folder / "model.onnx")
    x = example(model.config, model.timesteps)
    x = torch.cat([x, 2 * x, 0.5 * x])[:7]  # exported with 3
    with evaluating(model):
        wanted = model(x)
    (found,) = session.run(["logits"], {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5)
    assert wanted.std(-2).max() > 1e-3, "the samples differ"
    graph = onnx.load(folder / "model.onnx").graph
    assert {node.domain for node in graph.node} == {""}, "plain operators alone"


class Unusual(nn.Module):
    """An operator that ONNX has not."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    x = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"--format onnx: torch's exporter has no ONNX for the operator prims\.bessel_j0"):
        exporting._onnx(None, Unusual(), tmp_path, x, torch.special.bessel_j0(x))
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_NEEDS", {"onnx": ("onnx", "no_such_package")})
    with pytest.raises(UserError, match=r"--format onnx: needs no_such_package; install with: pip install 'statten\[onnx\]'"):
        export(tmp_path, tmp_path / "out", ["onnx"])


def test_nir_s_sentence_names_what_this_network_has():
    for name in ("digits", "digits_events", "imagenet_8_512"):
        m, said = load_config(name).model, nir_lacks(load_config(name).model)
        assert "matrix product of two signals" in said and f"over a block of {m.block_size}" in said
        assert ("elementwise product" in said) == ("attn.pool" in said) == m.events
        assert said.count("embed.pools.") == m.pooling.count("1")


@pytest.mark.parametrize(
    ("formats", "sentence"),
    [
        (["nir"], "NIR cannot express this network; it has no operator for the matrix product of two signals"),
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
