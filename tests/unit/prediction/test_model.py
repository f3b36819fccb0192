"""A trained model in use: opened from anything, reads as validation reads, answers as evaluation does."""

import io
from itertools import product

import numpy as np
import pytest
import torch
from evaluated import SMALL, make_run, published_file
from formats import write_clips, write_images
from networks import samples, tiny
from PIL import Image
from sweeps import drive, new

from statten import load_model
from statten.data import make_test_loader, open_source
from statten.data.digits import digit_images
from statten.errors import UserError
from statten.evaluation import evaluate, open_target
from statten.evaluation.export import export
from statten.evaluation.measure import measure
from statten.metrics.inference import evaluating
from statten.models import build_model
from statten.prediction import Prediction, Predictions
from statten.prediction.model import exits
from statten.registry import ATTENTION, BACKBONES

ANIMALS = ["cat", "dog", "fox"]
IMAGES = {
    "data__name": "image_folder", "model__in_channels": 3, "model__num_classes": 3, "model__image_size": 16,
    "train__batch_size": 8, "data__crop_pct": 0.9, "data__interpolation": "bicubic",
}  # fmt: skip
CLIPS = {
    "data__name": "event_folder", "model__num_classes": 3, "model__image_size": 16, "model__timesteps": 3,
    "model__block_size": 2, "train__batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Runs on the digits, on images of three animals and on clips of them."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "digits")
    root = write_images(folder / "images", {"train": 8, "val": 5}, ANIMALS)
    make_run(folder / "animals", data__root=str(root), **IMAGES)
    root = write_clips(folder / "clips", 3, {"train": 6, "test": 3}, ANIMALS)
    make_run(folder / "moving", "digits_events", data__root=str(root), **CLIPS)
    return folder


@pytest.fixture(scope="module")
def animals(storage):
    return load_model("animals", storage=storage)


def test_everything_that_holds_weights_opens_as_the_same_model(storage, tmp_path):
    run, x = storage / "digits", torch.rand(3, 1, 8, 8)
    target = open_target(run)
    export(run, tmp_path / "exported", ["safetensors"])
    published = published_file(tmp_path / "digits.pth.tar", target.config, target.weights())
    with evaluating(model := target.model()):
        wanted = model(x)
    checkpoint = run / "checkpoints" / "epoch-0001"
    for place in ("digits", run, str(run), checkpoint, tmp_path / "exported", tmp_path / "exported" / "model.safetensors"):
        opened = load_model(place, storage=storage)
        assert not opened.training and not opened.network.training
        with torch.inference_mode():
            assert torch.equal(opened(x), wanted), place
        assert opened.classes == list("0123456789"), place
    with torch.inference_mode():
        assert torch.equal(load_model(published, data="digits")(x), wanted)
    assert evaluate(tmp_path / "exported", storage=tmp_path)["top1"] == evaluate(run)["top1"]


def test_a_sweep_is_its_best_trial(tmp_path):
    sweep = new(tmp_path / "swept", {"model.depth": {"choices": [1, 2]}}, trials=2, scheduler="none", train__epochs=1)
    drive(sweep)
    best = sweep.trial(sweep.best_trial().number)
    opened = load_model(sweep)
    assert opened.source == best.best_checkpoint() and opened.classes == list("0123456789")
    assert opened.config.model == best.config.model


def test_the_transform_is_that_of_validation(storage, animals):
    source, indices = open_source(animals.config), np.array([0, 25, 30])
    x = source.batch(indices).x
    for row, index in zip(x, indices, strict=True):
        path = source.locate(index)
        assert torch.equal(animals.transform(path), row)
        with Image.open(path) as image:
            assert torch.equal(animals.transform(image), row)
            assert torch.equal(animals.transform(np.asarray(image)), row)
            assert torch.equal(animals.transform(np.asarray(image) / 255.0), row)
    moving = load_model("moving", storage=storage)
    source = open_source(moving.config)
    assert torch.equal(moving.transform(source.locate(20)), source.batch(np.array([20])).x[0])
    with np.load(source.locate(20)) as file:
        assert torch.equal(moving.transform(file["frames"]), source.batch(np.array([20])).x[0])


@pytest.mark.parametrize("size", [8, 12])
def test_digits_are_bright_ink_on_a_dark_ground(tmp_path, size):
    model = load_model(make_run(tmp_path / "run", model__image_size=size))
    x = open_source(model.config).batch(np.arange(20)).x
    for ink, row in zip(digit_images().numpy(), x, strict=False):
        file = io.BytesIO()
        Image.fromarray(np.rint(255 * ink).astype(np.uint8)).save(file, "PNG")
        for shown in (Image.open(file), ink):
            assert (model.transform(shown) - row).abs().max() <= 0.51 / 255 / 0.376, "8 bits"


@pytest.mark.parametrize("name", ["digits", "animals", "moving"])
def test_answers_are_those_of_an_evaluation(storage, name):
    model = load_model(name, storage=storage)
    loader = make_test_loader(model.config)
    found = measure(model.network, loader, model.config)
    x = torch.cat([x for x, _ in loader])
    predictions = model.predict(x, batch_size=7)
    assert isinstance(predictions, Predictions) and len(predictions) == len(x)
    assert predictions.labels.tolist() == found.column("prediction").tolist()
    assert [p.probability for p in predictions] == pytest.approx(found.column("confidence").tolist(), rel=1e-4)
    whole = model.predict(x, batch_size=len(x))
    assert whole.energy_uj == pytest.approx(evaluate(storage / name)["energy"]["total"]["pj"] / 1e6, rel=1e-9)
    assert {p.timesteps for p in predictions} == {model.config.model.timesteps}
    first = predictions[0]
    assert first.name == model.classes[first.label] and first.top(2)[0] == (first.name, first.probability)
    assert len(first.top(99)) == len(model.classes) and sum(p for _, p in first.top(99)) == pytest.approx(1)


def test_one_or_several_of_anything(storage, animals):
    source = open_source(animals.config)
    paths = [source.locate(i) for i in (0, 25, 30)]
    images = [Image.open(path).convert("RGB").resize((20, 18)) for path in paths]
    arrays = [np.asarray(image) for image in images]
    wanted = [animals.predict(image).name for image in images]
    for several in (images, arrays, np.stack(arrays), tuple(images), torch.stack([animals.transform(a) for a in arrays])):
        assert animals.predict(several).names == wanted
    for one in (images[0], arrays[0], animals.transform(arrays[0]), paths[0]):
        assert isinstance(animals.predict(one), Prediction)
    assert animals.predict(paths)[1].source == paths[1] and animals.predict(images)[2].source == "sample 2"
    whole = animals.predict(f"{storage}/images/val")
    assert len(whole) == 15 and whole[0].source.endswith("val/cat/cat_0.JPEG")
    assert animals.predict(np.zeros((2, 5, 8), dtype=np.uint8)).names == animals.predict([np.zeros((5, 8))] * 2).names
    assert len(load_model("moving", storage=storage).predict(storage / "clips" / "test")) == 9


def test_a_notebook_shows_a_table(animals):
    shown = animals.predict([np.zeros((4, 4))] * 2)._repr_html_()
    assert shown.count("<tr>") == 3 and "sample 1" in shown and any(name in shown for name in ANIMALS)
    assert animals.predict(np.zeros((4, 4)))._repr_html_().count("<tr>") == 2
    assert "3 classes" in repr(animals)


# --- early exit


def test_an_answer_is_given_where_a_block_ends(storage):
    model = load_model("digits", {"model.timesteps": 5, "model.block_size": 2}, storage=storage)
    assert exits(5, 2) == [2, 4, 5] and exits(4, 4) == [4] and exits(3, 1) == [1, 2, 3]
    x = next(iter(make_test_loader(model.config)))[0]
    whole = model.predict(x)
    sure = model.predict(x, confidence=1e-6)
    assert {p.timesteps for p in sure} == {2} and sure.energy_uj < whole.energy_uj
    shorter = load_model("digits", {"model.timesteps": 2, "model.block_size": 2}, storage=storage).predict(x)
    assert np.allclose(sure.probabilities, shorter.probabilities)
    level = float(np.quantile(sure.probabilities.max(1), 0.5))
    some = model.predict(x, confidence=level)
    assert len({p.timesteps for p in some}) > 1 and 2 < some.average_timesteps < 5
    for early, first in zip(some, sure, strict=True):
        assert (early.timesteps == 2) == (first.probability >= level)
        assert early.probability >= level or early.timesteps == 5
    assert np.array_equal(model.predict(x).probabilities, whole.probabilities), "T is as before"


def test_clips_are_read_up_to_the_exit(storage):
    model = load_model("moving", storage=storage)
    x = next(iter(make_test_loader(model.config)))[0]
    early = model.predict(x, confidence=1e-6)
    assert {p.timesteps for p in early} == {2}
    other = x.clone()
    other[:, 2] = 50.0
    assert np.array_equal(model.predict(other, confidence=1e-6).probabilities, early.probabilities)


@pytest.mark.parametrize("how", ["sum", "subsample"])
def test_longer_clips_are_regrouped_as_in_training(storage, how):
    model = load_model("moving", {"data.regroup": how}, storage=storage)
    counts = np.random.default_rng(0).integers(0, 5, (7, 2, 20, 24))
    by_hand = counts[[1, 3, 5]] if how == "subsample" else np.stack([counts[:2].sum(0), counts[2:4].sum(0), counts[4:].sum(0)])
    assert torch.equal(model.transform(counts), model.transform(by_hand))
    assert np.array_equal(model.predict(counts).probabilities, model.predict(by_hand).probabilities)
    with pytest.raises(UserError, match=r"sample 0: has 2 frames, but model\.timesteps is 3$"):
        model.predict(counts[:2])


NETWORKS = [
    (backbone, attention, events) for backbone, attention, events in product(BACKBONES, ATTENTION, [False, True])
    if attention not in BACKBONES.line(backbone).lacks.get("attention", ())
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "attention", "events"), NETWORKS)
def test_a_network_s_answer_so_far_is_that_of_a_shorter_one(backbone, attention, events):
    """What early exit rests on: up to the end of a block nothing depends on later timesteps."""
    T, b = 5, 2
    config = tiny(backbone, attention=attention, timesteps=T, block_size=b, events=events)
    torch.manual_seed(0)
    model = build_model(config, "torch").double()
    x = samples(config).double()
    model.train()(x)  # so that BatchNorm lets neurons fire
    with evaluating(model):
        logits_TBK = model.logits(x.transpose(0, 1) if events else x[None])
        assert logits_TBK.std(0).max() > 0
        for t in exits(T, b):
            model.set_timesteps(t, min(b, t))
            torch.testing.assert_close(model(x[:, :t] if events else x), logits_TBK[:t].mean(0), rtol=1e-12, atol=1e-12)


# --- what is wrong


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ("{storage}/none.png", r"none\.png: No such file or directory"),
        ("{storage}/text.png", r"text\.png: is no image file \(9 bytes\)"),
        ("{storage}/clips/test/cat/clip_000.npz", r"clip_000\.npz: is an event clip, but the model reads images"),
        ("{storage}/empty", r"empty: holds no image \(\.jpg"),
        (np.zeros((3, 20, 20, 20, 3)), r"sample 0: must be an image \[H, W\] or \[H, W, 3\], but is float64 \[20, 20, 20, 3\]"),
        (np.zeros((20, 20, 2)), r"sample 0: must be an image \[H, W\] or \[H, W, 3\], but is float64 \[20, 20, 2\]"),
        ([np.full((20, 20, 3), 7.0)], r"sample 0: must hold uint8, .* but is float64 \[20, 20, 3\] from 7 to 7"),
        ([np.zeros((20, 20), dtype=np.int64)], "sample 0: must hold uint8"),
        (torch.zeros(1, 16, 16), r"sample 0: must be floating-point numbers \[3, 16, 16\] as the model reads them"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "sample 0: must be floating-point numbers"),
        (5, "samples: must be a file, an image, an array or a list of them, but got int"),
        ([None], "sample 0: must be an image"),
    ],
)
def test_a_sample_that_is_none_is_a_sentence(storage, animals, sample, sentence):
    (storage / "empty").mkdir(exist_ok=True)
    (storage / "text.png").write_text("just text")
    if isinstance(sample, str):
        sample = sample.format(storage=storage)
    with pytest.raises(UserError, match=sentence) as caught:
        animals.predict(sample)
    assert len(caught.value.problems) == 1


def test_clips_that_do_not_fit(storage):
    model = load_model("moving", storage=storage)
    with pytest.raises(UserError, match=r"cat_0\.JPEG: is an image, but the model reads event clips \(\.npz, \.npy\)"):
        model.predict(storage / "images" / "val" / "cat" / "cat_0.JPEG")
    with pytest.raises(UserError, match=r"sample 0: has 4 frames, but model\.timesteps is 3; --set data\.regroup=sum adds"):
        model.predict(np.zeros((4, 2, 16, 16)))
    with pytest.raises(UserError, match=r"sample 0: must be an event clip of numbers \[T, 2, H, W\], but is of type Image"):
        model.predict(Image.new("L", (3, 3)))


def test_ranges(animals):
    for confidence in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="--confidence: must be above 0 and at most 1, but got"):
            animals.predict(np.zeros((4, 4)), confidence=confidence)
    with pytest.raises(UserError, match="--batch-size: must be at least 1, but got 0"):
        animals.predict(np.zeros((4, 4)), batch_size=0)


def test_a_target_that_is_not_there_is_named_nearly(storage):
    with pytest.raises(UserError, match=r"animal: no such run or sweep in .*; did you mean animals\?"):
        load_model("animal", storage=storage)


def test_a_gpu_s_run_is_used_without_one(tmp_path):
    run = make_run(tmp_path / "run")
    text = (run.path / "config.yaml").read_text()
    assert SMALL["scale.device"] == "cpu"
    text = text.replace("device: cpu", "device: cuda").replace("precision: fp32", "precision: fp16")
    (run.path / "config.yaml").write_text(text.replace("neuron_backend: auto", "neuron_backend: cupy"))
    if not torch.cuda.is_available():
        assert load_model(run.path).predict(np.zeros((8, 8))).timesteps == 4
