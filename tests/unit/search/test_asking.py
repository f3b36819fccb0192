"""What the searcher decides of trials whose epochs are written down instead of trained: a study and folders, and no network."""

import contextlib
import json
import pickle
from pathlib import Path

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from sweeps import TIMES, new

from statten.files import write_json
from statten.search.searcher import OptunaSearcher, RepeatSearcher, StudyScheduler, point_key
from statten.storage import checkpoint
from statten.storage.run import Run, best_row
from statten.training.preflight import memory_bytes

RANDOM = {"sampler": "random", "scheduler": "none"}


def an_epoch(run: Run, top1: float, **further: float) -> dict:
    """The row of a run's next epoch, written as its worker does."""
    row = {"epoch": len(run.metrics()) + 1, "val/top1": top1, "val/loss": 1.0, "seconds": 1.0, **further}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def finish(run: Run, *top1: float, **further: float) -> None:
    """All epochs of a run, and its result."""
    for value in top1:
        an_epoch(run, value, **further)
    rows = run.metrics()
    best = {**best_row(rows), "checkpoint": f"checkpoints/epoch-{int(best_row(rows)['epoch']):04d}"}
    folder = run.path / best["checkpoint"]
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(run.path.name.encode())
    digests = {"model.safetensors": checkpoint.sha256(folder / "model.safetensors")}
    (folder / "state.json").write_text(json.dumps({"sha256": digests}))
    write_json(run.path / "result.json", {"state": "finished", "best": best, "last": rows[-1], "epochs": len(rows)})


@contextlib.contextmanager
def searching(sweep):
    with sweep.writing() as attempt:
        yield OptunaSearcher(sweep, attempt)


def started(searcher: OptunaSearcher, name: str = "id") -> Run:
    work = searcher.suggest(name)
    assert isinstance(work, dict) and work["attempt"] == searcher.attempt
    assert work["run"] == work["address"] == str(searcher.sweep.trial(work["number"]).path.resolve())
    return Run(Path(work["run"]))


def trials(sweep) -> list:
    return sweep.study().trials


def rest(trial) -> dict:
    return {k: v for k, v in trial.user_attrs.items() if k != "point"}


def test_a_trial_is_asked_run_and_told(tmp_path):
    sweep = new(tmp_path / "s", trials=2, **RANDOM)
    with searching(sweep) as searcher:
        assert (searcher.metric, searcher.mode, searcher.remaining, searcher.rebuilt) == ("val/top1", "max", 2, [])
        run = started(searcher)
        assert run.config.model.timesteps == trials(sweep)[0].params["model.timesteps"] and searcher.remaining == 1
        assert run.origin == {"sweep": "s", "trial": 0, "point": trials(sweep)[0].user_attrs["point"]}
        finish(run, 10.0, 30.0)
        searcher.on_trial_result("id", {})
        assert trials(sweep)[0].state == TrialState.RUNNING, "Ray's hook says nothing: judge does"
        assert searcher.judge("id", {"epoch": 2}) is False
        assert trials(sweep)[0].intermediate_values == {1: 10.0, 2: 30.0}
        searcher.on_trial_complete("id", error=False)
        searcher.on_trial_complete("id")  # Ray tells twice of what was pruned
        assert searcher.judge("id", {"epoch": 3}) is True, "a trial that has ended is to be stopped"
        ended = trials(sweep)[0]
        assert (ended.state, ended.values, rest(ended), searcher.trained) == (TrialState.COMPLETE, [30.0], {}, 2)
        run = started(searcher)
        searcher.on_trial_complete("id", error=True)
        assert (trials(sweep)[1].state, rest(trials(sweep)[1])) == (
            TrialState.FAIL, {"reason": "its worker ended without a result"},
        )  # fmt: skip
        assert run.state == "failed" and searcher.suggest("id") == Searcher.FINISHED and searcher.remaining == 0
    third = new(tmp_path / "t", trials=1, **RANDOM)
    with searching(third) as searcher:
        run = started(searcher)
        searcher.on_trial_complete("id")
        assert run.reason == "ended without a result"


def test_the_searcher_and_its_scheduler_are_empty_to_a_pickle(tmp_path):
    sweep = new(tmp_path / "s", trials=1, **RANDOM)
    with searching(sweep) as searcher:
        scheduler = StudyScheduler(searcher)
        assert pickle.loads(pickle.dumps(searcher)).__dict__ == pickle.loads(pickle.dumps(scheduler)).__dict__ == {}

        class Trial:
            trial_id = "id"

        run = started(searcher)
        an_epoch(run, 10.0)
        assert scheduler.on_trial_result(None, Trial, {"epoch": 1}) == FIFOScheduler.CONTINUE
        assert scheduler.on_trial_result(None, type("Other", (), {"trial_id": "other"}), {"epoch": 1}) == FIFOScheduler.STOP
        searcher.save("nowhere")
        searcher.restore("nowhere")


def test_every_configuration_is_tried_once_and_then_none_is_left(tmp_path):
    """Six of them; the sampler draws known ones, and the nearest of those that are left is taken then."""
    sweep = new(tmp_path / "s", trials=50, **RANDOM)
    with searching(sweep) as searcher:
        points = []
        while (work := searcher.suggest("id")) != Searcher.FINISHED:
            run = Run(Path(work["run"]))
            points.append(run.origin["point"])
            finish(run, 1.0, 2.0)
            searcher.on_trial_complete("id")
        assert len({point_key(point) for point in points}) == len(points) == 6 == sweep.space.count()
    for trial in trials(sweep):
        if "duplicate_of" in trial.user_attrs:
            same = trials(sweep)[trial.user_attrs["duplicate_of"]]
            assert (trial.state, trial.params) == (TrialState.FAIL, same.params) and same.number < trial.number
            assert trial.user_attrs["reason"] == f"not run: the same configuration as trial {same.number}"
            assert not sweep.trial(trial.number).path.exists()
    # A new driver knows them all.
    with searching(sweep) as again:
        before = len(trials(sweep))
        assert again.suggest("id") == Searcher.FINISHED and len(trials(sweep)) == before


def test_the_nearest_that_is_left_differs_in_the_fewest_fields(tmp_path):
    space = {
        "model.timesteps": {"choices": [1, 2]},
        "model.embed_dim": {"choices": [16, 32, 64]},
        "train.lr": {"choices": [1e-3, 1e-2]},
    }
    sweep = new(tmp_path / "s", space, trials=12, model__block_size=1, **RANDOM)
    wanted = {"model.timesteps": 1, "model.embed_dim": 16, "train.lr": 1e-3}
    with searching(sweep) as searcher:
        trial = searcher.study.ask()
        trial.set_user_attr("point", wanted)
        for point in sweep.space.points():
            differ = sum(point[field] != value for field, value in wanted.items())
            if differ < 2:
                searcher.seen[point_key(point)] = 0
        found = searcher._nearest_left()
        assert sum(found[field] != value for field, value in wanted.items()) == 2 and found == searcher._nearest_left()
        searcher.seen.update((point_key(point), 0) for point in sweep.space.points())
        assert searcher._nearest_left() is None


def test_what_a_killed_driver_left_goes_on_first(tmp_path):
    sweep = new(tmp_path / "s", trials=4, **RANDOM)
    with searching(sweep) as searcher:
        names = {name: started(searcher, name) for name in ("ended", "lost its best", "running")}
        finish(names["ended"], 10.0, 20.0)
        finish(names["lost its best"], 10.0, 20.0)
        (names["lost its best"].path / "checkpoints/epoch-0002").rename(names["lost its best"].path / "elsewhere")
        an_epoch(names["running"], 5.0)
    with searching(sweep) as searcher:
        assert searcher.remaining == 4 and len(searcher.unfinished) == 3
        assert started(searcher, "a").path == names["lost its best"].path.resolve(), "it must be trained again"
        assert trials(sweep)[0].state == TrialState.COMPLETE and trials(sweep)[0].values == [20.0]
        assert started(searcher, "b").path == names["running"].path.resolve()
        assert started(searcher, "c").path == sweep.trial(trials(sweep)[-1].number).path.resolve()
        assert searcher.suggest("d") == Searcher.FINISHED
        assert searcher.judge("b", {"epoch": 1}) is False and trials(sweep)[2].intermediate_values == {1: 5.0}


def test_a_trial_whose_driver_died_before_it_had_a_point(tmp_path):
    sweep = new(tmp_path / "s", trials=1, **RANDOM)
    sweep.study(create=True).ask()
    with searching(sweep) as searcher:
        run = started(searcher)
        assert run.origin["point"] == trials(sweep)[0].user_attrs["point"] and len(trials(sweep)) == 1
        assert searcher.seen == {point_key(run.origin["point"]): 0}


def test_what_an_unfinished_trial_trains_is_not_drawn_beside_it(tmp_path):
    """Of a sweep that goes on with several trials at a time."""
    sweep = new(tmp_path / "s", trials=6, **RANDOM)
    with searching(sweep) as searcher:
        point = started(searcher).origin["point"]
    with searching(sweep) as searcher:
        searcher.study.enqueue_trial(sweep.space.params(point))
        runs = [started(searcher, name) for name in "ab"]
        assert [run.origin["point"] == point for run in runs] == [True, False], "one configuration is trained twice"


def test_trials_are_stopped_by_the_rule_of_the_sweep(tmp_path):
    space = {"train.lr": {"float": [1e-4, 1e-2]}}
    sweep = new(tmp_path / "s", space, trials=3, sampler="random", scheduler="asha", grace_epochs=1, reduction_factor=2)
    with searching(sweep) as searcher:
        runs = {name: started(searcher, name) for name in "abc"}
        for name, top1 in (("a", 30.0), ("b", 50.0)):
            an_epoch(runs[name], top1)
            assert searcher.judge(name, {"epoch": 1}) is False
        row = an_epoch(runs["c"], 40.0)
        assert searcher.judge("c", row) is True and "c" not in searcher.active
        told = trials(sweep)[2]
        assert (told.state, told.intermediate_values, runs["c"].state) == (TrialState.PRUNED, {1: 40.0}, "stopped")
        assert rest(told)["reason"] == runs["c"].reason and "is not among the best 1 of 3" in runs["c"].reason
        # Epochs that it knows, and the last one, are not judged again.
        assert searcher.judge("b", {"epoch": 1}) is False
        an_epoch(runs["b"], 1.0)
        assert searcher.judge("b", {"epoch": 2}) is False, "it is done anyway"


def test_networks_that_cannot_recover_are_stopped_whatever_the_rule(tmp_path):
    sweep = new(tmp_path / "s", trials=1, **RANDOM, firing_range=(0.1, 0.9), grace_epochs=1, train__epochs=5)
    with searching(sweep) as searcher:
        run = started(searcher)
        for epoch, stops in ((1, False), (2, True)):
            row = an_epoch(run, 10.0, steps=1000, **{"firing_rate/head": 0.0})
            assert searcher.judge("id", row) is stops, epoch
        assert "layer head is dead" in run.reason
    done = new(tmp_path / "t", trials=1, **RANDOM, firing_range=(0.1, 0.9), grace_epochs=1, train__epochs=2)
    with searching(done) as searcher:
        run = started(searcher)
        for _ in range(2):
            assert searcher.judge("id", an_epoch(run, 10.0, steps=1000, **{"firing_rate/head": 0.0})) is False, (
                "it is done anyway"
            )


def test_the_front_stops_what_cannot_enter_it(tmp_path):
    space = {"train.lr": {"float": [1e-4, 1e-2]}}
    sweep = new(
        tmp_path / "s", space, trials=6, sampler="random", objectives=["val/top1", "energy_uj"], grace_epochs=1, train__epochs=3
    )
    with searching(sweep) as searcher:
        for number in range(4):
            run = started(searcher)
            finish(run, 50.0, 60.0, 70.0, energy_uj=1.0 + number)
            searcher.on_trial_complete("id")
        assert sorted(searcher.done) == [0, 1, 2, 3] and searcher.done[3].values == [70.0, 4.0]
        for top1, energy, stops in ((10.0, 5.0, True), (10.0, 0.5, False)):
            run = started(searcher)
            assert searcher.judge("id", an_epoch(run, top1, energy_uj=energy)) is stops
        assert "is not on the front" in sweep.trial(4).reason
    # A new driver draws on the same.
    with searching(sweep) as searcher:
        assert sorted(searcher.done) == [0, 1, 2, 3] and len(searcher.done[0].rows) == 3


def test_a_metric_that_no_epoch_reports_fails_the_trial(tmp_path):
    sweep = new(tmp_path / "s", trials=2, **RANDOM, objectives=["val/top1", "energy_uj", "latency_ms"])
    with searching(sweep) as searcher:
        run = started(searcher)
        assert searcher.judge("id", an_epoch(run, 10.0)) is True
        assert run.reason == "reports no energy_uj, latency_ms, which search.objectives names"
        assert run.result["cause"] == "input" and trials(sweep)[0].state == TrialState.FAIL


def test_an_objective_that_is_not_finite_is_no_value(tmp_path):
    sweep = new(tmp_path / "s", trials=2, **RANDOM, objectives=["val/loss:min"])
    with searching(sweep) as searcher:
        run = started(searcher)
        finish(run, 10.0)
        for name in ("metrics.jsonl", "result.json"):
            path = run.path / name
            path.write_text(path.read_text().replace('"val/loss": 1.0', '"val/loss": NaN'))
        searcher.on_trial_complete("id")
        told = trials(sweep)[0]
        assert (told.state, told.values, told.intermediate_values) == (TrialState.FAIL, None, {})
        assert rest(told) == {"reason": "val/loss is nan at the best epoch"}


def test_constraints_are_told_with_the_values(tmp_path):
    sweep = new(tmp_path / "s", trials=2, **RANDOM, constraints=["energy_uj <= 5", "val/top1 >= 40"])
    with searching(sweep) as searcher:
        finish(started(searcher), 30.0, energy_uj=3.0)
        searcher.on_trial_complete("id")
    assert trials(sweep)[0].constraints == {"energy_uj <= 5": -2.0, "val/top1 >= 40": 10.0}


def test_budgets(tmp_path):
    sweep = new(tmp_path / "s", trials=6, **RANDOM, max_epochs=3, train__epochs=2)
    with searching(sweep) as searcher:
        finish(started(searcher), 1.0, 2.0)
        searcher.on_trial_complete("id")
        run = started(searcher)
        assert searcher.remaining == 4
        assert searcher.judge("id", an_epoch(run, 1.0)) is True, "2 + 1 epochs"
        assert run.reason == "stopped at epoch 1: the sweep's 3 epochs (search.max_epochs) are trained"
        assert searcher.suggest("id") == Searcher.FINISHED and searcher.remaining == 0
    with searching(sweep) as searcher:
        assert searcher.trained == 3 and searcher.suggest("id") == Searcher.FINISHED
    hours = new(tmp_path / "h", trials=6, **RANDOM, max_hours=1)
    hours.study(create=True).set_user_attr("seconds", 3500.0)
    with searching(hours) as searcher:
        run = started(searcher)
        an_epoch(run, 1.0)
        assert searcher.judge("id", {"epoch": 1}) is False
        searcher._began -= 101
        finish(run, 2.0)
        searcher.on_trial_complete("id")
        assert 3601 <= hours.study().user_attrs["seconds"] < 3700
        assert (
            searcher._spent() == "the sweep's 1 hours (search.max_hours) are over"
            and searcher.suggest("id") == Searcher.FINISHED
        )


def test_weights_come_from_the_nearest_in_timesteps(tmp_path):
    space = {"model.timesteps": {"choices": [1, 2, 4, 16]}, "model.embed_dim": {"choices": [16, 32]}}
    sweep = new(tmp_path / "s", space, trials=8, **RANDOM, inherit="timesteps")
    with searching(sweep) as searcher:
        for timesteps, width in ((1, 16), (16, 16), (2, 32), (4, 16)):
            searcher.study.enqueue_trial({"model.timesteps": timesteps, "model.embed_dim": width})
        parents = []
        for number in range(4):
            run = started(searcher)
            parents.append(run.origin.get("inherited"))
            assert trials(sweep)[number].user_attrs.get("inherited") == parents[-1]
            weights = run.path / "initial.safetensors"
            assert (weights.read_bytes() if weights.is_file() else None) == (
                None if parents[-1] is None else f"{parents[-1]:04d}".encode()
            )
            finish(run, 1.0, 2.0)
            searcher.on_trial_complete("id")
        # From 1 to 4 and from 16 to 4 are equally far: the first. Another width is none of its kind.
        assert parents == [None, 0, None, 0]


def test_short_timesteps_first(tmp_path):
    sweep = new(tmp_path / "s", TIMES, trials=6, **RANDOM, short_first=True)
    with searching(sweep) as searcher:
        long = {"model.timesteps": 4, "model.block_size": 2}
        assert searcher._shortest(long) == {"model.timesteps": 1, "model.block_size": 1}
        searcher.study.enqueue_trial(sweep.space.params(long))
        run = started(searcher)
        first, second = trials(sweep)[:2]
        assert rest(first) == {"put_off": -1, "reason": "not run yet: timesteps 1 go first"}
        assert run.origin["point"]["model.timesteps"] == 1 and second.user_attrs["then"] == long
        # Others wait for it.
        assert searcher._why_not(long) == ("put_off", 1, "not run yet: trial 1 with timesteps 1 is not done")
        finish(run, 1.0, 2.0)
        searcher.on_trial_complete("id")
        assert searcher._why_not(long) is None
    with searching(sweep) as searcher:  # a driver that is killed here leaves it in the queue, and the next one asks once
        assert [trial.state for trial in trials(sweep)].count(TrialState.WAITING) == 1
        assert started(searcher).origin["point"] == long, "the longer one follows its shorter one"
    with searching(sweep) as searcher:
        assert not [trial for trial in trials(sweep) if trial.state == TrialState.WAITING], "and not again while it trains"
        finish(started(searcher), 1.0, 2.0)
        searcher.on_trial_complete("id")
    with searching(sweep) as searcher:
        assert not [trial for trial in trials(sweep) if trial.state == TrialState.WAITING], "nor when it is done"
    other = new(tmp_path / "t", TIMES, trials=6, **RANDOM, short_first=True)
    with searching(other) as searcher:
        searcher.study.enqueue_trial(other.space.params(long))
        run = started(searcher)
        run.stop("not worth it")
        searcher.on_trial_complete("id")
        assert searcher._why_not(long) == ("put_off", 1, "not run: trial 1 with timesteps 1 was not worth it")
        assert searcher._why_not(long) == ("duplicate_of", 1, "not run: the same configuration as trial 1"), "nor ever"


def test_the_shortest_where_blocks_are_not_searched_or_points_cannot_be_counted(tmp_path):
    fields = {"trials": 3, "model__block_size": 1, "short_first": True, **RANDOM}
    alone = new(tmp_path / "s", {"model.timesteps": {"choices": [1, 2, 4]}}, **fields)
    with searching(alone) as searcher:
        assert searcher._shortest({"model.timesteps": 4}) == {"model.timesteps": 1}
    endless = {"model.timesteps": {"choices": [1, 2]}, "train.lr": {"float": [1e-4, 1e-2]}}
    sweep = new(tmp_path / "t", endless, **fields)
    with searching(sweep) as searcher:
        point = {"model.timesteps": 2, "train.lr": 1e-3}
        assert searcher._shortest(point) == point


def test_what_needs_more_memory_than_one_that_ran_out(tmp_path):
    sweep = new(tmp_path / "s", {"model.embed_dim": {"choices": [16, 32, 64]}}, trials=3, **RANDOM)
    with searching(sweep) as searcher:
        searcher.study.enqueue_trial({"model.embed_dim": 32})
        run = started(searcher)
        run.fail("out of memory", cause="memory")
        searcher.on_trial_complete("id")
        limit = memory_bytes(run.config)
        assert searcher.too_large == {0: limit} and rest(trials(sweep)[0]) == {"memory_bytes": limit, "reason": "out of memory"}
        assert searcher._why_not({"model.embed_dim": 16}) is None
        attribute, number, reason = searcher._why_not({"model.embed_dim": 64})
        needed = memory_bytes(sweep.space.config({"model.embed_dim": 64}))
        assert (attribute, number) == ("too_large", 0)
        assert reason == (
            f"not run: it needs about {needed / 2**20:,.0f} MiB, and trial 0 ran out of memory with {limit / 2**20:,.0f}"
        )
        assert searcher._why_not({"model.embed_dim": 64})[0] == "duplicate_of"
    with searching(sweep) as searcher:
        assert searcher.too_large == {0: limit}


def test_trials_that_were_taken_over_count_for_nothing_but_what_is_known(tmp_path):
    old, sweep = (new(tmp_path / name, trials=2, **RANDOM) for name in ("old", "new"))
    with searching(old) as searcher:
        run = started(searcher)
        finish(run, 1.0, 2.0)
        searcher.on_trial_complete("id")
    from statten.search.transfer import take_over

    assert take_over(sweep, old) == (1, 0)
    with searching(sweep) as searcher:
        assert (searcher.trained, searcher.remaining, searcher.asked) == (0, 2, 0)
        assert list(searcher.seen) == [point_key(run.origin["point"])]
        searcher.study.enqueue_trial(trials(old)[0].params)
        assert started(searcher).origin["point"] != run.origin["point"] and searcher.asked == 1


def test_repeats_are_run_in_their_order(tmp_path):
    sweep = new(tmp_path / "s", trials=1, **RANDOM)
    runs = [Run.create(tmp_path / "s" / "repeats" / name, sweep.config) for name in "abc"]
    finish(runs[1], 1.0)
    with sweep.writing() as attempt:
        searcher = RepeatSearcher(sweep, runs, attempt)
        assert (searcher.metric, searcher.mode, searcher.remaining) == ("val/top1", "max", 2)
        assert pickle.loads(pickle.dumps(searcher)).__dict__ == {}
        for name, error, reason in (("a", True, "its worker ended without a result"), ("c", False, "ended without a result")):
            work = searcher.suggest(name)
            assert (work["number"], work["attempt"], Run(Path(work["run"])).attempt) == (name, attempt, attempt)
            searcher.on_trial_result(name, {})
            searcher.on_trial_complete(name, error=error)
            assert Run(Path(work["run"])).reason == reason
        assert searcher.suggest("d") == Searcher.FINISHED and searcher.remaining == 0 and not searcher.active
        searcher = RepeatSearcher(sweep, [Run.create(tmp_path / "s" / "repeats" / "d", sweep.config)], attempt)
        finish(Run(Path(searcher.suggest("d")["run"])), 1.0)
        searcher.on_trial_complete("d")
        assert Run(tmp_path / "s" / "repeats" / "d").state == "finished"


optuna.logging.set_verbosity(optuna.logging.WARNING)
