"""On a terminal of 80 and of 120 columns no line is longer than the terminal."""

import pytest
from evaluated import TINY
from terminal import on_a_terminal

from statten.config import load_config
from statten.storage.run import Run
from statten.training.worker import run_fit

SMALL = {**TINY, "data.fraction": 0.2, "scale.neuron_backend": "torch", "train.epochs": 2}
SET = [word for field, value in SMALL.items() for word in ("--set", f"{field}={value}")]
SPACE = "model.timesteps: {choices: [1, 2]}\nmodel.block_size: {divisors_of: model.timesteps}\nmodel.depth: {int: [1, 2]}\n"


def check(lines, columns):
    assert [line for line in lines if len(line) > columns] == []
    return lines


@pytest.mark.parametrize("columns", [80, 120])
def test_what_is_read_fits(columns, work):
    run = Run.create(work / "runs" / "mine", load_config("digits", SMALL))
    with run.writing() as attempt:
        run_fit(run, attempt, threads=1)
    for words in (["show", "mine"], ["runs"], ["evaluate", "mine"], ["train", "digits", "--dry-run"], ["recipes"],
                  ["model", "imagenet_8_768"], ["config", "image_folder"], ["fields"], ["--help"]):  # fmt: skip
        lines = check(on_a_terminal(columns, *words, cwd=work), columns)
        assert len(lines) > 2


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_training_fits(columns, work):
    lines = check(on_a_terminal(columns, "train", "digits", *SET, "--name", "mine", cwd=work), columns)
    epochs = [line for line in lines if line.lstrip().startswith("epoch ") and "loss" in line]
    assert len(epochs) == 2 and ("lr " in epochs[0]) == (columns == 120)


@pytest.mark.slow
def test_a_sweep_fits(work):
    (work / "space.yaml").write_text(SPACE)
    words = ["tune", "digits", *SET, "--space", "space.yaml", "--trials", 2, "--name", "sweep"]
    assert any("2 of 2 trials" in line for line in check(on_a_terminal(80, *words, cwd=work), 80))
    for words in (["show", "sweep"], ["best", "sweep"]):
        for columns in (80, 120):
            check(on_a_terminal(columns, *words, cwd=work), columns)
