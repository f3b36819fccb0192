"""A study that disagrees with its trials' folders: the folders are right, and no finished trial is trained over."""

import json
import re
import shutil

import pytest
from optuna.trial import TrialState, create_trial
from sweeps import TIMES, drive, new, states

from statten.config import get_field, load_config
from statten.errors import UserError
from statten.files import write_json
from statten.report.overview import overview
from statten.search.searcher import OptunaSearcher
from statten.search.sweep import Sweep
from statten.search.transfer import take_over
from statten.space.loading import make_space
from statten.training.worker import run_fit

SEED = 1
"""One with which the first four draws are four configurations."""


def told(sweep):
    """What the study says of each trial that was run."""
    return [(t.number, t.state, t.values, t.user_attrs["point"], t.intermediate_values) for t, _ in sweep.rows()]


def curves(sweep):
    """Metrics and times of every folder: what training over one would change."""
    return {number: (run.path / "metrics.jsonl").read_text() for number, run in sweep.folders().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished sweep of four trials, and its journal as it was after each of them."""
    sweep = new(tmp_path_factory.mktemp("trained") / "s", trials=4, sampler="random", scheduler="none", seed=SEED)
    journals = [(sweep.path / "study.journal").read_bytes()]
    for _ in range(4):
        drive(sweep, 1)
        journals.append((sweep.path / "study.journal").read_bytes())
    return sweep, journals


@pytest.fixture
def sweep(trained, tmp_path):
    """A copy of it."""
    return Sweep(shutil.copytree(trained[0].path, tmp_path / "s"))


@pytest.mark.parametrize("kept", range(4))
def test_a_study_older_than_its_folders_is_brought_up_to_them(trained, sweep, kept):
    before, texts = told(sweep), curves(sweep)
    (sweep.path / "study.journal").write_bytes(trained[1][kept])
    searcher = drive(sweep)
    assert told(sweep) == before and curves(sweep) == texts
    what = "trial 3" if kept == 3 else f"{4 - kept} trials"
    assert searcher.rebuilt == [f"the study was behind the trials' folders: {what} taken from there"]
    assert drive(sweep).rebuilt == []


@pytest.mark.parametrize("lost", ["emptied", "removed", "half a line"])
def test_a_lost_study_is_made_again_by_resume_alone(trained, sweep, lost):
    before, journal = told(sweep), sweep.path / "study.journal"
    journal.unlink() if lost == "removed" else journal.write_bytes(b"" if lost == "emptied" else b'{"op_code": 4, "wor')
    text = journal.read_bytes() if journal.exists() else None
    for read in (sweep.study, sweep.best):
        with pytest.raises(UserError, match=rf"make it again from the trials' folders: statten resume {sweep.path}"):
            read()
    assert (journal.read_bytes() if journal.exists() else None) == text, "a reader made or changed the study"
    drive(sweep)
    assert told(sweep) == before


def test_unfinished_trials_go_on_and_numbers_without_a_folder_stay_empty(sweep):
    (sweep.path / "study.journal").unlink()
    shutil.rmtree(sweep.trial(1).path)
    for name in ("result.json", "checkpoints/epoch-0002"):
        path = sweep.trial(2).path / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    point = sweep.space.point_of(sweep.trial(2).config)
    drive(sweep)
    trials = sweep.study().trials
    assert states(sweep) == ["COMPLETE"] * 4, "three of before and another for the one that is lost"
    assert trials[1].state == TrialState.FAIL and trials[1].user_attrs["lost"]
    assert trials[2].user_attrs["point"] == point and len(sweep.trial(2).metrics()) == 2


def test_a_folder_of_another_configuration_is_refused_by_resume_and_best(sweep):
    first, second = (sweep.path / "trials" / name for name in ("0000", "0001"))
    first.rename(sweep.path / "trials" / "aside")
    second.rename(first)
    (sweep.path / "trials" / "aside").rename(second)
    texts = curves(sweep)
    with pytest.raises(UserError, match=r"trial 0 differs in model\..*; trial 1 differs in .*set it aside: mv .*study.journal"):
        drive(sweep)
    number = sweep.best_trial().number
    if number in (0, 1):
        with pytest.raises(UserError, match=f"trial {number} differs in"):
            sweep.best()
    (sweep.path / "study.journal").rename(sweep.path / "study.journal.old")
    drive(sweep)
    assert curves(sweep) == texts and states(sweep) == ["COMPLETE"] * 4
    for trial, point in sweep.rows():
        assert all(get_field(sweep.trial(trial.number).config, path) == value for path, value in point.items())


def test_a_folder_older_than_its_study_stops_nothing_but_is_not_taken_for_the_best(sweep):
    number = sweep.best_trial().number
    run = sweep.trial(number)
    rows = run.metrics()
    (run.path / "result.json").unlink()
    shutil.rmtree(run.checkpoint_folder / "epoch-0002")
    (run.path / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    before = told(sweep)
    older = f"trial {number} is finished, but its folder is older; finish that with: {run.resume_command}"
    assert drive(sweep).rebuilt == [older] and told(sweep) == before
    with pytest.raises(UserError, match=re.escape(older)):
        sweep.best()
    with run.writing() as attempt:
        run_fit(run, attempt, threads=1)
    again = [{k: v for k, v in row.items() if not k.startswith(("seconds", "samples_per", "time"))} for row in run.metrics()]
    assert again == [{k: v for k, v in row.items() if not k.startswith(("seconds", "samples_per", "time"))} for row in rows]
    assert sweep.best()["trial"] == number


def test_a_config_that_was_edited_names_its_fields(sweep):
    text = (sweep.path / "config.yaml").read_text()
    (sweep.path / "config.yaml").write_text(text.replace("epochs: 2", "epochs: 3"))
    with pytest.raises(
        UserError, match=r"config.yaml: was edited after its trials were made: train.epochs differ from trial 0"
    ):
        drive(Sweep(sweep.path))


def test_a_damaged_folder_takes_no_other_along(sweep):
    (sweep.path / "study.journal").unlink()
    (sweep.trial(1).path / "config.yaml").write_text("model: {dep")
    (sweep.trial(3).path / "result.json").write_text("5")
    searcher = drive(sweep)
    assert searcher.rebuilt[1].startswith("trial 1 is left out: ") and "config.yaml" in searcher.rebuilt[1]
    assert states(sweep) == ["COMPLETE"] * 4 and sweep.trial(3).state == "finished"
    write_json(sweep.trial(0).path / "result.json", [])
    assert [(row["name"], row["progress"]) for row in overview(sweep.path.parent)] == [("s", "4/4 trials")]


def test_taken_over_trials_come_back_without_being_touched(trained, tmp_path):
    source, sweep = trained[0], new(tmp_path / "s", trials=1, sampler="random", scheduler="none")
    take_over(sweep, source)
    before, texts = told(sweep), curves(source)
    (sweep.path / "study.journal").unlink()
    searcher = OptunaSearcher(sweep, "attempt")
    assert len(searcher.unfinished) == 4
    drive(sweep)
    assert told(sweep)[:4] == before and curves(source) == texts and len(states(sweep)) == 5


def test_a_database_of_a_relative_path_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("digits", {"search.storage": "sqlite:///studies.db"})
    sweep = Sweep.create(tmp_path / "s", config, make_space(TIMES, config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Sweep(sweep.path).study().study_name == "s" and not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "studies.db").unlink()
    with pytest.raises(UserError, match=r"studies.db is not there \(search.storage\); make it again"):
        Sweep(sweep.path).study()
    assert not (tmp_path / "studies.db").exists()
    assert Sweep(sweep.path).study(create=True).trials == []


def test_a_damaged_line_of_metrics_hides_no_other(sweep):
    run = sweep.trial(0)
    rows, best = run.metrics(), run.best_checkpoint()
    lines = [json.dumps(row) for row in rows]
    (run.path / "metrics.jsonl").write_text(f"{lines[0]}\n\xff\x00{lines[1][:20]}\n{lines[1]}\n", encoding="latin-1")
    assert run.metrics() == rows and run.damaged_lines == 1 and run.best_checkpoint() == best
    worst = next(row for row in rows if row["epoch"] != int(best.name[-4:]))
    (run.path / "metrics.jsonl").write_text(f"damaged\n{json.dumps(worst)}\n")
    assert run.best_checkpoint() == best, "result.json knows"
    (run.path / "result.json").unlink()
    assert run.best_checkpoint() == best, "and so does the newest checkpoint"
    write_json(run.path / "result.json", {"state": "finished", "best": {"epoch": int(best.name[-4:])}})
    shutil.rmtree(best)
    with pytest.raises(UserError, match=f"the checkpoint of its best epoch, {best.name}, is not there"):
        run.best_checkpoint()


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("point", 3, "trial 4: user_attrs.point must be a JSON object, but got 3"),
        ("reason", ["a"], "trial 4: user_attrs.reason must be text"),
        ("memory_bytes", "a lot", "trial 4: user_attrs.memory_bytes must be a whole number"),
        ("source", 7, "trial 4: user_attrs.source must be text, but got 7"),
    ],
)
def test_a_study_that_holds_something_else_is_named(attribute, value, words, sweep):
    sweep.study().add_trial(create_trial(state=TrialState.FAIL, user_attrs={attribute: value}))
    with pytest.raises(UserError, match=re.escape(f"study.journal: {words}")):
        Sweep(sweep.path).study()
    (row,) = overview(sweep.path.parent)
    assert row["state"] == "damaged" and words in row["problem"]


def test_a_trial_with_other_values_than_objectives_is_named(sweep):
    journal = sweep.path / "study.journal"
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    told = next(line for line in lines if line["op_code"] == 6 and line["trial_id"] == 2)
    for values in (["90"], [1.0, 2.0]):
        told["values"] = values
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UserError, match=r"study.journal: trial 2: (values.0 must be a number|must have 1 values)"):
            Sweep(sweep.path).best()
