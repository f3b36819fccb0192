"""--epochs and its like: the same in every command that trains, promote included."""

import json
import shutil
from pathlib import Path

import pytest
import typer

from statten.cli.options import SHORT_OPTIONS, app
from statten.config import SHORT_FORMS

OLD = Path(__file__).parents[2] / "golden" / "runs" / "old"
ASKED = ("--epochs", 7, "--batch-size", 16, "--lr", 0.002, "--workers", 1)


@pytest.mark.parametrize("name", ["train", "tune", "promote", "config"])
def test_commands_that_train_have_them_all(name):
    options = {parameter.name for parameter in typer.main.get_command(app).commands[name].params}
    assert options >= SHORT_OPTIONS.keys() and "short" not in options and SHORT_OPTIONS.keys() <= SHORT_FORMS.keys()


def test_promote_takes_them(work, typed):
    shutil.copytree(OLD, work / "runs" / "old")
    code, out, err = typed("promote", "old", *ASKED, "--dry-run", "--json")
    assert code == 0, err
    config = json.loads(out)["config"]
    assert (config["train"]["epochs"], config["train"]["batch_size"], config["train"]["lr"]) == (7, 16, 0.002)
    for words, sentence in (
        (("--epochs", 7, "--set", "train.epochs=8"), "--epochs: is train.epochs, but got (--epochs 7, --set train.epochs=8)"),
        (("--data", "photos"), "--data: has no effect on digits"),
    ):
        code, _, err = typed("promote", "old", *words, "--dry-run")
        assert code == 2 and sentence in " ".join(err.split())
