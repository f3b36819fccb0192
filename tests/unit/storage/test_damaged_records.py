"""Runs whose files hold something else: each is named, and hides no other; what can be shown without it is shown."""

import io
import json
import os

import pytest
import torch
from evaluated import TINY
from rich.console import Console

from statten.config import load_config
from statten.display.run import epoch_line
from statten.errors import UserError
from statten.evaluation.measure import Measured, load, save
from statten.report.overview import details, details_table, overview
from statten.storage.run import Run

ROW = {"epoch": 1, "val/top1": 50.0, "val/loss": 1.0}
DEEP = "[" * 100_000


@pytest.fixture
def runs(tmp_path):
    """Two runs of an epoch; "b" is damaged by each test."""
    for name in "ab":
        run = Run.create(tmp_path / name, load_config("digits", TINY))
        (run.path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


def shown(path) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(details_table(details(path)))
    return text.getvalue()


@pytest.mark.parametrize("content", ["[1]", '{"origin": 3}', '{"created": [1]}', "{cut", DEEP, '{"kind": 10e999, "study": {}}'])
def test_a_marker_that_is_none_is_named_beside_the_others(content, runs):
    (runs / "b" / "run.json").write_text(content)
    rows = {row["name"]: row for row in overview(runs)}
    assert rows["a"]["state"] == "unfinished" and "problem" not in rows["a"]
    assert rows["b"]["state"] == "damaged" and f"{runs / 'b' / 'run.json'}: " in rows["b"]["problem"]


@pytest.mark.parametrize(
    "content",
    ["[1]", '"finished"', '{"state": 3}', '{"state": "finished", "best": []}', '{"best": {"epoch": "3"}}', "{cut", DEEP,
     '{"state": "failed", "reason": ["a"]}', '{"state": "finished", "best": {"checkpoint": 3}}'],
)  # fmt: skip
def test_a_result_that_is_none_leaves_the_epochs(content, runs):
    (runs / "b" / "result.json").write_text(content)
    run = Run(runs / "b")
    assert run.state == "damaged" and not run.ended
    assert {row["name"]: row["state"] for row in overview(runs)} == {"a": "unfinished", "b": "damaged"}
    assert "50.00" in shown(run.path)
    with pytest.raises(UserError, match=r"b/result.json: "):
        run.best_checkpoint()


@pytest.mark.parametrize(
    "line",
    ["[1]", "3", '{"epoch": 2}', '{"epoch": "2", "val/top1": 1.0, "val/loss": 1.0}', DEEP, "\xff", '{"epoch": 2, "val',
     '{"epoch": 2, "val/top1": 90.0, "val/loss": 1.0, "lr": "fast"}', '{"epoch": 2.5, "val/top1": 90.0, "val/loss": 1.0}',
     '{"epoch": -2, "val/top1": 90.0, "val/loss": 1.0}', '{"epoch": 1' + "0" * 400 + ', "val/top1": 90.0, "val/loss": 1.0}'],
)  # fmt: skip
def test_a_line_of_metrics_that_is_none_hides_no_other(line, runs):
    run, last = Run(runs / "b"), {**ROW, "epoch": 3}
    (run.path / "metrics.jsonl").write_text("\n".join([json.dumps(ROW), line, json.dumps(last), ""]), encoding="latin-1")
    assert run.metrics() == [ROW, last] and run.damaged_lines == 1 and run.judged() == ROW
    assert shown(run.path).count("50.00") == 2


def test_epochs_of_a_version_with_fewer_metrics_are_shown(runs):
    cells = next(line for line in shown(runs / "a").splitlines() if "50.00" in line).split()
    assert [cell for cell in cells if cell != "│"] == ["1", "-", "1.0000", "50.00", "-", "-", "-", "-"]
    line = epoch_line(ROW, 9)
    assert line.startswith("epoch 1/9  loss nan  val loss 1.000  val top-1  50.00 %") and "left" not in line


def test_a_run_without_an_epoch_that_can_be_read_is_judged_by_none(runs, typed):
    (runs / "b" / "metrics.jsonl").write_text("damaged\n")
    (runs / "b" / "result.json").write_text('{"state": "finished"}')
    code, _, err = typed("train", "digits", *(f"--set={key}={value}" for key, value in TINY.items()), "--storage", runs,
                         "--name", "b", "--resume")  # fmt: skip
    assert code == 2 and "metrics.jsonl holds no epoch that can be read" in err, err


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(runs):
    os.mkfifo(runs / "b" / "result.json")
    os.unlink(runs / "b" / "metrics.jsonl")
    os.mkfifo(runs / "b" / "metrics.jsonl")
    rows = {row["name"]: row for row in overview(runs)}
    assert "metrics.jsonl: cannot be read: it is no plain file" in rows["b"]["problem"] and rows["a"]["state"] == "unfinished"


@pytest.mark.parametrize(
    ("index", "records"),
    [(torch.arange(3), torch.zeros(3, 4)), (torch.arange(3), torch.zeros(2, 5)), (torch.zeros(3), torch.zeros(3, 5)),
     (torch.arange(3), torch.zeros(3, 5, dtype=torch.int64))],
)  # fmt: skip
def test_records_of_samples_that_do_not_fit_are_refused(index, records, tmp_path):
    records = records if records.dtype == torch.int64 else records.double()
    save(Measured(index, records, {}, 1.0, 1), tmp_path / "samples.safetensors")
    with pytest.raises(UserError, match=r"samples.safetensors: cannot be read: it has no label, prediction"):
        load(tmp_path / "samples.safetensors")
