"""How a command goes on under the name of a run or sweep that is begun already."""

import pytest
from evaluated import TINY

from statten.cli.resume import begun, ended
from statten.config import load_config, with_overrides
from statten.errors import UserError
from statten.search.samplers import trials_of
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.run import Run
from statten.training.worker import run_fit

SMALL = {**TINY, "data.fraction": 0.1, "scale.neuron_backend": "torch"}


def test_a_run_goes_on_under_its_name(work, typed):
    config = load_config("digits", {**SMALL, "train.epochs": 1})
    assert not begun(work / "r", config)
    run = Run.create(work / "r", config)
    assert begun(run.path, config) and not ended(run.path)
    with pytest.raises(
        UserError, match=r"r is another run, for it differs in model.depth, train.epochs; choose another --name"
    ):
        begun(run.path, load_config("digits", {**SMALL, "train.epochs": 2, "model.depth": 2}))
    with run.writing() as attempt:
        run_fit(run, attempt, threads=1)
    assert ended(run.path)
    settings = [word for field, value in {**SMALL, "train.epochs": 1}.items() for word in ("--set", f"{field}={value}")]
    line = ["train", "digits", *settings, "--name", "r", "--storage", work]
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    code, out, _ = typed(*line, "--resume")
    assert code == 0 and f"{run.path}: is finished" in out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    code, _, err = typed(*line)
    assert code == 2 and "exists already" in err
    code, _, err = typed(*line, "--set", "train.lr=0.5", "--resume")
    assert code == 2 and "it differs in train.lr" in err


def test_a_sweep_goes_on_under_its_name(tmp_path):
    config = load_config("digits")
    space = make_space({"model.depth": {"int": [1, 2]}}, config)
    counted = with_overrides(config, {"search.trials": trials_of(config.search, space)})  # as `tune` does
    sweep = Sweep.create(tmp_path / "s", counted, space)
    assert begun(sweep.path, config, space) and not ended(sweep.path)
    with pytest.raises(UserError, match="s is another sweep, for it differs in the search space"):
        begun(sweep.path, config, make_space({"model.depth": {"int": [1, 3]}}, config))
    with pytest.raises(UserError, match=r"holds no run\.json"):
        begun(sweep.path, config)
    sweep.study().set_user_attr("ended", sweep.trials)
    assert ended(sweep.path)


def test_a_sweep_with_a_database_of_a_relative_path_goes_on_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("digits", {"search.storage": "sqlite:///studies.db", "search.trials": 2})
    space = make_space({"model.depth": {"int": [1, 2]}}, config)
    sweep = Sweep.create(tmp_path / "s", config, space)
    assert begun(sweep.path, config, space), "the path was made absolute when the sweep was"
