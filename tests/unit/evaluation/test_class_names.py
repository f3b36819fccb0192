"""The names of classes travel with a run, and stand in what is found of it; scores of each class."""

import json
import shutil
from pathlib import Path

import pytest
from evaluated import SMALL, make_run
from formats import write_images
from sklearn.metrics import precision_recall_fscore_support

from statten.config import load_config
from statten.data import check_split, split_document
from statten.errors import UserError
from statten.evaluation import evaluate, open_target
from statten.evaluation.measure import load
from statten.evaluation.report import headline
from statten.storage.checkpoint import class_names, save
from statten.storage.run import Run
from statten.training.worker import run_fit

ANIMALS = ["cat", "dog", "wild $boar_"]
FIELDS = {
    "data.name": "image_folder", "model.in_channels": 3, "model.num_classes": 3, "model.image_size": 16,
    "train.batch_size": 8, "train.epochs": 1, "model.embed_dim": 16,
}  # fmt: skip


def animals(folder: Path):
    """A config on images of three animals."""
    root = write_images(folder / "animals", {"train": 8, "val": 5}, ANIMALS)
    return load_config("digits", {**SMALL, **FIELDS, "data.root": str(root)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run."""
    folder = tmp_path_factory.mktemp("named")
    config = animals(folder)
    run = Run.create(folder / "run", config, extra={"splits.json": split_document(config)})
    with run.writing() as attempt:
        run_fit(run, attempt)
    return run


def test_training_keeps_the_names(run):
    assert json.loads((run.path / "splits.json").read_text())["classes"] == ANIMALS
    assert class_names(run.best_checkpoint()) == ANIMALS
    assert open_target(run.path).classes() == ANIMALS


def test_every_file_of_an_evaluation_has_the_names_and_scores(run):
    report = evaluate(run.path)
    folder = Path(report["folder"])
    assert [row["name"] for row in report["classes"]] == report["class_names"] == ANIMALS
    found = load(folder / "samples.safetensors")
    expected = precision_recall_fscore_support(found.column("label"), found.column("prediction"), zero_division=0)
    for score, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        assert [row[score] for row in report["classes"]] == pytest.approx((100 * values).tolist())
    assert report["macro"]["f1"] == pytest.approx(100 * expected[2].mean())
    for name in ANIMALS:
        assert f"| {name} | 5 |" in (folder / "report.md").read_text()
        assert f"<td>{name}</td>" in (folder / "report.html").read_text()
    assert (folder / "confusion.png").stat().st_size > 1000


def test_top5_of_three_classes_is_not_shown(run, typed):
    report = evaluate(run.path)
    assert report["top5"] == 100.0, "programs find it"
    assert "top-5" not in headline(report)[0]
    assert not any("top-5" in (Path(report["folder"]) / name).read_text() for name in ("report.md", "report.html"))
    code, out, _ = typed("evaluate", run.path)
    assert code == 0 and "top-5" not in out and "wild $boar_: " in out and "mean over classes" in out


def test_a_run_of_before_has_the_names_of_its_data_or_numbers(tmp_path):
    config = animals(tmp_path)
    fields = {name.replace(".", "__"): value for name, value in {**FIELDS, "data.root": config.data.root}.items()}
    run = make_run(tmp_path / "old", **fields)
    state = json.loads((run.best_checkpoint() / "state.json").read_text())
    del state["classes"], state["digest"]  # as in the first versions
    (run.best_checkpoint() / "state.json").write_text(json.dumps(state))
    assert open_target(run.path).classes() == ANIMALS
    shutil.rmtree(config.data.root)
    assert open_target(run.path).classes() == ["0", "1", "2"]


def test_more_outputs_than_classes_are_numbers(tmp_path):
    run = make_run(tmp_path / "run", model__num_classes=12)
    assert open_target(run.path).classes() == [str(i) for i in range(12)]
    assert evaluate(run.path)["class_names"] == open_target(run.path).classes()


def test_a_class_with_another_name_is_another_label(tmp_path):
    config, path = animals(tmp_path), tmp_path / "splits.json"
    path.write_text(json.dumps(split_document(config)))
    check_split(config, path)
    for part in ("train", "val"):
        (Path(config.data.root) / part / "cat").rename(Path(config.data.root) / part / "zebra")
    with pytest.raises(UserError, match="has class 'dog' where 'cat' was when the run began"):
        check_split(config, path)


def test_other_data_that_name_a_class_otherwise_are_told(run, tmp_path):
    root = write_images(tmp_path / "other", {"train": 8, "val": 5}, ["cat", "horse", "wild $boar_"])
    report = evaluate(run.path, {"data.root": str(root)}, output=tmp_path / "out")
    assert report["notes"] == [
        "image_folder has class horse where the model was trained on dog; labels are compared by their numbers"
    ]
    assert report["class_names"] == ANIMALS


def test_a_checkpoint_without_names_is_sound(tmp_path, run):
    from evaluated import alive

    path = save(alive(run.config), tmp_path)
    assert class_names(path) == []
