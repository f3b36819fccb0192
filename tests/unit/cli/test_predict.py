"""`statten predict`: tables, JSON and CSV of what a model says of files, and a sentence for what it cannot read."""

import csv
import io
import json

import numpy as np
import pytest
from evaluated import make_run
from formats import jpeg, write_clips, write_images

from statten import load_model

ANIMALS = ["cat", "dog", "red, [fox]"]
IMAGES = {
    "data__name": "image_folder", "model__in_channels": 3, "model__num_classes": 3, "model__image_size": 16,
    "train__batch_size": 8,
}  # fmt: skip
CLIPS = {
    "data__name": "event_folder", "model__num_classes": 3, "model__image_size": 16, "model__timesteps": 2,
    "model__block_size": 1, "train__batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model of images, one of clips, and new files for both."""
    folder = tmp_path_factory.mktemp("predict")
    root = write_images(folder / "data", {"train": 8, "val": 2}, ANIMALS)
    make_run(folder / "runs" / "animals", data__root=str(root), **IMAGES)
    root = write_clips(folder / "events", 2, {"train": 4, "test": 2}, ANIMALS)
    make_run(folder / "runs" / "moving", "digits_events", data__root=str(root), **CLIPS)
    (folder / "new" / "more").mkdir(parents=True)
    (folder / "new" / ".hidden.png").write_bytes(b"no image")
    (folder / "new" / "notes.txt").write_text("no image")
    for i, name in enumerate(("b.jpg", "a.PNG", "more/c.jpeg")):
        (folder / "new" / name).write_bytes(jpeg(i))
    (folder / "text.png").write_text("just text")
    (folder / "empty").mkdir()
    np.savez(folder / "long.npz", frames=np.zeros((5, 2, 8, 8), dtype=np.uint8))
    np.savez(folder / "three.npz", frames=np.zeros((2, 3, 8, 8), dtype=np.uint8))
    return folder


def test_a_folder_of_images_as_a_table(runs, typed):
    code, out, err = typed("predict", "animals", runs / "new", "--storage", runs / "runs", "--top-k", 2)
    assert code == 0, err
    lines, expected = out.splitlines(), load_model(runs / "runs" / "animals").predict(runs / "new")
    assert [p.source for p in expected] == [str(runs / "new" / name) for name in ("a.PNG", "b.jpg", "more/c.jpeg")]
    for line, found in zip(lines[1:], expected, strict=False):
        (first, share), (second, _) = found.top(2)
        assert line.startswith(f"…{found.source[-27:]}  ") and len(line) <= 80
        assert first in line and f" {100 * share:.1f} " in line and second in line
    assert lines[-1].startswith("3 images, 4 of 4 timesteps and ")
    assert lines[-1].endswith("by animals (b=2, 3 classes)")


def test_json_and_csv_and_files_of_both(runs, typed, tmp_path):
    given = ["predict", runs / "runs" / "animals", runs / "new" / "b.jpg", runs / "new" / "a.PNG", "--top-k", 9]
    code, out, _ = typed(*given, "--json", "--output", tmp_path / "out")
    document = json.loads(out)
    assert code == 0 and document["classes"] == ANIMALS and document["samples"] == 2 and document["timesteps"] == 4
    first = document["predictions"][0]
    assert first["file"] == str(runs / "new" / "b.jpg") and first["class"] == ANIMALS[first["label"]]
    shares = [row["probability"] for row in first["top"]]
    assert shares == sorted(shares, reverse=True) and {row["class"] for row in first["top"]} == set(ANIMALS)
    assert sum(row["probability"] for row in first["top"]) == pytest.approx(1) and first["energy_uj"] > 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == document
    code, out, _ = typed(*given, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and out == (tmp_path / "out" / "predictions.csv").read_text()
    assert rows[0]["class_1"] == first["class"] and float(rows[0]["probability_1"]) == first["probability"]
    assert rows[1]["file"].endswith("a.PNG") and rows[0]["class_3"] == first["top"][2]["class"]


def test_clips_and_early_exit(runs, typed):
    given = ["predict", "moving", runs / "events" / "test", "--storage", runs / "runs", "--json"]
    whole = json.loads(typed(*given)[1])
    early = json.loads(typed(*given, "--confidence", 0.001)[1])
    assert whole["samples"] == early["samples"] == 6 and whole["average_timesteps"] == 2
    assert early["average_timesteps"] == 1 and early["energy_uj"] < whole["energy_uj"] and early["confidence"] == 0.001


def test_longer_clips_with_a_way_to_regroup(runs, typed):
    given = ["predict", "moving", runs / "long.npz", "--storage", runs / "runs", "--json", "--set", "data.regroup=sum"]
    code, out, err = typed(*given)
    assert code == 0 and json.loads(out)["samples"] == 1, err


CASES = [
    ("predict animal {f}/new", "animal: no such run or sweep in {f}/runs; did you mean animals?"),
    ("predict {f}/text.png {f}/new", "text.png: is neither a run, a sweep nor a checkpoint folder, nor an export"),
    ("predict animals", "Missing argument 'FILES'"),
    ("predict animals {f}/none.jpg", "none.jpg: no such file or folder"),
    ("predict animals {f}/new {f}/text.png", "text.png: is no image file (9 bytes)"),
    ("predict animals {f}/empty", "empty: holds no image (.jpg, .jpeg, .png"),
    ("predict animals {f}/long.npz", "long.npz: is an event clip, but the model reads images"),
    ("predict moving {f}/empty", "empty: holds no event clip (.npz, .npy)"),
    ("predict moving {f}/new/b.jpg", "b.jpg: is an image, but the model reads event clips (.npz, .npy)"),
    ("predict moving {f}/long.npz", "long.npz: has 5 frames, but model.timesteps is 2; --set data.regroup=sum adds frames up"),
    ("predict moving {f}/three.npz", "three.npz: must hold numbers [T, 2, H, W], but holds uint8 [2, 3, 8, 8]"),
    ("predict animals {f}/new --confidence 1.5", "--confidence: must be above 0 and at most 1, but got 1.5"),
    ("predict animals {f}/new --confidence nan", "--confidence: must be above 0 and at most 1, but got nan"),
    ("predict animals {f}/new --confidence high", "Invalid value for '--confidence'"),
    ("predict animals {f}/new --top-k 0", "Invalid value for '--top-k'"),
    ("predict animals {f}/new --batch-size 0", "Invalid value for '--batch-size'"),
    ("predict animals {f}/new --json --csv", "--csv: stdout takes one document, but --json is given too"),
    ("predict animals {f}/new --output {f}/empty", "empty: exists already; name a new folder with --output"),
    ("predict animals {f}/new {f}/text.png --output {f}/fresh", "text.png: is no image file"),
    ("predict animals {f}/new --set model.image_size=2", "model.image_size: must be at least 4"),
    ("predict animals {f}/new --set model.embed_dim=64", "must be ["),
]


@pytest.mark.parametrize(("arguments", "sentence"), CASES, ids=[arguments for arguments, _ in CASES])
def test_one_sentence_and_exit_code_2(runs, typed, arguments, sentence):
    before = sorted(runs.rglob("*"))
    words = arguments.format(f=runs).split()
    code, out, err = typed(*words, "--storage", runs / "runs")
    assert code == 2 and out == "", (out, err)
    assert sentence.format(f=runs) in err and all(line.startswith("statten: ") for line in err.strip().splitlines()), err
    assert sorted(runs.rglob("*")) == before, "nothing is written"
