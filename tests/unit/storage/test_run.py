"""Run folders: names, places, what a run is judged by and goes on from, and who may write it."""

import json
import os
import time
from pathlib import Path

import pytest
from evaluated import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from statten.config import load_config
from statten.errors import UserError
from statten.files import write_json
from statten.storage import run as module
from statten.storage.run import (
    Run,
    RunFolder,
    best_row,
    check_name,
    checkpoints,
    default_storage,
    folder_for,
    free_name,
    locate,
    storage_folder,
    written,
)


@pytest.fixture(scope="module")
def config():
    return load_config("digits", TINY)


@pytest.fixture
def run(work, config) -> Run:
    return Run.create(work / "runs" / "r", config)


def row(epoch: int, top1: float, loss: float = 1.0) -> dict:
    return {"epoch": epoch, "val/top1": top1, "val/loss": loss}


def finish(run: Run, *rows: dict, folders: bool = True) -> None:
    with (run.path / "metrics.jsonl").open("a") as file:
        for entry in rows:
            file.write(json.dumps(entry) + "\n")
            if folders:
                (run.checkpoint_folder / f"epoch-{entry['epoch']:04d}").mkdir()


# --- making


def test_a_run_is_made_whole_or_not_at_all(work, config):
    (work / "w").write_bytes(b"weights")
    path = work / "runs" / "r"
    made = Run.create(path, config, {"sweep": "s", "trial": 3}, {"splits.json": {"train": [1]}}, work / "w")
    assert made.path == path and made.config == config and made.name == "r"
    files = ["checkpoints", "config.yaml", "initial.safetensors", "run.json", "splits.json"]
    assert sorted(p.name for p in path.iterdir()) == files
    assert (path / "initial.safetensors").read_bytes() == b"weights"
    assert json.loads((path / "splits.json").read_text()) == {"train": [1]}
    assert made.info["kind"] == "run" and made.origin == {"sweep": "s", "trial": 3}
    created = time.strptime(made.info["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(created) - time.mktime(time.gmtime())) < 60
    with pytest.raises(
        UserError, match=r"runs/r: exists already; choose another --name, or continue it with: statten resume r"
    ):
        Run.create(path, config)
    with pytest.raises(FileNotFoundError):
        Run.create(work / "runs" / "other", config, weights=work / "none")
    assert [p.name for p in (work / "runs").iterdir()] == ["r"], "nothing half made is left"
    with pytest.raises(UserError, match="--name: must be"):
        Run.create(work / "runs" / ".hidden", config)


def test_opening_what_is_none(run):
    assert Run.open(run.path).path == run.path and Run(run.path).origin == {}
    (run.path.parent / "empty").mkdir()
    with pytest.raises(UserError, match=r"runs/rr: no such run; did you mean r\?"):
        Run.open(run.path.parent / "rr")
    with pytest.raises(UserError, match=r"empty: is not a run folder, for it holds no run\.json"):
        Run.open(run.path.parent / "empty")
    with pytest.raises(UserError, match=r"no such run; .*nowhere holds none"):
        Run.open(run.path / "nowhere" / "r")
    (run.path / "run.json").unlink()
    assert run.info == {} and repr(run) == f"Run({str(run.path)!r})"


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(codec="utf-8"), max_size=110) | st.from_regex(module.NAME, fullmatch=True))
def test_names_are_those_that_every_file_system_can_show(name):
    good = 0 < len(name) <= 100 and name[0].isascii() and name[0].isalnum()
    good = good and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    if good:
        check_name(name)
        return
    with pytest.raises(UserError, match="at most 100 and starting with a letter or digit, but got") as caught:
        check_name(name)
    nearest = str(caught.value).rpartition("the nearest is ")[2]
    check_name(nearest.strip("'\""))


def test_the_nearest_name_is_named():
    for name, nearest in (("my run", "my-run"), ("a/b//c", "a-b-c"), ("._-", "run"), ("-x-", "x"), ("y" * 120, "y" * 100)):
        with pytest.raises(UserError, match=f"the nearest is '{nearest}'"):
            check_name(name)


# --- places


def test_where_runs_lie(work, config, monkeypatch):
    assert default_storage() == Path("runs") == storage_folder() and storage_folder("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("STATTEN_STORAGE", str(work / "mine"))
    assert default_storage() == work / "mine" == storage_folder(None) and storage_folder(work / "x") == work / "x"
    (work / "file").write_text("")
    with pytest.raises(UserError, match=r"--storage: must be a folder, but .*file is a file"):
        storage_folder(work / "file")


def test_the_first_name_that_is_free(work):
    assert free_name(work / "runs", "digits") == "digits-001"
    for name in ("digits-001", "digits-003", "digits"):
        (work / "runs" / name).mkdir(parents=True)
    assert free_name(work / "runs", "digits") == "digits-002" and free_name(work / "runs", "other") == "other-001"
    (work / "runs" / "digits-002").mkdir()
    assert folder_for(work / "runs", None, "digits") == work / "runs" / "digits-004"
    assert folder_for(work / "runs", "mine", "digits") == work / "runs" / "mine"
    assert folder_for(work / "a" / "b", "mine", "digits") == work / "a" / "b" / "mine" and not (work / "a").exists()
    with pytest.raises(UserError, match="--name: must be"):
        folder_for(work / "runs", "a b", "digits")


def test_a_storage_that_cannot_be_written(work, read_only):
    (work / "mount").mkdir()
    read_only(work / "mount")
    with pytest.raises(UserError, match=r"--storage: .*mount/new cannot be written"):
        folder_for(work / "mount" / "new", "a", "digits")


def test_a_target_is_a_name_first_then_a_path(run, work):
    assert locate("r", Path("runs")) == Path("runs/r") and locate(run.path, work / "none") == run.path
    assert locate("runs/r", work / "elsewhere") == Path("runs/r")
    (work / "r").mkdir()
    assert locate("r", Path("runs")) == Path("runs/r"), "the storage counts first"
    with pytest.raises(UserError, match=r"q: no such run or sweep in runs; choose from r"):
        locate("q", Path("runs"))
    with pytest.raises(UserError, match=r"q: no such run or sweep in .*none; .*none holds none"):
        locate("q", work / "none")
    (work / "runs" / ".hidden").mkdir()
    (work / "runs" / "file").write_text("")
    with pytest.raises(UserError, match=r"; choose from r$"):
        locate("q", Path("runs"))


def test_how_a_run_is_called(run, work, monkeypatch):
    assert run.where == run.typed == str(run.path) and run.address == str(run.path.resolve())
    assert run.resume_command == "statten resume r"
    other = Run(work / "my folder" / "r")
    assert other.resume_command == f"statten resume r --storage '{work}/my folder'" and other.typed == f"'{work}/my folder/r'"
    monkeypatch.setenv("STATTEN_STORAGE", str(work / "my folder"))
    assert other.resume_command == "statten resume r"
    assert "<th>name</th><td>r</td>" in run._repr_html_() and ("state", "unfinished") in run.facts()
    finish(run, row(1, 12.344))
    assert ("best validation top-1", "12.34 % at epoch 1") in run.facts()
    assert ("epochs", f"1 of {run.config.train.total_epochs}") in run.facts() and ("folder", str(run.path)) in run.facts()
    with pytest.raises(KeyboardInterrupt) as caught, other.resumable():
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["statten resume r"]


# --- what a run is judged by


ROWS = st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.1, 0.2])), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(values=ROWS)
def test_the_best_epoch_has_the_highest_top1_then_the_lowest_loss_then_came_first(values):
    rows = [row(epoch, *value) for epoch, value in enumerate(values, 1)]
    best = best_row(rows)
    assert best["val/top1"] == max(top1 for top1, _ in values)
    among = [entry for entry in rows if entry["val/top1"] == best["val/top1"]]
    assert best["val/loss"] == min(entry["val/loss"] for entry in among)
    assert best is next(entry for entry in among if entry["val/loss"] == best["val/loss"])


def test_the_best_checkpoint(run):
    with pytest.raises(UserError, match=r"holds no checkpoint yet; finish an epoch with: statten resume r"):
        run.best_checkpoint()
    with pytest.raises(UserError, match=r"metrics.jsonl holds no epoch that can be read; finish one with: statten resume r"):
        run.judged()
    (run.checkpoint_folder / "epoch-0000-step-000003").mkdir()
    (run.checkpoint_folder / "epoch-0000-step-000009").mkdir()
    assert run.best_checkpoint().name == "epoch-0000-step-000009", "the first epoch is not finished"
    finish(run, row(1, 30.0), row(2, 50.0), row(3, 40.0))
    assert run.best_checkpoint() == run.checkpoint_folder / "epoch-0002" and run.judged() == row(2, 50.0)
    (run.checkpoint_folder / "epoch-0002").rmdir()
    with pytest.raises(UserError, match="the checkpoint of its best epoch, epoch-0002, is not there; the newest is epoch-0003"):
        run.best_checkpoint()
    # The result counts before the rows, which may be damaged.
    best = {**row(1, 30.0), "checkpoint": "checkpoints/epoch-0001"}
    write_json(run.path / "result.json", {"state": "finished", "best": best})
    assert run.best_checkpoint().name == "epoch-0001" and run.best["epoch"] == 1 and run.keeps_best()
    (run.checkpoint_folder / "epoch-0001").rmdir()
    assert not run.keeps_best()


def test_a_damaged_line_leaves_the_best_epoch_to_the_newest_checkpoint(run):
    finish(run, row(1, 30.0))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("{damaged\n")
    finish(run, row(3, 40.0))
    assert run.damaged_lines == 1 and [entry["epoch"] for entry in run.metrics()] == [1, 3]
    (run.checkpoint_folder / "epoch-0002").mkdir()
    state = {"epoch": 3, "step": 0, "sums": None, "seconds": 0.0, "metrics": row(3, 40.0), "best": row(2, 90.0), "scaler": {},
             "optimizer": {"state": {}, "param_groups": []}, "sha256": {}}  # fmt: skip
    write_json(run.checkpoint_folder / "epoch-0003" / "state.json", state)
    assert run.best_checkpoint().name == "epoch-0002", "of which the row is lost"
    (run.checkpoint_folder / "epoch-0003" / "state.json").unlink()
    assert run.best_checkpoint().name == "epoch-0003"


def test_a_last_line_that_was_cut_off_is_no_damage(run):
    assert run.metrics() == [] and run.damaged_lines == 0
    finish(run, row(1, 30.0))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "val/t')
    assert run.damaged_lines == 0 and run.metrics() == [row(1, 30.0)]
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read: Is a directory"):
        run.metrics()


def test_how_a_run_ended(run):
    assert (run.state, run.ended, run.reason, run.best, run.result, run.keeps_best()) == (
        "unfinished",
        False,
        None,
        {},
        None,
        True,
    )
    run.fail("no room", cause="error")
    assert (run.state, run.ended, run.reason, run.result["cause"]) == ("failed", True, "no room", "error")
    run.fail("no room")
    assert "cause" not in run.result
    run.stop("not worth it")
    assert (run.state, run.ended, run.reason) == ("stopped", True, "not worth it")
    time.strptime(run.result["ended"], "%Y-%m-%dT%H:%M:%SZ")
    write_json(run.path / "result.json", {"best": row(1, 1.0)})
    assert (run.state, run.ended) == ("unfinished", False), "the evaluation of a version before"
    (run.path / "result.json").write_text("{")
    assert (run.state, run.ended) == ("damaged", False)


def test_a_note_is_a_line_of_the_log_with_the_time(run):
    run.note("one")
    run.note("two")
    lines = (run.path / "train.log").read_text().splitlines()
    assert [line[8:] for line in lines] == [" one", " two"] and all(time.strptime(line[:8], "%H:%M:%S") for line in lines)
    (run.path / "train.log").unlink()
    (run.path / "train.log").mkdir()
    run.note("nobody needs it to go on")


def test_checkpoints_are_known_by_their_names_oldest_first(tmp_path):
    ours = ["epoch-0000-step-000010", "epoch-0001", "epoch-0001-step-000002", "epoch-0002", "epoch-10000"]
    for name in [*ours, ".epoch-0003-x", "epoch-3", "epoch-0003-x", "epoch-0003-step-1", "epochs", "xepoch-0001"]:
        (tmp_path / name).mkdir()
    assert {path.name for path in checkpoints(tmp_path)} == set(ours)
    assert [path.name for path in checkpoints(tmp_path)][:4] == ours[:4] and checkpoints(tmp_path / "none") == []


# --- who writes


def test_one_writer_at_a_time_and_an_attempt_of_its_own(run):
    assert not written(run.path)
    with run.writing() as one:
        assert run.attempt == one and len(one) == 32 and written(run.path)
        with pytest.raises(UserError, match=r"runs/r"), run.writing():
            pass
        assert run.attempt == one
    assert not written(run.path) and run.attempt == one, "a worker that outlives it still finds it"
    with run.writing() as two:
        assert run.attempt == two != one
    assert run.hand_over("other") == str(run.path) and run.attempt == "other"
    with pytest.raises(KeyboardInterrupt) as caught, run.writing():
        raise KeyboardInterrupt
    assert caught.value.__notes__ == ["statten resume r"]


def test_a_lock_that_leads_elsewhere_says_nothing(run, tmp_path):
    (run.path / ".lock").symlink_to(tmp_path / "elsewhere")
    assert not written(run.path) and not (tmp_path / "elsewhere").exists()
    (run.path / ".lock").unlink()
    os.mkfifo(run.path / ".lock")
    assert not written(run.path), "and a pipe is not waited for"


def test_a_kind_of_its_own_has_its_own_marker(work, config):
    class Other(RunFolder):
        marker, noun = "sweep.json", "sweep"

    made = Other._make(work / "s", config, {"study": "s"}, None, lambda aside: (aside / "x").touch())
    assert (
        isinstance(made, Other) and made.info["kind"] == "sweep" and made.info["study"] == "s" and (work / "s" / "x").exists()
    )
    with pytest.raises(UserError, match="no such sweep"):
        Other.open(work / "none")
