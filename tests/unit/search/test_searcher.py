"""The searcher over a real study and real, tiny training, without Ray: what is asked, told, taken over and never run twice."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from ray.tune.search import Searcher
from sweeps import TIMES, Stopped, drive, new, states

from statten.config import load_config
from statten.errors import ConfigError, UserError
from statten.files import write_json
from statten.search.launch import extend_sweep
from statten.search.plan import check_objectives, plan_sweep
from statten.search.repeats import planned, sentence
from statten.search.searcher import OptunaSearcher, RepeatSearcher
from statten.search.sweep import Sweep
from statten.search.transfer import take_over
from statten.space.loading import make_space
from statten.storage.run import Run
from statten.training.preflight import memory_bytes
from statten.training.worker import run_fit


def test_a_space_is_exhausted_without_running_anything_twice(tmp_path):
    sweep = new(tmp_path / "s", trials=50, sampler="random", scheduler="none")
    drive(sweep)
    points = [json.dumps(point) for _, point in sweep.rows()]
    assert len(points) == len(set(points)) == 6 == sweep.space.count()
    assert states(sweep) == ["COMPLETE"] * 6
    for trial in sweep.study().trials:
        if "duplicate_of" in trial.user_attrs:
            same = sweep.study().trials[trial.user_attrs["duplicate_of"]]
            assert trial.state.name == "FAIL" and trial.params == same.params and not sweep.trial(trial.number).path.exists()


def test_several_objectives_are_told_under_their_names(tmp_path):
    sweep = new(tmp_path / "s", trials=4, objectives=["val/top1", "energy_uj", "latency_ms", "parameters"], scheduler="none")
    drive(sweep)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(sweep.path / "study.journal")))
    study = optuna.load_study(study_name="s", storage=storage)  # as any of Optuna's tools opens it
    assert study.metric_names == ["val/top1", "energy_uj", "latency_ms", "parameters"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE", "MINIMIZE"]
    for trial, _ in sweep.rows(study):
        best = sweep.trial(trial.number).result["best"]
        assert trial.values == [best[metric] for metric in study.metric_names]
        assert sorted(trial.intermediate_values) == [1, 2]
    assert [t.number for t in sweep.front()] == sorted(
        (t.number for t in study.best_trials), key=lambda n: -study.trials[n].values[0]
    )
    document = sweep.best()
    assert document["trial"] == document["front"][0]["trial"] and set(document["values"]) == set(study.metric_names)


def test_tpe_goes_on_after_trials_that_the_front_stopped(tmp_path):
    space = {**TIMES, "train.lr": {"float": [1e-4, 1e-2], "log": True}}
    sweep = new(tmp_path / "s", space, trials=4, objectives=["val/top1", "energy_uj"], startup_trials=1)
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        for number in range(4):
            started = searcher.suggest("id")
            run = Run(Path(started["run"]))
            rows = [{"epoch": e, "val/top1": 50.0 + number, "val/loss": 1.0, "energy_uj": 1.0 + number} for e in (1, 2)]
            (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: 1 + number % 2]))
            if number % 2:
                write_json(run.path / "result.json", {"state": "finished", "best": rows[1]})
            else:
                run.stop("not on the front")
            searcher.on_trial_complete("id")
    assert states(sweep) == ["PRUNED", "COMPLETE"] * 2


def test_more_timesteps_cost_more_energy(tmp_path):
    sweep = new(tmp_path / "s", trials=6, objectives=["val/top1", "energy_uj"], scheduler="none")
    drive(sweep)
    energy = {(p["model.timesteps"], p["model.block_size"]): t.values[1] for t, p in sweep.rows()}
    assert energy[1, 1] < energy[2, 2] < energy[4, 4]


def test_constraints_keep_trials_from_being_the_best(tmp_path):
    free = new(tmp_path / "free", trials=6, objectives=["energy_uj:max"], scheduler="none")
    drive(free)
    values = sorted(t.value for t, _ in free.rows())
    bound = new(tmp_path / "bound", trials=6, objectives=["energy_uj:max"], scheduler="none",
                constraints=[f"energy_uj <= {values[2] + 1e-9:.9f}"])  # fmt: skip
    drive(bound)
    assert free.best()["value"] == values[-1] and bound.best()["value"] == pytest.approx(values[2])
    none = new(tmp_path / "none", trials=2, constraints=["val/top1 >= 101"], scheduler="none")
    drive(none)
    with pytest.raises(UserError, match="no finished trial keeps val/top1 >= 101; go on with: statten extend none"):
        none.best()


def test_a_study_reopens_for_its_own_objectives_only(tmp_path):
    sweep = new(tmp_path / "s", trials=1)
    sweep.study()
    text = (sweep.path / "config.yaml").read_text()
    (sweep.path / "config.yaml").write_text(text.replace("  - val/top1\n", "  - val/top1\n  - energy_uj\n"))
    with pytest.raises(UserError, match=r"made for other objectives \(val/top1 maximize\)"):
        Sweep.open(sweep.path).study()


def test_two_drivers_cannot_open_one_study(tmp_path):
    sweep = new(tmp_path / "s", trials=1)
    code = f"from pathlib import Path\nfrom statten.search import Sweep\nwith Sweep(Path({str(sweep.path)!r})).writing(): pass"
    with sweep.writing():
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode and "another process is writing this sweep" in second.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("cut", [1, 20])
def test_a_journal_whose_last_line_is_cut_off_goes_on(tmp_path, cut):
    sweep = new(tmp_path / "s", trials=2, scheduler="none")
    drive(sweep)
    journal = sweep.path / "study.journal"
    content = journal.read_bytes()
    journal.write_bytes(content + content.splitlines()[-1][:cut])
    with Sweep.open(sweep.path).writing():
        assert journal.read_bytes() == content, "the line that was cut off stays, and the next one would be added to it"
    config = (sweep.path / "config.yaml").read_text()
    (sweep.path / "config.yaml").write_text(config.replace("  trials: 2\n", "  trials: 3\n"))
    drive(Sweep.open(sweep.path))
    assert states(sweep) == ["COMPLETE"] * 3 and journal.read_bytes().startswith(content)


def test_an_interrupted_trial_is_continued_and_told_once(tmp_path):
    sweep = new(tmp_path / "s", trials=2, scheduler="none")
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        started = searcher.suggest("id")

        def die(row):
            raise Stopped

        with pytest.raises(Stopped):
            run_fit(Run(Path(started["run"])), attempt, threads=1, then=die)  # the study has not heard of the epoch
    assert states(sweep) == ["RUNNING"]
    drive(sweep)
    assert states(sweep) == ["COMPLETE"] * 2
    assert [row["epoch"] for row in sweep.trial(0).metrics()] == [1, 2]
    assert sorted(sweep.study().trials[0].intermediate_values) == [1, 2]


def test_trials_of_another_sweep_become_history_where_they_could_be_ours(tmp_path):
    old = new(tmp_path / "old", trials=4, sampler="random", scheduler="none")
    drive(old)
    narrow = new(tmp_path / "narrow", {"model.timesteps": {"choices": [1, 2, 4]}, "model.block_size": {"choices": [1]}},
                 trials=3, scheduler="none")  # fmt: skip
    fits = [t.number for t, p in old.rows() if p["model.block_size"] == 1]
    assert take_over(narrow, old) == (len(fits), 4 - len(fits)) and fits
    taken = [t for t, _ in narrow.rows()]
    assert [t.value for t in taken] == [old.study().trials[n].value for n in fits]
    assert [narrow.trial(t.number).path for t in taken] == [old.trial(n).path for n in fits]
    drive(narrow)
    assert sorted(p["model.timesteps"] for _, p in narrow.rows()) == [1, 2, 4], "what is known is not run again"
    assert narrow.best()["checkpoint"]
    other = new(tmp_path / "other", trials=1, train__lr=1e-4)
    with pytest.raises(UserError, match=r"none of .*old's 4 finished trials could be one of this sweep"):
        take_over(other, old)


def test_a_trial_inherits_the_weights_of_one_that_differs_in_timesteps_alone(tmp_path):
    sweep = new(tmp_path / "s", {**TIMES, "model.embed_dim": {"choices": [16, 32]}}, trials=12, inherit="timesteps",
                sampler="random", scheduler="none")  # fmt: skip
    drive(sweep)
    first = {}
    for trial, point in sweep.rows():
        parent = sweep.trial(trial.number).info["origin"].get("inherited")
        if (width := point["model.embed_dim"]) not in first:
            first[width] = trial.number
            assert parent is None
        else:
            assert sweep.study().trials[parent].user_attrs["point"]["model.embed_dim"] == width
            assert (sweep.trial(trial.number).path / "initial.safetensors").is_file()


def test_short_timesteps_go_first_and_survivors_grow(tmp_path):
    sweep = new(tmp_path / "s", TIMES, trials=6, short_first=True, inherit="timesteps", sampler="random", scheduler="none")
    drive(sweep)
    points = [point for _, point in sweep.rows()]
    assert points[0]["model.timesteps"] == 1 and len(points) == 6
    put_off = [t for t in sweep.study().trials if "put_off" in t.user_attrs]
    assert all(t.state.name == "FAIL" and "go first" in t.user_attrs["reason"] for t in put_off)


def test_what_needs_more_memory_than_a_trial_that_ran_out_is_not_run(tmp_path):
    sweep = new(tmp_path / "s", {"model.embed_dim": {"choices": [16, 32, 64]}}, trials=3, scheduler="none")
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        searcher.study.enqueue_trial({"model.embed_dim": 32})
        started = searcher.suggest("id")
        Run(Path(started["run"])).fail("out of memory", cause="memory")
        searcher.on_trial_complete("id")
        limit = memory_bytes(Run(Path(started["run"])).config)
    assert sweep.study().trials[0].user_attrs["memory_bytes"] == limit
    drive(sweep)
    ended = {t.user_attrs["point"]["model.embed_dim"]: t for t in reversed(sweep.study().trials)}  # the first of each
    assert ended[16].state.name == "COMPLETE" and "too_large" not in ended[16].user_attrs
    assert "ran out of memory" in ended[64].user_attrs["reason"] and not sweep.trial(ended[64].number).path.exists()


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(tmp_path):
    sweep = new(tmp_path / "s", {"train.lr": {"choices": [1e30, 1e-3]}}, trials=2, scheduler="none", train__optimizer="sgd")
    drive(sweep)
    found = {t.user_attrs["point"]["train.lr"]: t for t, _ in sweep.rows()}
    assert found[1e30].state.name == "FAIL" and "the loss is not finite" in found[1e30].user_attrs["reason"]
    assert found[1e-3].state.name == "COMPLETE"


def test_budgets_end_a_sweep(tmp_path):
    sweep = new(tmp_path / "s", trials=6, max_epochs=5, scheduler="none")
    drive(sweep)
    assert sum(len(sweep.trial(t.number).metrics()) for t, _ in sweep.rows()) == 5
    assert states(sweep) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert "5 epochs (search.max_epochs)" in [t for t, _ in sweep.rows()][-1].user_attrs["reason"]
    hours = new(tmp_path / "h", trials=6, max_hours=1e-9, scheduler="none")
    drive(hours)
    assert states(hours) == []


def test_finalists_are_repeated_under_other_seeds(tmp_path):
    sweep = new(tmp_path / "s", trials=4, scheduler="none", repeats=3, finalists=2)
    drive(sweep)
    with sweep.writing() as attempt:
        searcher = RepeatSearcher(sweep, planned(sweep), attempt)
        assert searcher.remaining == 4
        while (started := searcher.suggest("id")) != Searcher.FINISHED:
            run_fit(Run(Path(started["run"])), attempt, threads=1)
            searcher.on_trial_complete("id")
    found = sweep.repeats()
    assert len(found) == 2 and all(len(set(r.seeds)) == 3 == len(r.values) for r in found.values())
    for number, repeats in found.items():
        assert repeats.values[0] == sweep.trial(number).result["best"]["val/top1"]
    assert found[sweep.best()["trial"]].mean == max(repeats.mean for repeats in found.values())
    assert "over 3 seeds" in sentence(sweep) and "noise" in sentence(sweep)
    assert not RepeatSearcher(sweep, planned(sweep), "again").remaining


def test_a_study_may_live_in_a_database(tmp_path):
    sweep = new(tmp_path / "s", trials=2, scheduler="none", storage=f"sqlite:///{tmp_path}/studies.db")
    drive(sweep)
    assert len(optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/studies.db").trials) == 2
    with pytest.raises(UserError, match=r"search.storage: postgresql://me@127.0.0.1:1/none cannot be opened"):
        new(tmp_path / "lost", storage="postgresql://me@127.0.0.1:1/none")
    assert not (tmp_path / "lost").exists()
    with pytest.raises(UserError, match=r"studies.db holds a study called s already, of another sweep; choose another --name"):
        new(tmp_path / "elsewhere" / "s", storage=f"sqlite:///{tmp_path}/studies.db")
    with pytest.raises(UserError, match=r"made for other objectives \(val/top1 maximize\)"):
        new(tmp_path / "elsewhere" / "s", storage=f"sqlite:///{tmp_path}/studies.db", objectives=["val/loss:min"])
    with pytest.raises(ConfigError, match="must not hold a password") as caught:
        load_config("digits", {"search.storage": "postgresql://me:secret@127.0.0.1/none"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"objectives": ["accuracy:max"]}, "no trial reports accuracy; choose from"),
        ({"objectives": ["firing_rate/heat:min"]}, "did you mean firing_rate/head?"),
        ({"objectives": ["peak_memory_mib"]}, "is measured on GPUs"),
        ({"constraints": ["energy <= 3"]}, "no trial reports energy; did you mean energy_uj?"),
        ({"constraints": ["energy <= 3"]}, "^search.constraints: "),
        ({"objectives": ["accuracy:max"]}, "^search.objectives: "),
        ({"constraints": ["corrupt <= 3"]}, "^search.constraints: no trial reports corrupt"),
    ],
)
def test_objectives_that_nobody_reports_are_refused_before_the_start(fields, sentence):
    config = load_config("digits", {f"search.{key}": value for key, value in fields.items()})
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        check_objectives(config, "cpu")


def test_what_can_be_left_out_can_be_bounded():
    config = load_config("digits", {"data.skip_corrupt": True, "search.constraints": ["corrupt <= 3"]})
    check_objectives(config, "cpu")


def test_several_workers_cannot_share_a_gpu():
    with pytest.raises(ConfigError, match="NCCL refuses two ranks on one GPU"):
        load_config("digits", {"scale.gpus_per_worker": 0.5, "scale.workers": 2})


def test_the_plan_counts_configurations_epochs_and_shares_of_gpus():
    config = load_config("digits", {"search.trials": 100, "train.epochs": 10, "search.repeats": 3})
    plan = plan_sweep(config, make_space(TIMES, config), {"CPU": 8.0, "GPU": 0.0})
    assert (plan.trials, plan.configurations, plan.concurrent) == (6, 6, 6)
    assert plan.epochs == 10 * (6 + 2 * 3) and plan.largest_bytes >= plan.trial.memory_bytes


def test_extending_raises_the_number_of_trials_first(tmp_path, monkeypatch):
    sweep = new(tmp_path / "s", trials=2)
    monkeypatch.setattr("statten.search.launch.resume_sweep", lambda s: s)
    assert extend_sweep(sweep, 3).config.search.trials == 5


def test_extending_may_change_budgets_and_rules_of_stopping_and_the_study_says_so(tmp_path, monkeypatch):
    sweep = new(tmp_path / "s", trials=2)
    monkeypatch.setattr("statten.search.launch.resume_sweep", lambda s: s)
    more = extend_sweep(sweep, 1, ["search.max_hours=5", "search.scheduler=none", "search.grace_epochs=1"])
    before = sweep.config.search
    assert (more.config.search.max_hours, more.config.search.stopping, more.config.search.trials) == (5.0, "none", 3)
    (record,) = more.study().user_attrs["changed"]
    assert record["from_trial"] == 0 and record["fields"]["search.max_hours"] == [before.max_hours, 5.0]
    assert set(record["fields"]) <= {"search.max_hours", "search.scheduler", "search.grace_epochs"}
    with pytest.raises(UserError, match=r"--set train\.lr: must stay as it is"):
        extend_sweep(Sweep(sweep.path), 1, ["train.lr=0.1"])
    with pytest.raises(UserError, match="`scheduler=front` needs several objectives"):
        extend_sweep(Sweep(sweep.path), 1, ["search.scheduler=front"])
    assert Sweep(sweep.path).config.search.trials == 3, "what is refused changes nothing"
