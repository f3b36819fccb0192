"""A sweep's report agrees with its study, opens without a network, and is made whatever there is to show."""

import csv
import json
import re
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from evaluated import alive

from statten import report as reporting
from statten.config import load_config
from statten.errors import UserError
from statten.files import write_json
from statten.metrics.labels import label
from statten.report import figures, rates
from statten.report.overview import awaited, details, details_table, sweep_summary, watch
from statten.report.sections import build, contour_pair
from statten.report.summary import sentences, summarize
from statten.report.trials import SweepTrials, common_reason
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.checkpoint import save
from statten.storage.run import Run, written
from statten.training.loop import validate

SPACE = {
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 2]},
    "train.lr": {"float": [1.0e-4, 1.0e-2], "log": True},
}
SECTIONS = [
    "Optimisation history", "Importance of the fields", "Parallel coordinates", "Slices", "Timesteps and block size",
    "Learning curves", "Firing rates of the best trials", "Timeline", "Stops and failures", "All trials",
]  # fmt: skip
EPOCHS = 3
STATES = optuna.trial.TrialState
# T, b, depth, lr, state, epochs, top-1 of the last epoch, energy. The fourth is the base config.
TRIALS = [
    (1, 1, 1, 1e-3, STATES.COMPLETE, 3, 80.0, 1.0),
    (2, 2, 1, 2e-3, STATES.COMPLETE, 3, 90.0, 2.0),
    (4, 2, 2, 8e-3, STATES.PRUNED, 1, 30.0, 5.0),
    (2, 1, 1, 4e-3, STATES.COMPLETE, 3, 85.0, 2.5),
    (4, 4, 2, 5e-3, STATES.COMPLETE, 3, 95.0, 6.0),
    (4, 1, 2, 9e-3, STATES.FAIL, 2, 20.0, 5.5),
    (1, 1, 2, 6e-3, STATES.COMPLETE, 3, 75.0, 3.0),
]


def make_sweep(path, objectives=("val/top1", "energy_uj"), trials=TRIALS) -> Sweep:
    fields = {
        "model.timesteps": 2, "model.block_size": 1, "model.depth": 1, "model.embed_dim": 32, "train.epochs": EPOCHS,
        "train.batch_size": 64, "scale.device": "cpu", "search.objectives": list(objectives),
        "search.trials": max(1, len(trials)),
    }  # fmt: skip
    config = load_config("digits", fields)
    sweep = Sweep.create(path, config, make_space(SPACE, config))
    study = sweep.study()
    for number, trial in enumerate(trials):
        add_trial(sweep, study, number, *trial)
    return sweep


def add_trial(sweep, study, number, timesteps, block, depth, lr, state, epochs, top1, energy):
    point = {"model.timesteps": timesteps, "model.block_size": block, "model.depth": depth, "train.lr": lr}
    config = sweep.space.config(point)
    run = Run.create(sweep.trial(number).path, config, {"sweep": sweep.name, "trial": number, "point": point})
    rows = [row(config, epoch, top1 - 10 * (epochs - epoch), energy) for epoch in range(1, epochs + 1)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    reason = {STATES.PRUNED: "stopped at epoch 1: poor", STATES.FAIL: "the loss is <not> finite"}.get(state)
    if state == STATES.COMPLETE:
        write_json(run.path / "result.json", {"state": "finished", "best": rows[-1]})
    found = optuna.trial.create_trial(
        state=state,
        values=[rows[-1][name] for name in sweep.config.search.directions] if state == STATES.COMPLETE else None,
        params=sweep.space.params(point),
        distributions=sweep.space.distributions(point),
        user_attrs={"point": point, **({"reason": reason} if reason else {})},
        intermediate_values={int(r["epoch"]): r["val/top1"] for r in rows},
    )
    found.datetime_start = datetime(2026, 1, 1) + timedelta(minutes=number)
    found.datetime_complete = found.datetime_start + timedelta(minutes=epochs) if state.is_finished() else None
    study.add_trial(found)


def row(config, epoch, top1, energy):
    return {
        "epoch": epoch, "train/loss": 1.0, "train/top1": top1, "val/loss": 2 - top1 / 100, "val/top1": top1, "val/top5": 99.0,
        "energy_uj": energy, "firing_rate/head": 0.1, "lr": config.train.lr, "seconds": 20.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two objectives, a real checkpoint in trial 1, and a duplicate that was not run."""
    made = make_sweep(tmp_path_factory.mktemp("runs") / "s")
    trained = made.trial(1)
    state = alive(trained.config)
    state.epoch = EPOCHS
    state.metrics = state.best = trained.metrics()[-1]
    save(state, trained.checkpoint_folder)
    point = made.study().trials[0].user_attrs["point"]
    attributes = {"point": point, "duplicate_of": 0}
    made.study().add_trial(optuna.trial.create_trial(state=STATES.FAIL, user_attrs=attributes))
    made.study().set_user_attr("ended", made.trials)
    return made


@pytest.fixture(scope="module")
def report(sweep):
    before = untouched(sweep)
    made = reporting.report(sweep)
    assert untouched(sweep) == before, "the sweep is only read"
    return made


def untouched(sweep):
    files = (path for path in sweep.path.rglob("*") if path.is_file() and (sweep.path / "report") not in path.parents)
    return {path: path.read_bytes() for path in files}


def test_the_page_has_every_section_and_loads_nothing(report):
    page = Path(report["files"]["page"]).read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["What was swept", "Pareto front", *SECTIONS]
    assert page.count('class="plotly-graph-div"') >= 10
    body = page[page.rindex("</script>\n</head>") :]
    loads = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)\s*=\s*["']?([^"'> ]+)""", page)
    assert [load for load in loads if not load.startswith("data:")] == []
    assert "@import" not in body and not re.search(r"url\(\s*['\"]?http", body)
    assert page.count("plotly.js v") == 1
    assert "the loss is &lt;not&gt; finite" in body and "stopped at epoch 1: poor" in body
    for name in report["files"]["pictures"]:
        assert Path(name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert len(report["files"]["pictures"]) == 9


def test_the_summary_tells_states_front_and_cost(report):
    assert report["states"] == {"complete": 5, "pruned": 1, "fail": 1} and report["not_run"] == {"duplicate_of": 1}
    assert report["best"] == [4, 1, 0] and report["base"] == 3
    assert report["epochs"] == 18 and report["epochs_saved"] == 2 and report["hours"] == pytest.approx(18 * 20 / 3600)
    assert [command.split()[1] for _, command in report["next"]] == ["promote", "promote", "evaluate", "extend"]


DEAD = "stopped at epoch {}: layer {} is dead, its firing rate is {}"


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (
            [("pruned", DEAD.format(*of)) for of in ((3, "embed.3", "0"), (9, "blocks.0.attn.k", "8.1e-06"))]
            + [("pruned", "stopped at epoch 2: val/top1 50 is not among the best 2 of 8 at this rung"), ("complete", None)],
            "2 of 4 trials were stopped for the same reason: layer … is dead, its firing rate is …",
        ),
        (
            [("pruned", f"stopped at epoch 1: val/top1 {n}.5 is below the median of {n} trials") for n in (5, 6)],
            "2 of 2 trials were stopped for the same reason: val/top1 … is below the median of … trials",
        ),
        ([("fail", "the disk is full")] * 3, "3 of 3 trials failed for the same reason: the disk is full"),
        ([("pruned", DEAD.format(3, "head", 0)), ("complete", None)], None),
        ([("pruned", reason) for reason in ("one", "one", "another", "a third")], None),
        ([("pruned", None), ("fail", None), ("fail", None)], None),
    ],
)
def test_a_reason_that_most_stops_share_is_said(ended, said):
    assert common_reason(ended) == said


def test_the_summary_of_a_sweep_says_what_stopped_most_trials_even_where_none_is_finished(tmp_path, monkeypatch):
    sweep, lines = make_sweep(tmp_path / "poor", ["val/top1"], [TRIALS[2]] * 2), []
    monkeypatch.setattr("statten.report.overview.console.print", lines.append)
    with pytest.raises(UserError, match="no trial is finished yet"):
        sweep_summary(sweep, 0.0)
    sentence = "2 of 2 trials were stopped for the same reason: poor"
    assert lines[-1] == f"  most stops  {sentence}"
    assert f"{sentence}." in sentences(summarize(SweepTrials.read(sweep)))


def test_exports_agree_with_the_study(sweep, report):
    study = sweep.study()
    with open(report["files"]["csv"], newline="") as file:
        lines = list(csv.DictReader(file))
    documents = json.loads(Path(report["files"]["json"]).read_text())
    assert [int(line["number"]) for line in lines] == [d["number"] for d in documents] == list(range(len(TRIALS)))
    for line, document in zip(lines, documents, strict=True):
        trial, run = study.trials[document["number"]], sweep.trial(document["number"])
        values = trial.values if trial.state == STATES.COMPLETE else [None, None]
        assert list(document["values"].values()) == values
        assert [float(line[f"objective:{n}"]) if line[f"objective:{n}"] else None for n in document["values"]] == values
        assert document["point"] == trial.user_attrs["point"]
        assert {path: float(line[path]) for path in document["point"]} == document["point"]
        assert document["metrics"] == run.metrics()[-1] and float(line["best:lr"]) == run.config.train.lr
        assert document["epochs"] == int(line["epochs"]) == len(run.metrics())
        assert document["seconds"] == 20.0 * len(run.metrics()) and document["run"] == str(run.path)
        assert document["reason"] == trial.user_attrs.get("reason") and line["reason"] == (document["reason"] or "")


def test_plots_show_the_study_under_short_names(sweep):
    trials = SweepTrials.read(sweep)
    assert trials.names == {"model.timesteps": "T", "model.block_size": "b", "model.depth": "depth", "train.lr": "lr"}
    front = figures.front(trials, 1, 0)
    drawn = {trace.name: set(zip(trace.x, trace.y, strict=True)) for trace in front.data}
    assert drawn["Pareto front"] == {(1.0, 80.0), (2.0, 90.0), (6.0, 95.0)} and drawn["other trials"] == {
        (2.5, 85.0),
        (3.0, 75.0),
    }
    star = front.data[-1]
    assert (star.name, star.x, star.y) == ("base config (trial 3)", (2.5,), (85.0,)), "the recipe that the sweep began with"
    assert front.layout.xaxis.title.text == label("energy_uj") == "energy per sample (µJ)"
    assert figures.pairs(trials) == [(1, 0)], "what is paid goes to the right, what is got goes up"

    parallel = figures.parallel(trials)
    assert list(parallel.layout.xaxis.ticktext) == [label("val/top1"), label("energy_uj"), "T", "b", "depth", "lr"]
    assert {trace.xaxis for trace in figures.slices(trials, 0).data} == {"x", "x2", "x3", "x4"}
    assert set(figures.importances(trials)[0]) == {"T", "b", "depth", "lr"}

    assert contour_pair(trials) == ("model.timesteps", "model.block_size")
    heat = figures.cells(trials, 0, contour_pair(trials)).data[0]
    assert [list(line) for line in heat.z] == [[80.0, 85.0, None], [None, 90.0, None], [None, None, 95.0]]

    timeline = figures.timeline(trials)
    assert {trace.name: list(trace.y) for trace in timeline.data} == {
        "starting, waiting or interrupted": [0, 1, 2, 3, 4, 5, 6], "finished": [0, 1, 3, 4, 6], "failed": [5],
        "stopped early": [2],
    }  # fmt: skip
    curves = {trace.name: list(trace.y) for trace in figures.curves(trials).data}
    assert curves["trial 4"] == [75.0, 85.0, 95.0] and curves["stopped early"] == [30.0] and curves["failed"] == [20.0]


def test_the_page_says_what_was_swept_and_leads_to_curves_and_evaluations(tmp_path):
    sweep = make_sweep(tmp_path / "a storage" / "s")
    command = ["/bin/statten", "tune", "--space", "digits_events", "digits"]
    about = {"commit": "abc123", "versions": {"torch": "2.0", "timm": None}, "command": command}
    write_json(sweep.path / "environment.json", about)
    evaluated = sweep.trial(4).path / "evaluations" / "digits-T4-b4-0123456789" / "report.html"
    evaluated.parent.mkdir(parents=True)
    evaluated.touch()
    Run.create(tmp_path / "a storage" / "further", sweep.trial(1).config, {"sweep": sweep.name, "trial": 1})
    Run.create(tmp_path / "a storage" / "other", sweep.trial(1).config, {"sweep": "another", "trial": 1})
    made = reporting.report(sweep, tmp_path / "out", rates=False)
    about = dict(made["about"])
    assert about["dataset"].startswith("digits (validation: 0.1") and about["commit"] == "abc123"
    assert about["recipe"] == "digits, with other fields (config.yaml)"
    assert about["versions"] == "torch 2.0" and about["command"] == "statten tune --space digits_events digits"
    assert about["stops early"] == "scheduler auto, firing rates outside 1e-05 to 0.999"
    assert about["sampler"].startswith("tpe, seed 0") and "seed 42" in about["training"] and "lr" not in about["training"]
    page = Path(made["files"]["page"]).read_text()
    for line in ("model.block_size: {divisors_of: model.timesteps}", "train.lr: {float: [0.0001, 0.01], log: true}"):
        assert f"<td>{line}</td>" in page
    assert '<a href="../a%20storage/s/trials/0004/evaluations/digits-T4-b4-0123456789/report.html">on digits-T4-b4</a>' in page
    assert page.count('<a href="#learning-curves" data-trial=') == len(TRIALS) and 'id="learning-curves"' in page
    assert "Trained on from it" in page and ">further</a>" in page and ">other</a>" not in page
    write_json(sweep.path / "environment.json", {"commit": 7})
    assert "commit must be" in dict(summarize(SweepTrials.read(sweep))["about"])["environment"]


def test_an_interruption_is_not_work(sweep):
    row, began = SweepTrials.read(sweep).rows[0], datetime(2026, 1, 1, 12)
    ends = [60, 121, 1000, 1061]  # seconds after the begin; each epoch took 60
    row = replace(row, epochs=[{"epoch": i, "seconds": 60.0, "time": began.timestamp() + end} for i, end in enumerate(ends)])
    assert [[(at - began).total_seconds() for at in span] for span in row.worked] == [[0, 121], [940, 1061]]
    old = replace(row, epochs=[{"epoch": 1, "seconds": 60.0}], began=began, ended=began + timedelta(hours=1))
    assert old.worked == [(began, began + timedelta(seconds=60))], "older rows do not say when"


def test_a_page_has_one_unit_of_energy(sweep):
    trials = SweepTrials.read(sweep)
    rows = [replace(r, values=[r.values[0], r.values[1] / 1e4] if r.values else None,
                    epochs=[e | {"energy_uj": e["energy_uj"] / 1e4} for e in r.epochs]) for r in trials.rows]  # fmt: skip
    small = SweepTrials(sweep, rows, trials.objectives, {}).in_one_unit()
    assert [o.label for o in small.objectives] == ["validation top-1 (%)", "energy per sample (pJ)"]
    assert small.rows[4].values == pytest.approx([95.0, 600.0]) and small.rows[2].value(1, small.objectives[1]) == 500.0
    assert trials.in_one_unit().objectives[1].label == "energy per sample (µJ)"


def test_firing_rates_are_those_of_a_validation_and_are_kept(sweep, report, monkeypatch):
    by_number = {r["number"]: r for r in report["rates"]}
    assert set(by_number) == {0, 1, 4} and "holds no checkpoint" in by_number[0]["problem"]
    run = sweep.trial(1)
    model = rates.open_target(run.path).model()
    found = validate(model, rates.make_loaders(run.config).validation, run.config)
    for layer in by_number[1]["layers"]:
        assert layer["rate"] == pytest.approx(found[f"firing_rate/{layer['layer']}"], abs=1e-9)
        assert len(layer["by_timestep"]) == 2 and sum(layer["by_timestep"]) / 2 == pytest.approx(layer["rate"])

    monkeypatch.setattr(rates, "measure", lambda *_: pytest.fail("measured again"))
    again = rates.best_rates(SweepTrials.read(sweep), sweep.path / "report")
    assert json.loads(json.dumps(again)) == report["rates"]


@pytest.mark.parametrize(
    ("objectives", "trials"),
    [
        (1, []),
        (2, TRIALS[:1]),
        (3, TRIALS[:2]),
        (1, [TRIALS[5], TRIALS[2]]),
        (2, [(*TRIALS[0][:4], STATES.RUNNING, 0, 50.0, 1.0)]),
        (1, [(*TRIALS[0][:4], STATES.RUNNING, 1, 50.0, 1.0), TRIALS[1]]),
        (1, [TRIALS[0]] * 5),
    ],
    ids=["none", "one", "two", "ended badly", "just begun", "running", "all alike"],
)
def test_few_trials_make_a_page_too(tmp_path, objectives, trials):
    objectives = ["val/top1", "energy_uj", "seconds"][:objectives]
    made = make_sweep(tmp_path / "s", objectives, trials)
    report = reporting.report(made, tmp_path / "out", rates=False)
    page = Path(report["files"]["page"]).read_text()
    assert [command.split()[1] for _, command in report["next"][:2]] == ["show", "resume"]
    first = "Pareto front" if len(objectives) > 1 else "Accuracy against energy"
    assert re.findall("<h2>(.*?)</h2>", page) == ["What was swept", first, *SECTIONS]
    if not any(trial[4] == STATES.COMPLETE for trial in trials):
        assert "No trial is finished yet" in page and "The history needs at least 1 finished trial; there is none." in page
    if not trials:
        assert report["files"]["pictures"] == [] and "No trial has started yet." in page and "plotly.js" not in page
    shown = details(made.path)
    assert len(shown["trials"]) == len(trials) and details_table(shown, 2).row_count == min(2, len(trials))


def test_one_objective_is_drawn_against_energy(tmp_path):
    trials = SweepTrials.read(make_sweep(tmp_path / "s", ["val/top1"]))
    assert [row.number for row in trials.front] == [4]
    both = trials.against_energy()
    assert {row.number for row in both.front} == {0, 1, 4}
    drawn = {trace.name: set(zip(trace.x, trace.y, strict=True)) for trace in figures.front(both, 1, 0).data}
    assert drawn["Pareto front"] == {(1.0, 80.0), (2.0, 90.0), (6.0, 95.0)}


def test_what_is_not_drawn_is_said(sweep, monkeypatch):
    monkeypatch.setattr(figures, "CURVES", 3)
    monkeypatch.setattr(figures, "BARS", 4)
    trials = SweepTrials.read(sweep)
    page = build(trials, summarize(trials), [], sweep.path / "report")
    assert "Drawn are 3 of 5 best trials." in page and "Drawn are 4 of 7 newest trials." in page
    assert len([t for t in figures.curves(trials).data if t.name.startswith("trial")]) == 3
    assert [y for trace in figures.timeline(trials).data[1:] for y in trace.y] == [3, 4, 6, 5]


def test_a_folder_of_something_else_stays_as_it_is(sweep, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="--output: must be a new folder, an empty one or that of a report"):
        reporting.report(sweep, tmp_path, rates=False)
    with pytest.raises(UserError, match="is a file"):
        reporting.report(sweep, tmp_path / "thesis.txt", rates=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_watching_waits_for_what_has_not_begun(tmp_path, capsys):
    def find():
        if not (tmp_path / "s").is_dir():
            raise UserError("s: no such run or sweep in runs; runs holds none")
        return tmp_path / "s"

    waiting = threading.Timer(0.3, make_sweep, (tmp_path / "s",), {"trials": TRIALS[:1]})
    waiting.start()
    began = time.monotonic()
    assert awaited(find, 0.05) == tmp_path / "s" and 0.2 < time.monotonic() - began < 20
    waiting.join()
    assert "s: no such run or sweep in runs; waiting for it" in capsys.readouterr().out


def test_watching_ends_when_nobody_writes_the_sweep(tmp_path):
    made = make_sweep(tmp_path / "s", trials=TRIALS[:2])
    assert not written(made.path)
    watching = threading.Thread(target=watch, args=(made.path, 0.05))
    with made.writing():
        assert written(made.path)
        watching.start()
        time.sleep(0.5)
        assert watching.is_alive()
    watching.join(20)
    assert not watching.is_alive()
