"""Ray Tune asks, an Optuna study answers: a Searcher and a scheduler over Optuna's ask and tell.

The study is written before Ray hears of anything, so that it alone tells what happened:

    COMPLETE  trained to its end; the values are the objectives at the best epoch
    PRUNED    stopped early, with its intermediate values and the reason in user attribute `reason`
    FAIL      crashed, diverged or ran out of memory, with the reason; or not run at all: `duplicate_of` names the trial with
              the same configuration, `put_off` the shorter one that goes first, `too_large` a trial that ran out of memory
    RUNNING   a driver is alive, or was killed: `resume` continues such a trial in its own folder
"""

import json
import math
import random
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from statten.search import stopping
from statten.search.rebuild import rebuild
from statten.search.samplers import make_sampler, trials_of
from statten.search.sweep import Sweep, is_run, violation
from statten.storage.checkpoint import weights_file
from statten.storage.run import Run
from statten.training.preflight import memory_bytes

REDRAWS = 3
"""Draws of configurations that are known already, after which the nearest of those that are left is taken."""
ENUMERABLE = 100_000
"""Configurations up to which a space is searched for what is left; a larger one has always something left to draw."""
FREE = ("model.timesteps", "model.block_size", "data.frames")
"""Fields that own no weights."""


def _work(number: int | str, run: Run, attempt: str) -> dict[str, Any]:
    """What a trial's workers need to know; `run` is the driver's own path, `address` means the same on any machine."""
    address = run.hand_over(attempt)
    return {"number": number, "run": str(run.path.resolve()), "address": address, "attempt": attempt}


class OptunaSearcher(Searcher):
    """Proposes trials: first those that a killed driver left unfinished, then new ones, until there are enough."""

    def __init__(self, sweep: Sweep, attempt: str):
        config = sweep.config
        super().__init__(metric=config.search.metric, mode=config.search.directions[config.search.metric])
        self.sweep, self.space, self.study, self.attempt = sweep, sweep.space, sweep.study(create=True), attempt
        self.rebuilt = rebuild(sweep, self.study)
        """What was wrong between the study and the trials' folders, in sentences."""
        self.config, self.search, self.epochs = config, config.search, config.train.total_epochs
        self.active: dict[str, Trial] = {}
        self.trials = trials_of(config.search, self.space)
        self.unfinished, self.seen, self.done = list[FrozenTrial](), dict[str, int](), dict[int, stopping.Done]()
        self.trained = 0  # epochs, of trials that have ended
        self.too_large: dict[int, int] = {}  # trials that ran out of memory, and the bytes that they were to need
        known = self._trials()
        self.asked = sum(is_run(t) and "source" not in t.user_attrs for t in known if t.state != TrialState.WAITING)
        """Trials of this sweep that were, or are, trained."""
        self.study.sampler = make_sampler(self.search, self.space, len(known), len(self.search.objectives))
        for trial in known:
            if trial.state == TrialState.RUNNING:
                self.unfinished.append(trial)
                if (point := trial.user_attrs.get("point")) is not None:  # it will be trained, beside those that are drawn
                    self.seen.setdefault(point_key(point), trial.number)
            elif trial.state.is_finished():
                self._learn(trial)
        for trial in known:
            self._grow(trial)
        self._before, self._began = self.study.user_attrs.get("seconds", 0.0), time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers to restore them; this one's state is the study

    @property
    def remaining(self) -> int:
        """Trials that Ray still has to run, at most."""
        return 0 if self._spent() and not self.unfinished else len(self.unfinished) + max(0, self.trials - self.asked)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's run folder, or FINISHED."""
        while self.unfinished:
            trial = Trial(self.study, self.unfinished.pop(0)._trial_id)
            run = self._prepare(trial)
            if not run.ended or not run.keeps_best():
                return self._start(trial_id, trial, run)
            self._tell(trial, run)  # it ended, but the driver did not live to write it down
        if self.asked >= self.trials or self._spent():
            return Searcher.FINISHED
        new = self._ask()
        return self._start(trial_id, new, self._prepare(new)) if new else Searcher.FINISHED

    # What to try.

    def _ask(self) -> Trial | None:
        """A trial whose configuration is new, or None when all have been tried."""
        count = self.space.count()
        small = count is not None and count <= ENUMERABLE
        for _ in range(REDRAWS if small else 100):
            if count == len(self.seen):
                return None
            if (trial := self._draw()) is not None:
                return trial
        while small and (point := self._nearest_left()) is not None:
            self.study.enqueue_trial(self.space.params(point))
            if (trial := self._draw()) is not None:
                return trial
        return None

    @cached_property
    def _points(self) -> dict[str, dict[str, Any]]:
        """The points of a space that has finitely many, by their keys."""
        return {point_key(point): point for point in self.space.points()}

    def _nearest_left(self) -> dict[str, Any] | None:
        """The configuration nearest to the sampler's last proposal among those that are not known, by fields that differ."""
        wanted = self._trials()[-1].user_attrs.get("point", {})
        left = [point for key, point in self._points.items() if key not in self.seen]
        random.Random(f"{self.search.seed} {len(self._trials())}").shuffle(left)  # among equals none is preferred
        return min(left, key=lambda point: sum(wanted.get(f) != value for f, value in point.items()), default=None)

    def _draw(self) -> Trial | None:
        """Ask the sampler once; None, and the trial told as not run, when its configuration is not to be trained."""
        trial = self.study.ask()
        point = self.space.suggest(trial)
        trial.set_user_attr("point", point)
        found = self._why_not(point)
        if found is None:
            self.seen[point_key(point)] = trial.number
            self.asked += 1
            return trial
        attribute, other, reason = found
        trial.set_user_attr(attribute, other)
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _why_not(self, point: dict[str, Any]) -> tuple[str, int, str] | None:
        """Attribute, other trial and reason of a configuration that is not to be trained now."""
        if (same := self.seen.get(point_key(point))) is not None:
            return "duplicate_of", same, f"not run: the same configuration as trial {same}"
        for number, limit in self.too_large.items():
            if (needed := memory_bytes(self.space.config(point))) >= limit:
                self.seen[point_key(point)] = number
                shown = f"{needed / 2**20:,.0f} MiB, and trial {number} ran out of memory with {limit / 2**20:,.0f}"
                return "too_large", number, f"not run: it needs about {shown}"
        return self._shorter_first(point) if self.search.short_first else None

    def _shorter_first(self, point: dict[str, Any]) -> tuple[str, int, str] | None:
        short = self._shortest(point)
        if point_key(short) == point_key(point):
            return None
        number = self.seen.get(point_key(short))
        if number is None:
            self.study.enqueue_trial(self.space.params(short), user_attrs={"then": point})
            return "put_off", -1, f"not run yet: timesteps {short['model.timesteps']} go first"
        state = self._trials()[number].state
        if not state.is_finished():
            return "put_off", number, f"not run yet: trial {number} with timesteps {short['model.timesteps']} is not done"
        if state != TrialState.COMPLETE:
            self.seen[point_key(point)] = number
            return "put_off", number, f"not run: trial {number} with timesteps {short['model.timesteps']} was not worth it"
        return None

    def _shortest(self, point: dict[str, Any]) -> dict[str, Any]:
        """The point with the fewest timesteps, and blocks of all of them."""
        return min(point, self._shortest_of.get(point_key(_rest(point)), point), key=_length)

    @cached_property
    def _shortest_of(self) -> dict[str, dict[str, Any]]:
        """The shortest of the points that differ in T and b alone, by the key of the rest; none in a continuous space."""
        found: dict[str, dict[str, Any]] = {}
        for point in self._points.values() if self.space.count() is not None else ():
            known = found.setdefault(point_key(_rest(point)), point)
            if _length(point) < _length(known):
                found[point_key(_rest(point))] = point
        return found

    def _prepare(self, trial: Trial) -> Run:
        """The run folder of a trial, made if it is new."""
        run = self.sweep.trial(trial.number)
        if not run.path.exists():
            if (point := trial.user_attrs.get("point")) is None:  # its driver was killed in between
                point = self.space.suggest(trial)
                trial.set_user_attr("point", point)
            self.seen.setdefault(point_key(point), trial.number)
            origin = {"sweep": self.sweep.name, "trial": trial.number, "point": point}
            weights, parent = self._inherited(point)
            if parent is not None:
                origin["inherited"] = parent
                trial.set_user_attr("inherited", parent)
            Run.create(run.path, self.space.config(point), origin, weights=weights)
        return run

    def _inherited(self, point: dict[str, Any]) -> tuple[Any, int | None]:
        """Weights, and trial, of the finished trial nearest in timesteps among those that differ in T and b alone."""
        if self.search.inherit == "none":
            return None, None
        parents = []
        for trial in self._trials():
            other = trial.user_attrs.get("point", {})
            if trial.state == TrialState.COMPLETE and _rest(other) == _rest(point):
                run = self.sweep.trial(trial.number)
                timesteps = [self.space.config(p).model.timesteps for p in (point, other)]
                parents.append((abs(math.log(timesteps[0] / timesteps[1])), trial.number, run))
        if not parents:
            return None, None
        _, number, run = min(parents, key=lambda p: p[:2])
        return weights_file(run.best_checkpoint()), number

    def _start(self, trial_id: str, trial: Trial, run: Run) -> dict[str, Any]:
        self.active[trial_id] = trial
        return _work(trial.number, run, self.attempt)

    # What came of it.

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray's hook; `judge` does the work, because the scheduler must hear the verdict."""

    def judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Keep an epoch's value in the study; True when the trial is to be stopped."""
        trial, epoch = self.active.get(trial_id), int(result["epoch"])
        if trial is None:
            return True
        run = self.sweep.trial(trial.number)
        run.refresh()
        rows = run.metrics()
        new = self._mirror(trial, rows)
        missing = [metric for metric in self.search.directions if metric not in rows[-1]]
        if missing:
            run.fail(f"reports no {', '.join(missing)}, which search.objectives names", cause="input")
        elif new and epoch < self.epochs and (reason := self._verdict(trial, rows)):
            run.stop(reason)
        else:
            return False
        self._tell(trial, run)
        del self.active[trial_id]
        return True

    def _verdict(self, trial: Trial, rows: list[dict[str, float]]) -> str | None:
        search = self.search
        if reason := stopping.unhealthy(search, rows, self.config.model.num_classes):
            return reason
        if spent := self._spent():
            return f"stopped at epoch {len(rows)}: {spent}"
        if search.stopping == "front":
            return stopping.dominated(search, rows, list(self.done.values()))
        if search.stopping == "none":
            return None
        values = self.study._storage.get_trial(trial._trial_id).intermediate_values
        me = stopping.Rival(trial.number, values)
        return stopping.underperforming(search, self.epochs, me, self._rivals()) if values else None

    def _rivals(self) -> Iterator[stopping.Rival]:
        for trial in self._trials():
            if trial.intermediate_values:
                yield stopping.Rival(trial.number, trial.intermediate_values)

    def _mirror(self, trial: Trial, rows: list[dict[str, float]]) -> bool:
        """Bring the epochs that the run folder has and the study has not into the study; whether there were any.

        A driver that was killed may have died between the two. Optuna's own `report` refuses several objectives.
        """
        known = self.study._storage.get_trial(trial._trial_id).intermediate_values
        new = [row for row in rows if row["epoch"] not in known]
        for row in new:
            if math.isfinite(value := row.get(self.metric, math.nan)):
                self.study._storage.set_trial_intermediate_value(trial._trial_id, int(row["epoch"]), value)
        return bool(new)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Write a trial's end into the study."""
        trial = self.active.pop(trial_id, None)
        if trial is None:
            return  # pruned, and told
        run = self.sweep.trial(trial.number)
        run.refresh()
        if not run.ended:
            run.fail("its worker ended without a result" if error else "ended without a result")
        self._tell(trial, run)

    def _tell(self, trial: Trial, run: Run) -> None:
        rows, result, best = run.metrics(), run.result or {}, run.best
        self._mirror(trial, rows)
        state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}.get(run.state, TrialState.FAIL)
        reason, values = result.get("reason"), None
        if state == TrialState.COMPLETE:
            values = [best.get(metric, math.nan) for metric in self.search.directions]
            for metric, value in zip(self.search.directions, values, strict=True):
                if not math.isfinite(value):
                    state, values, reason = TrialState.FAIL, None, f"{metric} is {value:g} at the best epoch"
                    break
        if result.get("cause") == "memory":
            trial.set_user_attr("memory_bytes", memory_bytes(run.config))
        if reason:
            trial.set_user_attr("reason", reason)
        if values is not None:
            for text in self.search.constraints:
                trial.set_constraint(text, violation(text, best))
        if self.search.max_hours:
            self.study.set_user_attr("seconds", self._seconds())
        told = self.study.tell(trial, values, state=state)
        self._learn(told)
        self._grow(told)
        if "source" not in trial.user_attrs:
            run.publish(self.attempt)
        self.sweep.publish(self.attempt)

    def _learn(self, trial: FrozenTrial) -> None:
        """Draw on a trial that has ended."""
        point = trial.user_attrs.get("point")
        if not is_run(trial) or point is None:
            return
        self.seen.setdefault(point_key(point), trial.number)
        self.trained += len(trial.intermediate_values) if "source" not in trial.user_attrs else 0
        if "memory_bytes" in trial.user_attrs:
            self.too_large[trial.number] = trial.user_attrs["memory_bytes"]
        if trial.state == TrialState.COMPLETE and len(self.search.objectives) > 1:
            self.done[trial.number] = stopping.Done(self.sweep.trial(trial.number).metrics(), trial.values)

    def _grow(self, trial: FrozenTrial) -> None:
        """After a trial with few timesteps, ask for the one with more that was put off for it."""
        longer = trial.user_attrs.get("then")
        if trial.state != TrialState.COMPLETE or longer is None or point_key(longer) in self.seen:
            return
        params = self.space.params(longer)
        # Not those of any other trial: the one that was put off has them too.
        waiting = [t.system_attrs.get("fixed_params") for t in self._trials() if t.state == TrialState.WAITING]
        if params not in waiting:
            self.study.enqueue_trial(params)

    # Budgets.

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _spent(self) -> str | None:
        """Which budget is used up."""
        search = self.search
        if search.max_hours and self._seconds() >= 3600 * search.max_hours:
            return f"the sweep's {search.max_hours:g} hours (search.max_hours) are over"
        if search.max_epochs:
            running = sum(len(self.sweep.trial(trial.number).metrics()) for trial in self.active.values())
            if self.trained + running >= search.max_epochs:
                return f"the sweep's {search.max_epochs:,} epochs (search.max_epochs) are trained"
        return None

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is on disk."""


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the searcher gives up."""

    _supports_buffered_results = False

    def __init__(self, searcher: OptunaSearcher):
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        return self.STOP if self._searcher.judge(trial.trial_id, result) else self.CONTINUE


class RepeatSearcher(Searcher):
    """Proposes run folders that are there already, those that are not finished."""

    def __init__(self, sweep: Sweep, runs: list[Run], attempt: str):
        search = sweep.config.search
        super().__init__(metric=search.metric, mode=search.directions[search.metric])
        self.attempt, self.waiting = attempt, [run for run in runs if not run.ended]
        self.active: dict[str, Run] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @property
    def remaining(self) -> int:
        """Runs that Ray still has to train."""
        return len(self.waiting)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next run folder, or FINISHED."""
        if not self.waiting:
            return Searcher.FINISHED
        run = self.active[trial_id] = self.waiting.pop(0)
        return _work(run.name, run, self.attempt)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to do: the run folder has it."""

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Say why a repeat ended without a result."""
        run = self.active.pop(trial_id)
        run.refresh()
        if not run.ended:
            run.fail("its worker ended without a result" if error else "ended without a result")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the run folders are on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the run folders are on disk."""


def point_key(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _length(point: dict[str, Any]) -> tuple[int, int]:
    """By which points that differ in T and b alone are ordered."""
    return point["model.timesteps"], -point.get("model.block_size", 0)


def _rest(point: dict[str, Any]) -> dict[str, Any]:
    """A point without the fields that own no weights."""
    return {path: value for path, value in point.items() if path not in FREE}
