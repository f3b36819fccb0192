"""The package as a notebook sees it: names, their help, changed configs, results that show themselves."""

import doctest
import inspect
import pydoc
from pathlib import Path

import pytest
from evaluated import TINY, make_run
from sweeps import drive, new

import statten
from statten.errors import ConfigError, UserError
from statten.storage.run import Run

FUNCTIONS = [name for name in statten.__all__ if name != "Config"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_takes_gives_and_raises(name):
    function = getattr(statten, name)
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{section}\n" in text, f"{name} has no {section}"
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in text, f"{name} does not say what {parameter} is"


def test_help_shows_every_name():
    assert set(statten.__all__) <= set(dir(statten))
    shown = pydoc.plain(pydoc.render_doc(statten))
    for name in statten.__all__:
        assert f"    {name}(" in shown or f"class {name}(" in shown, name
    assert "name of the new run in the storage" in shown and '>>> statten.load_model("first")' not in shown
    assert ">>> model = statten.load_model" in shown


@pytest.mark.slow
def test_the_examples_run(work, ray, monkeypatch):
    """In one folder, in the order that they build on each other."""
    monkeypatch.setattr("statten.display.console.stderr", True)  # stdout is what a doctest compares
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in ("Config", "load_config", "build_model", "fit", "train", "tune", "promote", "evaluate", "load_model"):
        (example,) = finder.find(getattr(statten, name), name, globs={})
        assert example.examples, name
        assert runner.run(example).failed == 0, name
    assert {path.name for path in (work / "runs").iterdir() if path.is_dir()} == {"first", "small", "longer"}


def test_a_config_is_replaced_by_paths_of_its_fields():
    config = statten.load_config("digits")
    changed = config.replace({"model.depth": 1, "train.epochs": 2})
    assert (changed.model.depth, changed.train.epochs) == (1, 2) and config.replace(["model.depth=1"]).model.depth == 1
    assert config == statten.load_config("digits") and changed.replace({}) == changed
    with pytest.raises(ConfigError, match=r"model\.dept: no such field; did you mean model\.depth\?"):
        config.replace({"model.dept": 1})
    with pytest.raises(ConfigError, match="`block_size` must be at most `timesteps`"):
        config.replace({"model.block_size": 50})
    assert statten.build_model(changed).config == changed.model


def test_runs_sweeps_and_evaluations_show_themselves(tmp_path):
    run = make_run(tmp_path / "run", **{name.replace(".", "__"): value for name, value in TINY.items()})
    assert "10.00 % at epoch 1" in run._repr_html_() and "unfinished" in run._repr_html_()
    assert "1 of" in run._repr_html_()
    (tmp_path / "run").rename(tmp_path / "a-b")
    report = statten.evaluate("a-b", storage=tmp_path)
    shown = report._repr_html_()
    assert "top-1" in shown and "mean over classes" in shown and f"{report['top1']:.2f} %" in repr(report)
    sweep = new(tmp_path / "swept", {"model.depth": {"choices": [1, 2]}}, trials=2, scheduler="none", train__epochs=1)
    assert "0 of 2" in sweep._repr_html_()
    drive(sweep)
    assert "2 of 2" in sweep._repr_html_() and "best trial" in sweep._repr_html_() and "val/top1" in sweep._repr_html_()


def test_names_paths_and_objects_are_the_same_target(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs" / "mine", **{name.replace(".", "__"): value for name, value in TINY.items()})
    monkeypatch.setenv("STATTEN_STORAGE", str(tmp_path / "runs"))
    folders = {statten.evaluate(target)["folder"] for target in ("mine", str(run.path), run.path, run, Run(run.path))}
    assert len({Path(folder).name for folder in folders}) == 1
    other = statten.evaluate("mine", output=str(tmp_path / "out"))
    assert Path(other["folder"]).parent == tmp_path / "out"


def test_what_is_wrong_is_a_sentence(tmp_path, monkeypatch):
    make_run(tmp_path / "mine", **{name.replace(".", "__"): value for name, value in TINY.items()})
    monkeypatch.setenv("STATTEN_STORAGE", str(tmp_path))
    for call, sentence in [
        (lambda: statten.train("digitz"), r"no recipe or file is called 'digitz'; did you mean digits\?"),
        (lambda: statten.train("digits", name="mine"), "mine: exists already"),
        (lambda: statten.train("digits", name="a b"), "--name: must be letters, digits"),
        (lambda: statten.train("digits", storage=tmp_path / "mine" / "run.json"), "--storage: must be a folder"),
        (lambda: statten.tune("digits", "nowhere"), "--space: no such file: nowhere"),
        (lambda: statten.tune("digits", {"model.dept": {"int": [1, 2]}}), r"model\.dept: no such field"),
        (lambda: statten.tune("digits", {"model.depth": {"int": [1, 2]}}, trials=0), r"search\.trials: must be at least 1"),
        (lambda: statten.promote("min"), r"min: no such run or sweep in .*; did you mean mine\?"),
        (lambda: statten.promote("mine", trial=3), "--trial: .*mine is no sweep"),
        (lambda: statten.promote("mine", {"model.depth": 2}, name="other"), r"model\.depth=1 must stay as in"),
        (lambda: statten.evaluate("min"), r"did you mean mine\?"),
        (lambda: statten.load_model("min"), r"did you mean mine\?"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            call()
        assert len(caught.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_path_as_a_name_is_the_new_folder(tmp_path):
    (tmp_path / "there").mkdir()
    for name in (tmp_path / "there", str(tmp_path / "there")):
        with pytest.raises(UserError, match="there: exists already"):
            statten.train("digits", name=name)
