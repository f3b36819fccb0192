"""`evaluate`: the same counts whatever the batches and chunks; the report follows from the counts; published files."""

import json
import re
from pathlib import Path

import pytest
import torch
from evaluated import make_run, published_file
from formats import write_images
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import transforms

from statten.data import CorruptSample, make_test_loader, split_document
from statten.errors import UserError
from statten.evaluation import evaluate, measure_target, open_target
from statten.evaluation import measure as measuring
from statten.evaluation.anytime import anytime
from statten.evaluation.gallery import MISTAKES
from statten.evaluation.grid import grid
from statten.evaluation.measure import chunk_path, compact, load, measure, merge
from statten.evaluation.report import build, calibration, classes, confusion, energy_unit, headline, layers, warnings
from statten.files import write_json
from statten.metrics.energy import Conventions, check_file
from statten.metrics.inference import evaluating

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, name) for name in ("digits", "digits_events")}


def same(a, b) -> None:
    assert torch.equal(a.index, b.index) and torch.equal(a.records, b.records)
    assert set(a.sums) == set(b.sums)
    for name in a.sums:
        assert torch.equal(a.sums[name], b.sums[name]), name


@pytest.mark.parametrize("name", ["digits", "digits_events"])
def test_batches_and_chunks_do_not_change_a_count(runs, name):
    found = []
    for batch, of in ((7, 1), (64, 1), (359, 1), (64, 2)):
        target = open_target(runs[name].path, {"train.eval_batch_size": batch})
        model = target.model()
        found.append(merge([measure(model, make_test_loader(target.config, i, of), target.config) for i in range(of)]))
    assert found[0].samples == 359 and found[0].sums["embed.0"].sum() > 0
    for other in found[1:]:
        same(found[0], other)


def test_float64_gives_the_published_logits_and_the_same_counts_in_any_batch(runs):
    expected = load_file(GOLDEN / "reference_checkpoint.expected.safetensors")
    for name in ("reference_checkpoint", "reference_checkpoint_ddp"):
        model = open_target(GOLDEN / f"{name}.pth.tar", data="digits", ema=False, exact=True).model()
        with evaluating(model):
            logits = model(expected["x"].double())
        assert (logits - expected["eval.logits"]).abs().max() <= 1e-9 * expected["eval.logits"].abs().max()
    found = []
    for batch in (7, 359):
        target = open_target(runs["digits"].path, {"train.eval_batch_size": batch}, exact=True)
        found.append(measure(target.model(), make_test_loader(target.config), target.config))
    assert torch.equal(found[0].column("prediction"), found[1].column("prediction"))
    assert all(torch.equal(found[0].sums[name], found[1].sums[name]) for name in found[0].sums)
    torch.testing.assert_close(found[0].records, found[1].records, rtol=1e-12, atol=1e-12)


def test_workers_of_an_evaluation_share_a_gpu_as_trials_did(runs):
    target = open_target(runs["digits"].path, {"scale.gpus_per_worker": 0.25, "scale.device": "cuda"})
    config = target.evaluated_on(3)
    plan = target.preflight(config, {"CPU": 8.0, "GPU": 1.0})
    assert plan.world_size == 3 and plan.resources() == {"CPU": 2.0, "GPU": 0.25}
    with pytest.raises(UserError, match=r"cuda needs 0.25 of a GPU for each of 5 workers, but there are 1; .* scale.workers=4"):
        target.preflight(target.evaluated_on(5), {"CPU": 8.0, "GPU": 1.0})
    whole = open_target(runs["digits"].path, {"scale.device": "cuda"})
    with pytest.raises(UserError, match=r"cuda needs a GPU for each of 2 workers, but there are 1; .* scale.workers=1"):
        whole.preflight(whole.evaluated_on(2), {"CPU": 8.0, "GPU": 1.0})


@pytest.mark.parametrize("name", ["digits", "digits_events"])
def test_counts_are_those_of_the_outputs(runs, name):
    """Against the plain outputs of every module, kept whole and summed afterwards."""
    target = open_target(runs[name].path)
    model, loader = target.model(), make_test_loader(target.config)
    kept, inputs = {}, {}
    for layer, module in model.spiking_layers().items():
        module.register_forward_hook(lambda _m, _i, out, layer=layer: kept.setdefault(layer, []).append(out))
    proj = model.blocks[0].attn.proj
    proj.register_forward_pre_hook(lambda _m, args: inputs.setdefault("mixed", []).append(args[0]))
    model.embed.stages[3].register_forward_pre_hook(lambda _m, args: inputs.setdefault("pooled", []).append(args[0]))
    with evaluating(model):
        for x, _ in loader:
            model(x)
    counted = measure(target.model(), loader, target.config)
    assert len(kept) == 12
    for layer, outputs in kept.items():
        whole = torch.cat(outputs, 1)
        assert torch.equal(whole.sum(1), counted.sums[layer]), layer
    mixed = torch.cat([x.unflatten(0, (target.config.model.timesteps, -1)) for x in inputs["mixed"]], 1)
    assert torch.equal(mixed.sum(1), counted.sums["blocks.0.attn.mixed"])
    if name == "digits_events":
        assert mixed.max() == 2
        nonzero = counted.sums["blocks.0.attn.mixed_nonzero"]
        assert torch.equal((mixed != 0).flatten(1).sum(1).double(), nonzero)


def test_a_stopped_evaluation_goes_on_where_it_was(runs, tmp_path, monkeypatch):
    from statten import evaluation

    monkeypatch.setattr(measuring, "CHUNK", 100)
    target, real, seen = open_target(runs["digits"].path), measuring.measure, []

    def stops(model, loader, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(loader.samples)
        return real(model, loader, *rest)

    monkeypatch.setattr(measuring, "measure", stops)
    with pytest.raises(KeyboardInterrupt):
        measure_target(target, tmp_path)
    scratch = next(tmp_path.glob("chunks-*"))
    kept = chunk_path(scratch, 0, 4)
    assert kept.is_file() and load(kept).samples == 90
    monkeypatch.setattr(measuring, "measure", lambda *args: seen.append(1) or real(*args))
    found = measure_target(target, tmp_path)
    assert seen.count(1) == 2, "two chunks of four were there"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(measuring, "CHUNK", 8192)
    same(found, evaluation.measure_target(target, tmp_path))


def test_the_report_follows_from_the_records(runs):
    target = open_target(runs["digits"].path)
    found = measure_target(target, runs["digits"].path / "scratch")
    model = target.model()
    with evaluating(model):
        batches = [(model(x), y) for x, y in make_test_loader(target.config)]
    logits, y = torch.cat([a for a, _ in batches]).double(), torch.cat([b for _, b in batches])
    report = build(target, found, 1.0, 1, Conventions())
    assert report["top1"] == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
    assert report["top5"] == pytest.approx(100 * (logits.topk(5).indices == y[:, None]).any(1).double().mean().item())
    assert report["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    matrix = confusion(found, 10)
    for i in range(10):
        assert torch.equal(matrix[i], torch.bincount(logits.argmax(1)[y == i], minlength=10))
    assert sum(row["samples"] * row["top1"] / 100 for row in classes(found, 10)) == pytest.approx(report["top1"] * 3.59)
    confidence = logits.softmax(1).amax(1)
    gap, right = 0.0, (logits.argmax(1) == y).double()
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        if inside.any():
            gap += inside.double().mean().item() * abs((right[inside].mean() - confidence[inside].mean()).item())
    assert calibration(found)["ece"] == pytest.approx(gap, rel=1e-9)


def test_training_s_batch_size_is_no_obstacle(runs):
    found = evaluate(runs["digits"].path, {"train.batch_size": 5000, "train.eval_batch_size": 64})
    assert found["top1"] == evaluate(runs["digits"].path)["top1"]


def test_dead_and_saturated_neurons_are_named(runs):
    target = open_target(runs["digits"].path)
    model = target.model()
    with torch.no_grad():
        model.embed.stages[1][1].weight.zero_()
        model.embed.stages[1][1].bias.fill_(-1.0)  # never reaches the threshold
        model.blocks[0].attn.qkv[1].weight[[3, 40]] = 0  # channel 3 of q, channel 8 of k
        model.blocks[0].attn.qkv[1].bias[3], model.blocks[0].attn.qkv[1].bias[40] = -1.0, 9.0
        model.blocks[0].mlp.fc1[1].weight.zero_()
        model.blocks[0].mlp.fc1[1].bias.fill_(9.0)  # always does
    found = measure(model, make_test_loader(target.config), target.config)
    rows = {row["layer"]: row for row in layers(found, target.config.model)}
    assert rows["embed.1"]["state"] == "dead" and rows["embed.1"]["rate"] == 0
    assert rows["blocks.0.mlp.fc2"]["state"] == "saturated" and rows["blocks.0.mlp.fc2"]["rate"] == 1
    assert rows["embed.0"]["state"] == "alive"
    assert 3 in rows["blocks.0.attn.q"]["dead_channels"] and rows["blocks.0.attn.k"]["saturated_channels"] == [8]
    said = warnings({"layers": list(rows.values())})
    assert any(line.startswith("embed.1 is dead: all of its") for line in said)
    assert any(line.startswith("blocks.0.mlp.fc2 is saturated") for line in said)
    assert "blocks.0.attn.k: channels saturated at every position (1): 8" in said


def test_files_and_another_evaluation_beside_them(runs):
    run = runs["digits"]
    report = evaluate(run.path)
    folder = Path(report["folder"])
    names = {"events" if p.name.startswith("events.out.tfevents.") else p.name for p in folder.iterdir()}
    assert names == {
        "report.json", "report.md", "report.html", "energy.json", "samples.safetensors", "events", "rates.png",
        "energy.png", "confusion.png", "calibration.png",
    }  # fmt: skip
    assert json.loads((folder / "report.json").read_text())["top1"] == report["top1"]
    assert "| embed.conv0 | conv3x3 |" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.count('<svg class="picture"') == 4 and "plotly.js v" not in page and len(page) < 500_000
    assert all(f"<td>{op}</td>" in page for op in ("embed.conv0", "blocks.0.attn.kv", "head"))
    assert not re.search(r"""<(script|link|img|image)[^>]*(src|href)=(?!"data:)""", page), "nothing is fetched"
    unit = energy_unit(report["energy"])
    assert unit.text(report["energy"]["total"]["pj"]) in page and f"{report['top1']:.2f} %" in page
    assert set(re.findall(r"\d (.J)\b(?! each)", page)) == {unit.name}, "one unit of energy"
    shown = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)">', page)
    assert len(shown) == len(report["mistakes"]) == MISTAKES and shown[0].startswith(
        f"sample {report['mistakes'][0]['index']}: "
    )
    assert json.loads((run.path / "evaluation.json").read_text())["top1"] == report["top1"]
    before = (folder / "report.json").read_bytes()
    other = evaluate(run.path, {"model.timesteps": 2, "model.block_size": 1})
    assert other["folder"] != report["folder"] and other["timesteps"] == 2
    assert (folder / "report.json").read_bytes() == before
    assert Path(evaluate(run.path)["folder"]) == folder, "the same evaluation has the same place"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1, "and one event file"


def test_a_published_checkpoint_is_evaluated_as_our_own(runs, tmp_path):
    run = runs["digits"]
    ours = open_target(run.path)
    averaged = {k: v + 0.01 if v.is_floating_point() else v for k, v in ours.weights().items()}
    from statten.models.published import to_published

    ddp = {f"module.{k}": v for k, v in to_published(averaged).items()}
    path = published_file(tmp_path / "digits.pth.tar", ours.config, ours.weights(), state_dict_ema=ddp)
    own = evaluate(run.path)
    trained = evaluate(path, data="digits", ema=False, storage=tmp_path)
    assert [trained[k] for k in ("top1", "top5", "loss", "firing_rates")] == [
        own[k] for k in ("top1", "top5", "loss", "firing_rates")
    ]
    assert trained["weights"] == "trained" and trained["folder"].startswith(str(tmp_path / "evaluations" / "digits-digits-T4"))
    ema = evaluate(path, data="digits", storage=tmp_path)
    assert ema["weights"] == "averaged (EMA)" and ema["loss"] != trained["loss"]
    told = {row["argument"]: row for row in ema["imported"]}
    assert told["dim"]["field"] == "model.embed_dim" and told["lr"]["field"] == "train.lr"
    assert told["workers"]["field"] is None and told["workers"]["reason"]


BAD = [
    ({"state_dict": {}}, "missing"),
    ({"args": {"dim": 32}}, "args must be the trainer's arguments, but are of type dict"),
    ({"state_dict": [1]}, "the weights must be a mapping of names to tensors"),
    ({"state_dict": {"head.weight": 3}}, "head.weight: not a tensor of finite numbers"),
    ({"state_dict": {"head.weight": torch.tensor([float("nan")])}}, "head.weight: not a tensor of finite numbers"),
    ({"state_dict": {"extra.weight": torch.ones(1)}}, "no place for extra.weight"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_tampered_file_is_refused(runs, tmp_path, changes, sentence):
    ours = open_target(runs["digits"].path)
    state = {k: v for k, v in ours.weights().items() if not k.startswith("blocks")}
    weights = changes.pop("state_dict", None)
    path = published_file(
        tmp_path / "bad.pth.tar", ours.config, state, **changes, **({"state_dict": weights} if weights else {})
    )
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate(path, data="digits", storage=tmp_path / "storage")
    assert all(str(path) in problem for problem in caught.value.problems)
    assert not (tmp_path / "storage").exists()


def test_averaged_weights_of_our_own_and_damage(tmp_path):
    run = make_run(tmp_path / "run")
    checkpoint = run.best_checkpoint()
    weights = {k: v + 0.01 if v.is_floating_point() else v for k, v in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "ema.safetensors")
    assert open_target(run.path).averaged and not open_target(run.path, ema=False).averaged
    assert torch.equal(open_target(run.path).weights()["head.weight"], weights["head.weight"])
    assert not torch.equal(open_target(run.path, ema=False).weights()["head.weight"], weights["head.weight"])
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 0xFF
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors does not match its digest"):
        evaluate(run.path)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"not a usable checkpoint: model\.safetensors is missing"):
        evaluate(run.path, ema=False)
    assert not (run.path / "evaluations").exists()


def test_damage_inside_the_archive_is_found(tmp_path):
    content = bytearray((GOLDEN / "reference_checkpoint.pth.tar").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.pth.tar").write_bytes(content)
    with pytest.raises(UserError, match="does not match its check sum"):
        open_target(tmp_path / "flipped.pth.tar")


def image_run(path, root, parts=None, **fields):
    """A run on small image files below `root`, with what it divides on record."""
    write_images(root, parts or {"train": 8, "val": 5})
    small = {
        "data__name": "image_folder", "data__root": str(root), "model__in_channels": 3, "model__num_classes": 3,
        "model__image_size": 32, "model__pooling": "0011", "train__batch_size": 8,
    }  # fmt: skip
    run = make_run(path, **{**small, **fields})
    write_json(run.path / "splits.json", split_document(run.config))
    return run


def test_a_file_that_cannot_be_read_is_left_out_of_the_records_too(tmp_path):
    run = image_run(tmp_path / "run", tmp_path / "images", data__skip_corrupt=True)
    whole = evaluate(run.path, {"train.eval_batch_size": 4})
    kept = load(Path(whole["folder"]) / "samples.safetensors")
    assert (whole["samples"], whole["left_out"]) == (15, 0)
    broken = tmp_path / "images" / "val" / "n01443537" / "n01443537_1.JPEG"
    at = int((kept.column("label") == 1).nonzero()[1])
    broken.write_bytes(broken.read_bytes()[:100])
    for workers in (0, 1):  # read here, and in a loader process
        target = open_target(run.path, {"train.eval_batch_size": 4, "data.workers": workers})
        found = measure_target(target, tmp_path / "folder")
        assert (found.samples, found.left_out) == (14, 1)
        there = torch.arange(15) != at
        assert torch.equal(found.index, kept.index[there]) and torch.equal(found.records, kept.records[there])
    other = evaluate(run.path, {"model.block_size": 1})
    assert (other["samples"], other["left_out"]) == (14, 1) and "1 more could not be read" in headline(other)[0]
    with pytest.raises(CorruptSample, match=r"n01443537_1\.JPEG: cannot be read"):
        evaluate(run.path, {"data.skip_corrupt": False})


def test_a_run_is_refused_on_other_data_than_it_divided(tmp_path):
    run = image_run(tmp_path / "run", tmp_path / "images")
    assert evaluate(run.path)["samples"] == 15
    extra = tmp_path / "images" / "train" / "n01440764"
    (extra / "more.JPEG").write_bytes((extra / "n01440764_0.JPEG").read_bytes())
    for asked in (evaluate, anytime, grid):
        with pytest.raises(UserError, match=r"has other samples than when the run began \(40 now, 39 then\)"):
            asked(run.path)


def test_a_sweep_s_trial_is_refused_on_other_data_than_the_sweep_divided(tmp_path):
    run = image_run(tmp_path / "sweep" / "trials" / "0000", tmp_path / "images")
    (run.path / "splits.json").rename(tmp_path / "sweep" / "splits.json")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / "sweep" / "config.yaml").write_text((run.path / "config.yaml").read_text())
    target = open_target(run.path)
    target.preflight(target.evaluated_on(1))
    extra = tmp_path / "images" / "train" / "n01440764"
    (extra / "more.JPEG").write_bytes((extra / "n01440764_0.JPEG").read_bytes())
    with pytest.raises(UserError, match=r"has other samples than when the run began \(40 now, 39 then\)"):
        target.preflight(target.evaluated_on(1))
    other = open_target(run.path, {"data.root": str(tmp_path / "images")})
    other.preflight(other.evaluated_on(1))  # named anew: the user's own choice


@pytest.mark.parametrize("data", [None, "image_folder"])
def test_large_is_the_centre_288_of_320_pixels(tmp_path, data):
    run = image_run(tmp_path / "run", tmp_path / "images", {"train": 8, "val": 2}, model__pooling="1111")
    report = evaluate(run.path, data=data, large=True)
    folder = tmp_path / "images" / "val"
    resize = transforms.Resize(320, transforms.InterpolationMode.BILINEAR)
    normal = transforms.Normalize(run.config.data.mean, run.config.data.std)
    plain = transforms.Compose([resize, transforms.CenterCrop(288), transforms.ToTensor(), normal])
    files = sorted(folder.rglob("*.JPEG"), key=lambda path: (path.parent.name, path.name))
    model = open_target(run.path, large=True).model()
    assert model.config.image_size == 288
    with evaluating(model):
        logits = model(torch.stack([plain(Image.open(file).convert("RGB")) for file in files])).double()
    y = torch.tensor([i // 2 for i in range(6)])
    assert report["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert report["changed"] | {"data.name": "image_folder"} == {
        "data.name": "image_folder", "model.image_size": 288, "data.crop_pct": 0.9
    }  # fmt: skip


def test_a_large_model_keeps_the_counts_of_channels(runs, tmp_path, monkeypatch):
    found = measure_target(open_target(runs["digits"].path), tmp_path)
    assert compact(found) is found, "small enough to keep every neuron"
    monkeypatch.setattr(measuring, "KEPT_BYTES", 1000)
    reduced = compact(found)
    assert torch.equal(reduced.records, found.records) and set(reduced.sums) == set(found.sums)
    assert torch.equal(reduced.sums["embed.0"], found.sums["embed.0"].double().sum((2, 3)))
    assert torch.equal(reduced.sums["blocks.0.attn.pairs"], found.sums["blocks.0.attn.pairs"])


@pytest.mark.parametrize("name", ["reference_checkpoint", "reference_checkpoint_ddp"])
def test_the_published_checkpoints_are_evaluated_on_image_files(tmp_path, name):
    root = write_images(tmp_path / "images", {"train": 2, "test": 3}, [f"class{i}" for i in range(10)])
    fields, path = {"data.root": str(root), "train.eval_batch_size": 8}, GOLDEN / f"{name}.pth.tar"
    report = evaluate(path, fields, data="image_folder", storage=tmp_path)
    target = open_target(path, fields, data="image_folder")
    model, batches = target.model(), list(make_test_loader(target.config))
    with evaluating(model):
        logits = torch.cat([model(x) for x, _ in batches]).double()
    y = torch.cat([y for _, y in batches])
    assert report["samples"] == 30 and report["run"] is None
    told = {row["argument"] for row in report["imported"]}
    assert [line.split(":")[0] for line in report["notes"]] == [
        f"data.{name}" for name in ("crop_pct", "interpolation") if name not in told
    ]
    assert open_target(path, {**fields, "data.crop_pct": 0.9, "data.interpolation": "bicubic"}, "image_folder").notes == []
    assert all(line in warnings(report) for line in report["notes"])
    assert report["top1"] == pytest.approx(100 * (logits.argmax(1) == y).double().mean().item())
    assert report["loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert all(0 <= rate <= 1 for rate in report["firing_rates"].values()) and report["firing_rates"]["embed.0"] > 0
    assert check_file(Path(report["folder"]) / "energy.json")["total"]["pj"] == report["energy"]["total"]["pj"] > 0
    trained = evaluate(path, fields, data="image_folder", ema=False, storage=tmp_path)
    averaged = name.endswith("ddp")  # the one with state_dict_ema
    assert report["weights"] == ("averaged (EMA)" if averaged else "trained") and trained["weights"] == "trained"
    assert (trained["folder"] != report["folder"]) == averaged


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (f"evaluate {GOLDEN}/reference_checkpoint.pth.tar --data digits", "model.in_channels: must be 1 for digits, but got 3"),
        ("evaluate {run} --large", "--large: is for imagenet and image_folder, but the data are digits; leave it out"),
        (f"evaluate {GOLDEN}/reference_checkpoint.pth.tar --data digitz", "'digitz'; did you mean digits?"),
        ("evaluate {run} --workers 0", "Invalid value for '--workers'"),
        ("evaluate {run} --set model.embed_dim=64", "must be ["),
        ("energy check {run}/none.json", "none.json: no such file"),
        ("energy check {run}/run.json", "is not an energy ledger"),
    ],
)
def test_sentences(runs, tmp_path, typed, arguments, sentence):
    words = arguments.replace("{run}", str(runs["digits"].path)).split()
    if words[0] == "evaluate":
        words += ["--storage", str(tmp_path / "s")]
    before = sorted(runs["digits"].path.rglob("*"))
    code, out, err = typed(*words)
    assert code == 2 and out == "" and sentence in err
    assert all(line.startswith("statten: ") for line in err.strip().splitlines())
    assert sorted(runs["digits"].path.rglob("*")) == before and not (tmp_path / "s").exists()
