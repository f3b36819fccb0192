"""Ray Tune asks, an Optuna study answers: a Searcher and a scheduler over Optuna's ask and tell.

The study lies on disk and is written before Ray hears of anything, so that it alone tells what happened:

    COMPLETE  trained to its end; the value is the metric at the best epoch
    PRUNED    stopped by successive halving, with its intermediate values
    FAIL      crashed or diverged, with the reason in user attribute `reason`
    RUNNING   a driver is alive, or was killed: `resume` continues such a trial in its own folder
"""

import math
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from statten.runs import Run
from statten.search.samplers import make_sampler
from statten.search.sweep import Sweep


class OptunaSearcher(Searcher):
    """Proposes trials: first those that a killed driver left unfinished, then new ones, until there are enough."""

    def __init__(self, sweep: Sweep, attempt: str):
        config = sweep.config
        super().__init__(metric=config.search.metric, mode=config.search.mode)
        self.sweep, self.space, self.study, self.attempt = sweep, sweep.space, sweep.study(), attempt
        self.epochs, self.trials = config.train.total_epochs, config.search.trials
        self.active: dict[str, Trial] = {}
        known = self.study.get_trials(deepcopy=False)
        self.study.sampler = make_sampler(config.search, self.space, completed=len(known))
        self.unfinished = [t for t in known if t.state == TrialState.RUNNING]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles searchers to restore them; this one's state is the study

    @property
    def remaining(self) -> int:
        """Trials that Ray still has to run."""
        asked = len(self.study.get_trials(deepcopy=False))
        return len(self.unfinished) + max(0, self.trials - asked)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's run folder, or FINISHED."""
        while self.unfinished:
            trial = Trial(self.study, self.unfinished.pop(0)._trial_id)
            run = self._prepare(trial)
            if run.state == "unfinished":
                return self._start(trial_id, trial, run)
            self._tell(trial, run)  # it ended, but the driver did not live to write it down
        if len(self.study.get_trials(deepcopy=False)) >= self.trials:
            return Searcher.FINISHED
        trial = self.study.ask()
        return self._start(trial_id, trial, self._prepare(trial))

    def _prepare(self, trial: Trial) -> Run:
        """The run folder of a trial, made if it is new."""
        run = self.sweep.trial(trial.number)
        if not run.path.exists():
            point = self.space.suggest(trial)
            trial.set_user_attr("point", point)
            origin = {"sweep": self.sweep.name, "trial": trial.number, "point": point}
            Run.create(run.path, self.space.config(point), origin)
        return run

    def _start(self, trial_id: str, trial: Trial, run: Run) -> dict[str, Any]:
        (run.path / "attempt").write_text(self.attempt)
        self.active[trial_id] = trial
        return {"number": trial.number, "run": str(run.path.resolve()), "attempt": self.attempt}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray's hook; `judge` does the work, because the scheduler must hear the verdict."""

    def judge(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Keep an epoch's value in the study; True when the trial is to be stopped."""
        trial, step = self.active.get(trial_id), int(result["epoch"])
        if trial is None:
            return True
        run = self.sweep.trial(trial.number)
        if self._mirror(trial, run) and step < self.epochs and trial.should_prune():
            run.stop(f"stopped at epoch {step}: {self.metric} {result[self.metric]:.2f} is below the best at this rung")
            self._tell(trial, run)
            del self.active[trial_id]
            return True
        return False

    def _mirror(self, trial: Trial, run: Run) -> bool:
        """Bring the epochs that the run folder has and the study has not into the study; whether there were any.

        A driver that was killed may have died between the two.
        """
        known = self.study._storage.get_trial(trial._trial_id).intermediate_values
        new = {int(r["epoch"]): r[self.metric] for r in run.metrics() if r["epoch"] not in known}
        for epoch, value in new.items():
            if math.isfinite(value):
                trial.report(value, epoch)
        return bool(new)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Write a trial's end into the study."""
        trial = self.active.pop(trial_id, None)
        if trial is None:
            return  # pruned, and told
        run = self.sweep.trial(trial.number)
        if run.state == "unfinished":
            run.fail("its worker ended without a result" if error else "ended without a result")
        self._tell(trial, run)

    def _tell(self, trial: Trial, run: Run) -> FrozenTrial:
        self._mirror(trial, run)
        result = run.result or {}
        if result["state"] == "finished":
            return self.study.tell(trial, result["best"][self.metric])
        trial.set_user_attr("reason", result.get("reason", "unknown"))
        return self.study.tell(trial, state=TrialState.PRUNED if result["state"] == "stopped" else TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the study is on disk."""


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the study's pruner gives up."""

    _supports_buffered_results = False

    def __init__(self, searcher: OptunaSearcher):
        super().__init__()
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        return self.STOP if self._searcher.judge(trial.trial_id, result) else self.CONTINUE
