"""Exported files: opened by other programs, and run to the same logits."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from evaluated import make_run
from formats import write_images
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

from statten import load_model
from statten.config import load_config
from statten.errors import UserError
from statten.evaluation import evaluate, open_target
from statten.evaluation import export as exporting
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


# --- what timm and the Hugging Face Hub read


OPENED = """
import json, sys
import numpy as np
{lines}
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
transform = create_transform(**resolve_model_data_config(model))
x = transform(Image.fromarray(np.load({image!r})))
with torch.inference_mode():
    logits = model.eval()(x[None])
np.savez({result!r}, x=x.numpy(), logits=logits.numpy())
fewer = timm.create_model({place!r}, pretrained=True, num_classes=7)
print(json.dumps([model.pretrained_cfg["label_names"], fewer.head.out_features]))
"""


def test_timm_opens_a_folder_by_the_two_lines_in_a_fresh_process(tmp_path, typed):
    """Weights, names of the classes, and the transform of validation."""
    root = write_images(tmp_path / "images", {"train": 8, "val": 5}, ["cat", "dog", "fox"])
    fields = {"model__in_channels": 3, "model__num_classes": 3, "model__image_size": 16, "train__batch_size": 8, **ONE}
    read = {
        "data__crop_pct": 0.9,
        "data__interpolation": "bicubic",
        "data__mean": (0.5, 0.4, 0.3),
        "data__std": (0.2, 0.3, 0.4),
    }
    run = make_run(tmp_path / "run", data__name="image_folder", data__root=str(root), **fields, **read)
    code, out, err = typed("export", run.path, "--output", tmp_path / "out", "--format", "safetensors")
    assert code == 0, err
    lines = [line.strip() for line in out.splitlines()[-2:]]
    assert lines[0] == "import statten, timm" and "pretrained=True" in lines[1]
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    place = f"local-dir:{tmp_path / 'out'}"
    code = OPENED.format(
        lines="\n".join(lines), image=str(tmp_path / "image.npy"), result=str(tmp_path / "result.npz"), place=place
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["cat", "dog", "fox"], 7]
    model = load_model(run.path)
    x = model.transform(image)
    with np.load(tmp_path / "result.npz") as found, torch.inference_mode():
        assert np.array_equal(found["x"], x.numpy())
        assert np.allclose(found["logits"], model(x[None]).numpy(), atol=1e-6)
    assert load_model(tmp_path / "out").classes == ["cat", "dog", "fox"]
    assert torch.equal(load_model(tmp_path / "out").transform(image), x)


def test_an_export_whose_run_and_data_are_gone_predicts(tmp_path):
    run = make_run(tmp_path / "run", "digits_events", model__timesteps=2, model__block_size=1, **ONE)
    clip = np.random.default_rng(0).integers(0, 4, (2, 2, 16, 16))
    wanted = load_model(run).predict(clip[:, :, : run.config.model.image_size, : run.config.model.image_size])
    export(run.path, tmp_path / "out", ["safetensors"])
    shutil.rmtree(run.path)
    found = load_model(tmp_path / "out").predict(clip[:, :, : run.config.model.image_size, : run.config.model.image_size])
    assert np.array_equal(found.probabilities, wanted.probabilities)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["pretrained_cfg"]["mean"] == [0.0, 0.0] and about["pretrained_cfg"]["input_size"][0] == 2
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).config.events


def test_digits_keep_their_own_normalisation(tmp_path):
    export(make_run(tmp_path / "run", **ONE).path, tmp_path / "out", ["safetensors"])
    about = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert (about["mean"], about["std"], about["input_size"]) == ([0.305], [0.376], [1, 8, 8])


def test_the_model_card_is_read_by_the_hub_and_says_what_was_measured(tmp_path):
    run = make_run(tmp_path / "run", **ONE)
    report = evaluate(run.path)
    export(run.path, tmp_path / "out", ["safetensors"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"validation top-1 (%)": 10.0, "test top-1 (%)": round(report["top1"], 4)}
    assert f"| test | {report['top1']:.2f} | {report['loss']:.4f} | {report['energy']['total']['pj'] / 1e6:.4g} |" in card.text
    assert 'statten.load_model("DIR")' in card.text and "0, 1, 2, 3" in card.text
    other = export(run.path, tmp_path / "other", ["safetensors"], {"model.timesteps": 2, "model.block_size": 1})
    assert other["open"][1] == f'model = timm.create_model("local-dir:{tmp_path / "other"}", pretrained=True)'
    text = (tmp_path / "other" / "README.md").read_text()
    assert "measured" not in text and "model-index" not in text, "these numbers are of other timesteps"


def test_a_name_alone_has_no_weights():
    with pytest.raises(UserError, match="no pretrained weights are bundled"):
        timm.create_model("statten_2_256", pretrained=True)
    made = timm.create_model("statten_2_256", in_chans=1, img_size=16, num_classes=4)
    assert made.pretrained_cfg["input_size"] == (1, 16, 16) and made.config.num_classes == 4
