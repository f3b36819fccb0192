"""A sweep whose driver is killed with -9 is finished by `resume`: nothing twice, nothing lost, finished trials untouched."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import optuna
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from statten.cluster.session import free_port
from statten.config import load_config
from statten.errors import Failed
from statten.search import resume_sweep
from statten.search.searcher import OptunaSearcher
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.events import tag
from statten.storage.run import Run
from statten.training.worker import run_fit

SPACE = """\
model.timesteps:  {choices: [1, 2]}
model.block_size: {divisors_of: model.timesteps}
model.depth:      {int: [1, 2]}
model.embed_dim:  {int: [32, 64], step: 32}
"""
TRIALS, EPOCHS = 6, 3
BASE = f"--set train.epochs={EPOCHS} --set train.warmup_epochs=0 --set search.startup_trials=3"


def states(sweep):
    return {trial.number: trial.state.name for trial, _ in sweep.rows()}


def untouched(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_that_is_then_unfinished(statten, tmp_path):
    """With a handler of its own Ray Tune would return; what was stopped so must not pass for a finished sweep."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    words = ("--trials", 2, "--set", "train.epochs=400", "--set", "train.warmup_epochs=0", "--name", "s", "--storage", tmp_path)
    command = statten("tune", "digits", "--space", space, *words)
    command.wait_until(lambda: list((tmp_path / "s").glob("trials/*/metrics.jsonl")))
    command.process.send_signal(signal.SIGINT)
    assert "go on with: statten resume s --storage" in command.finish(code=130)
    sweep = Sweep.open(tmp_path / "s")
    assert not sweep.ended and "RUNNING" in states(sweep).values()


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_resume(statten, done, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    arguments = ("tune", "digits", "--space", space, "--trials", TRIALS, *BASE.split(), "--name", "s", "--storage", tmp_path)
    first = statten(*arguments)
    folder = tmp_path / "s"
    first.wait_until(lambda: len(list(folder.glob("trials/*/result.json"))) >= 3)
    first.kill()
    plan = rf"^{TRIALS} trials of \d+ configurations, \d+ at a time, at most {TRIALS * EPOCHS} epochs\ncost: "
    assert re.search(plan, first.text, re.M)

    sweep = Sweep.open(folder)
    ended = {n for n, state in states(sweep).items() if state != "RUNNING"}
    assert 0 < len(ended) < TRIALS
    before = {n: untouched(sweep.trial(n).path) for n in ended}
    statten("resume", "s", "--storage", tmp_path).finish()

    after = states(sweep)
    assert len(after) == TRIALS and set(after.values()) <= {"COMPLETE", "PRUNED"} and "COMPLETE" in after.values()
    assert {n: untouched(sweep.trial(n).path) for n in ended} == before, "finished trials are not touched"
    for trial, point in sweep.rows():
        run = sweep.trial(trial.number)
        rows = [row["epoch"] for row in run.metrics()]
        assert rows == list(range(1, len(rows) + 1)), "no epoch is trained to its end twice"
        assert sorted(trial.intermediate_values) == rows
        assert point["model.timesteps"] % point["model.block_size"] == 0
        assert run.state == {"COMPLETE": "finished", "PRUNED": "stopped"}[after[trial.number]]
        if after[trial.number] == "COMPLETE":
            assert len(rows) == EPOCHS and trial.value == run.result["best"]["val/top1"]
        events = EventAccumulator(str(run.path)).Reload()
        assert [event.step for event in events.Scalars(tag("val/top1"))] == rows
        shown = {tag(metric) for metric in ("train/loss", "val/loss", "lr", "samples_per_second", "firing_rate/head")}
        assert shown <= set(events.Tags()["scalars"])
        assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)

    best = json.loads(done("best", "s", "--storage", tmp_path, "--json"))
    assert {"trial", "config", "metrics", "checkpoint"} <= set(best)
    assert best["value"] == max(t.value for t, _ in sweep.rows() if t.state.name == "COMPLETE")
    assert "nothing to resume" in done("resume", "s", "--storage", tmp_path, code=2)
    assert "s: exists already" in done(*arguments, code=2)

    done("extend", "s", "--trials", 1, "--storage", tmp_path)
    assert len(states(sweep)) == TRIALS + 1

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    read = {trial.number: trial.values for trial in optuna.load_study(study_name="s", storage=storage).trials}
    assert all(read[trial.number] == trial.values for trial, _ in sweep.rows()), "Optuna's own tools read the study"


def studies(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
            return json.load(answer)["study_summaries"]
    except OSError:
        return []


@pytest.mark.slow
def test_a_sweep_killed_among_its_repeats_finishes_them_and_a_dashboard_watches(statten, done, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("model.embed_dim: {int: [32, 64], step: 32}\n")
    options = f"{BASE} --set model.depth=1 --set search.scheduler=none --set search.repeats=3 --set search.finalists=2"
    first = statten("tune", "digits", "--space", space, *options.split(), "--trials", 2, "--name", "r", "--storage", tmp_path)
    folder = tmp_path / "r"
    first.wait_until(lambda: (folder / "study.journal").exists() and len(list(folder.glob("trials/*"))) > 0)
    port = free_port()
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    command = [dashboard, "study.journal", "--port", str(port), "--server", "wsgiref", "--quiet"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watching:
        try:
            first.wait_until(lambda: studies(port))
            assert [study["study_name"] for study in studies(port)] == ["r"]
        finally:
            watching.terminate()
    first.wait_until(lambda: len(list(folder.glob("repeats/*/metrics.jsonl"))) >= 1)
    first.kill()

    trials = sorted(states(Sweep.open(folder)))  # two; numbers between them are duplicates, which were not run
    before = {n: untouched(Sweep.open(folder).trial(n).path) for n in trials}
    written = {path.parent: untouched(path.parent) for path in folder.glob("repeats/*/result.json")}
    assert len(written) < 4 and set(states(Sweep.open(folder)).values()) == {"COMPLETE"}
    text = statten("resume", "r", "--storage", tmp_path).finish()
    assert "how sure" in text and {n: untouched(Sweep.open(folder).trial(n).path) for n in trials} == before
    assert {path: untouched(path) for path in written} == written, "finished repeats are not touched"
    repeats = Sweep.open(folder).repeats()
    assert (
        sorted(repeats) == trials
        and len(trials) == 2
        and all(len(r.values) == 3 and len({*r.seeds}) == 3 for r in repeats.values())
    )
    for path in folder.glob("repeats/*"):
        assert [row["epoch"] for row in Run(path).metrics()] == list(range(1, EPOCHS + 1))
    assert "nothing to resume" in done("resume", "r", "--storage", tmp_path, code=2)


def small_sweep(path, **overrides):
    config = load_config("digits", {"train.epochs": 2, "search.trials": 1, "model.embed_dim": 32, **overrides})
    return Sweep.create(path / "s", config, make_space({"model.depth": {"choices": [1]}}, config))


def test_a_trial_killed_between_its_last_epoch_and_its_result_is_completed(tmp_path):
    sweep = small_sweep(tmp_path)
    with sweep.writing() as attempt:
        started = OptunaSearcher(sweep, attempt).suggest("first")
        run_fit(Run(Path(started["run"])), attempt)
    (Path(started["run"]) / "result.json").unlink()
    assert states(sweep) == {0: "RUNNING"}

    resume_sweep(sweep)
    ((trial, _),), run = sweep.rows(), sweep.trial(0)
    assert trial.state.name == "COMPLETE" and run.state == "finished"
    assert sorted(trial.intermediate_values) == [row["epoch"] for row in run.metrics()] == [1, 2]


def test_a_sweep_whose_trials_all_diverge_says_so(tmp_path):
    sweep = small_sweep(tmp_path, **{"train.lr": 1e30, "train.optimizer": "sgd", "search.trials": 2})
    with pytest.raises(Failed, match="no trial reached its end: the loss is not finite after epoch 1"):
        resume_sweep(sweep)
    assert set(states(sweep).values()) == {"FAIL"}
