"""What rank 0 writes of a run, epoch by epoch: the order, what is kept, what a viewer sees, waiting for storage."""

import errno
import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from evaluated import TINY
from states import a_state, next_epoch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from statten.config import load_config
from statten.errors import Superseded
from statten.storage import checkpoint
from statten.storage.events import PREFIX, tag
from statten.storage.run import Run
from statten.storage.writer import RunWriter, logging_to


@pytest.fixture
def run(tmp_path) -> Run:
    config = load_config("digits", {**TINY, "train.epochs": 9, "train.keep_checkpoints": 2, "scale.storage_seconds": 20,
                                    "model.neuron": {"mlp": "plif"}})  # fmt: skip
    return Run.create(tmp_path / "run", config, {"point": {"train.weight_decay": 0.1}})


@pytest.fixture
def attempt(run):
    with run.writing() as attempt:
        yield attempt


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def kept(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoint_folder.iterdir())


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.path))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_epoch_is_its_checkpoint_then_its_metrics_then_what_a_viewer_sees(run, attempt, monkeypatch):
    seen, heard, state = [], [], a_state()
    writer = RunWriter(run, run.config, attempt, then=lambda row: heard.append((kept(run), rows(run)[-1] == row)))
    writer.classes = ("cat", "dog")
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a: (seen.append((run.path / "metrics.jsonl").exists()), save(*a))[1])
    writer.begin(state)
    assert not (run.path / "metrics.jsonl").exists() and not list(run.path.glob(f"{PREFIX}*")), "nothing to tell yet"
    for top1 in (30.0, 10.0, 20.0, 15.0):
        next_epoch(state, top1)
        writer.epoch(state)
    assert seen == [False, True, True, True], "metrics were written before the first checkpoint that they speak of"
    assert [row["val/top1"] for row in rows(run)] == [30.0, 10.0, 20.0, 15.0]
    assert kept(run) == ["epoch-0001", "epoch-0003", "epoch-0004"], "the best one and the newest two"
    assert [names[-1] for names, same in heard if same] == ["epoch-0001", "epoch-0002", "epoch-0003", "epoch-0004"]
    saved = json.loads((run.checkpoint_folder / "epoch-0003" / "state.json").read_text())
    assert saved["classes"] == ["cat", "dog"] and saved["config"]["train"]["epochs"] == 9
    writer.close(failed=False)
    shown = scalars(run)
    assert shown[tag("val/top1")] == [(1, 30.0), (2, 10.0), (3, 20.0), (4, 15.0)] and "epoch" not in shown
    assert shown[tag("best/top1")] == [(epoch, 30.0) for epoch in (1, 2, 3, 4)]


def test_other_ranks_write_nothing_and_hear_everything(run, attempt):
    heard, state = [], a_state()
    before = sorted(run.path.rglob("*"))
    writer = RunWriter(run, run.config, "another attempt", 1, heard.append, lambda: True)
    writer.begin(state)
    assert writer.step(state, 5) is True
    writer.checkpoint(state)
    next_epoch(state)
    writer.epoch(state)
    writer.end(state)
    writer.close(failed=False)
    assert heard == [state.metrics] and heard[0] is not state.metrics and sorted(run.path.rglob("*")) == before


def test_where_the_epoch_is_is_told_a_few_times_a_second(run, attempt, monkeypatch):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    state.epoch = 2
    for state.step, clock[0] in ((1, 100.0), (2, 100.4), (3, 100.5), (4, 100.6)):
        assert writer.step(state, 7) is False
        told = json.loads((run.path / "progress.json").read_text())
        assert told.pop("time") == pytest.approx(time.time(), abs=60)
        assert told == {"epoch": 2, "epochs": run.config.train.total_epochs, "step": 1 if state.step < 3 else 3, "steps": 7}
    shutil.rmtree(run.path)
    clock[0] = 200.0
    assert writer.step(state, 7) is False, "nobody needs it to go on"


def test_a_checkpoint_inside_an_epoch(run, attempt):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    state.step = 3
    writer.checkpoint(state)
    assert kept(run) == ["epoch-0000-step-000003"] and not (run.path / "metrics.jsonl").exists()


def test_what_is_written_agrees_with_where_training_goes_on(run, attempt):
    """Killed after its third epoch; the newest sound checkpoint is the second epoch's."""
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    writer.begin(state)
    for top1 in (10.0, 30.0, 20.0):
        next_epoch(state, top1)
        writer.epoch(state)
        if state.epoch == 2:
            metrics, best = state.metrics, state.best
    writer.close(failed=True)
    run.fail("killed")
    (run.checkpoint_folder / ".epoch-0004-abcdefgh").mkdir()
    (run.checkpoint_folder / ".epoch-0005").write_text("no folder: it cannot be removed as one")
    state.epoch, state.metrics, state.best = 2, metrics, best
    again = RunWriter(run, run.config, attempt)
    again.begin(state)
    assert [row["epoch"] for row in rows(run)] == [1, 2] and run.result is None
    assert ".epoch-0004-abcdefgh" not in kept(run), "a half checkpoint that nobody reads is left"
    next_epoch(state, 40.0)
    again.epoch(state)
    again.close(failed=False)
    assert [row["val/top1"] for row in rows(run)] == [10.0, 30.0, 40.0]
    assert scalars(run)[tag("val/top1")] == [(1, 10.0), (2, 30.0), (3, 40.0)], "what a viewer saw of the third epoch is gone"


@pytest.mark.parametrize("lost", ["the last row", "all rows"])
def test_the_last_finished_epoch_comes_from_the_checkpoint(lost, run, attempt):
    """A crash may have struck between the two."""
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    for top1 in (10.0, 30.0):
        next_epoch(state, top1)
        writer.epoch(state)
    writer.close(failed=True)
    whole = (run.path / "metrics.jsonl").read_text()
    if lost == "all rows":
        (run.path / "metrics.jsonl").unlink()
    else:
        (run.path / "metrics.jsonl").write_text(whole.splitlines(keepends=True)[0] + whole.splitlines()[1][:20])
    writer = RunWriter(run, run.config, attempt)
    writer.begin(state)
    writer.close(failed=False)
    assert rows(run) == [json.loads(line) for line in whole.splitlines()][-1 if lost == "all rows" else 0 :]


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_row_that_the_run_is_judged_by_comes_from_the_checkpoint(damaged, run, attempt, caplog):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    for top1 in (10.0, 30.0, 20.0):
        next_epoch(state, top1)
        writer.epoch(state)
    writer.close(failed=True)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[damaged - 1] = "{damaged\n"
    (run.path / "metrics.jsonl").write_text("".join(lines))
    writer = RunWriter(run, run.config, attempt)
    with caplog.at_level(logging.WARNING, "statten"):
        writer.begin(state)
    assert [row["epoch"] for row in rows(run)] == ([2, 3] if damaged == 1 else [1, 2, 3])
    assert "metrics.jsonl: 1 damaged lines are left out" in caplog.text
    # Where the best epoch is the last one, or is to be trained again, it is not there twice.
    state.epoch, state.metrics = 1, {**state.metrics, "epoch": 1}
    (run.path / "metrics.jsonl").write_text("{damaged\n" + lines[2])
    writer.begin(state)
    assert [row["epoch"] for row in rows(run)] == [1]
    state.epoch, state.metrics = 2, state.best
    (run.path / "metrics.jsonl").write_text(lines[0] + "{damaged\n" + lines[2])
    writer.begin(state)
    assert [row["epoch"] for row in rows(run)] == ([2] if damaged == 1 else [1, 2])


def test_the_end_names_the_best_checkpoint(run, attempt):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    for top1 in (10.0, 30.0, 20.0):
        next_epoch(state, top1)
        writer.step(state, 3)
        writer.epoch(state)
    assert (run.path / "progress.json").exists()
    writer.end(state)
    writer.close(failed=False)
    result = dict(run.result)
    time.strptime(result.pop("ended"), "%Y-%m-%dT%H:%M:%SZ")
    best = {**rows(run)[1], "checkpoint": "checkpoints/epoch-0002"}
    assert result == {"state": "finished", "epochs": 3, "seconds": 3.0, "best": best, "last": rows(run)[2]}
    assert not (run.path / "progress.json").exists() and run.best_checkpoint().name == "epoch-0002"
    lines = (run.path / "metrics.jsonl").read_text().replace('"seconds": 1.0', '"other": 1.0', 1)
    (run.path / "metrics.jsonl").write_text(lines)
    writer.end(state)
    assert run.result["seconds"] == 2.0, "of an older version one row knows no time"


# --- storage


def test_storage_that_is_away_is_waited_for_and_nothing_is_made_in_its_place(run, attempt, caplog):
    state, writer, elsewhere = a_state(), RunWriter(run, run.config, attempt), run.path.with_name("elsewhere")
    next_epoch(state)
    os.rename(run.path, elsewhere)
    run.path.mkdir()  # an empty mount point

    def put_back() -> None:
        while "waiting for the storage" not in caplog.text:
            time.sleep(0.01)
        run.path.rmdir()
        os.rename(elsewhere, run.path)

    thread = threading.Thread(target=put_back)
    with caplog.at_level(logging.WARNING, "statten"):
        thread.start()
        writer.epoch(state)
    thread.join()
    writer.close(failed=False)
    waiting, back = (record.message for record in caplog.records if "storage" in record.message)
    assert waiting.startswith("waiting for the storage, up to 20 s (scale.storage_seconds): ") and str(run.path) in waiting
    assert back.startswith("the storage is back after ") and kept(run) == ["epoch-0001"] and len(rows(run)) == 1


def test_how_long_storage_is_waited_for(run, attempt, monkeypatch, caplog):
    state, writer, clock, pauses = a_state(), RunWriter(run, run.config, attempt), [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    (run.path / "run.json").unlink()
    for seconds, expected in ((60.0, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]), (15.5, [0.5, 1.0, 2.0, 4.0, 8.0])):
        writer.config = load_config("digits", {**TINY, "scale.storage_seconds": seconds})
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "statten"),
            pytest.raises(FileNotFoundError, match="the run's folder is not there"),
        ):
            writer.checkpoint(state)
        assert pauses == expected, "pauses grow to a quarter of a minute, until the time is over"
        assert caplog.text.count("waiting for the storage") == 1
        pauses.clear()


def test_a_full_disk_and_a_newer_attempt_are_not_waited_for(run, attempt, monkeypatch):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(OSError, match="No space left"):
            writer.checkpoint(state)
    with pytest.raises(Superseded, match=r"run: a newer attempt writes this run; this one stops"):
        RunWriter(run, run.config, "older").checkpoint(state)


def test_events_that_could_not_be_written_are_begun_anew(run, attempt, monkeypatch):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    next_epoch(state, 10.0)
    writer.epoch(state)
    events = type(writer._events._writer)
    flush, failures = events.flush, []

    def fail_once(self) -> None:
        if not failures:
            failures.append(1)
            raise OSError(errno.EIO, "Input/output error")
        flush(self)

    monkeypatch.setattr(events, "flush", fail_once)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    next_epoch(state, 20.0)
    writer.epoch(state)
    writer.close(failed=False)
    assert failures and scalars(run)[tag("val/top1")] == [(1, 10.0), (2, 20.0)] and len(rows(run)) == 2


def test_an_end_that_no_viewer_hears_of_ends_all_the_same(run, attempt, monkeypatch):
    state, writer = a_state(), RunWriter(run, run.config, attempt)
    next_epoch(state)
    writer.epoch(state)

    def away(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer._events._writer.file_writer, "add_summary", away)
    writer.close(failed=False)
    writer.close(failed=False)


def test_lines_of_rank_0_go_to_the_log_too(tmp_path):
    log, before = logging.getLogger("statten"), logging.getLogger("statten").level
    with logging_to(tmp_path / "train.log", 1):
        log.warning("of rank 1")
    assert not (tmp_path / "train.log").exists()
    with logging_to(tmp_path / "train.log", 0):
        log.info("a choice: é")
        assert log.level == logging.INFO
    log.warning("after it")
    (line,) = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert line[8:] == " a choice: é" and time.strptime(line[:8], "%H:%M:%S") and log.level == before
    assert not any(getattr(handler, "baseFilename", "").startswith(str(tmp_path)) for handler in log.handlers)
    with logging_to(Path(tmp_path / "away" / "train.log"), 0):
        log.warning("the storage is away; this is on the screen alone")


def test_a_worker_that_was_replaced_and_comes_back_writes_nothing_more(run, attempt):
    """Of the same attempt: it stood still, another one went on from the newest checkpoint, and it goes on in mid-epoch."""
    first, late = (RunWriter(run, run.config, attempt) for _ in range(2))
    state = a_state()
    first.begin(state)
    next_epoch(state)
    first.epoch(state)
    second = RunWriter(run, run.config, attempt)
    second.begin(state)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for write in (first.epoch, first.checkpoint, first.end, first._append_row):
        with pytest.raises(Superseded, match="another worker took the place of this one"):
            write(state)
    with pytest.raises(Superseded, match="another worker"):
        late.begin(state)  # it stood still before its first step
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    next_epoch(state)
    second.epoch(state)
    assert [row["epoch"] for row in rows(run)] == [1, 2]
    second.close(False)
