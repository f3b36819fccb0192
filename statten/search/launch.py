"""Start, continue and extend sweeps on Ray Tune.

A trial of one worker is `fit` inside a Ray Tune actor, which the next trial reuses: starting one costs a tenth of a second.
A trial of several workers is a Tune function that holds no CPU and runs a TorchTrainer.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statten.cluster import nodes
from statten.cluster.session import ray_cluster
from statten.cluster.trainer import check_nodes, fit_on_workers, show_places
from statten.config import Config, dump_config, get_field, parse_overrides, with_overrides
from statten.data import resolved, split_document
from statten.display import console
from statten.errors import Failed, Superseded, UserError, in_shell
from statten.files import write_text
from statten.machine import environment
from statten.search.plan import SweepPlan, measure_sweep, plan_sweep
from statten.search.samplers import trials_of
from statten.search.sweep import Sweep
from statten.space.space import Space
from statten.storage.loggers import check_loggers
from statten.storage.run import Run
from statten.training.faults import classify
from statten.training.preflight import Preflight

if TYPE_CHECKING:
    from statten.search.live import LiveTable
    from statten.search.searcher import RepeatSearcher


def tune(config: Config, space: Space, path: Path, source: Sweep | None = None) -> Sweep:
    """Run a sweep in a new folder at `path` and return it.

    Args:
        config: the base config of all trials, and how to search.
        space: what varies.
        path: folder of the sweep; must not exist, on storage that all workers see.
        source: a sweep whose trials become this study's history where they could have been trials of this one.

    Raises:
        UserError: something in config, space, name or machine; nothing is written then.
        Failed: no trial reached its end.
    """
    if path.exists():
        Sweep.create(path, config, space)  # raises: say so before any machine is asked for
    config = with_overrides(resolved(config), {"search.trials": trials_of(config.search, space)})
    check_loggers(config, path.name)
    with ray_cluster(config.scale.address, dashboard=config.scale.max_workers > 1):
        machines = check_nodes(config, path)
        plan = plan_sweep(config, space, nodes.capacity(machines))
        show_places(machines, plan.trial, config.scale, plan.concurrent)
        console.print(str(plan))  # rich would spell the dataclass out
        if cost := measure_sweep(plan):
            console.print(f"cost: {cost}")
        extra = {"environment.json": environment(), "splits.json": split_document(config)}
        sweep = Sweep.create(path, config, space, extra)
        if source is not None:
            from statten.search.transfer import take_over

            try:
                taken, left = take_over(sweep, source)
            except UserError:
                shutil.rmtree(sweep.path)  # nothing is in it yet
                raise
            console.print(f"{taken} finished trials of {source.name} are known to this sweep; {left} differ and are left out")
        return _execute(sweep, plan)


def resume_sweep(sweep: Sweep) -> Sweep:
    """Finish a sweep whose driver was stopped: unfinished trials go on from their checkpoints, finished ones stay."""
    config = sweep.config
    check_loggers(config, sweep.name)
    with sweep.resumable(), ray_cluster(config.scale.address, dashboard=config.scale.max_workers > 1):
        machines = check_nodes(config, sweep.path)
        plan = plan_sweep(config, sweep.space, nodes.capacity(machines))
        show_places(machines, plan.trial, config.scale, plan.concurrent)
        return _execute(sweep, plan)


EXTENDABLE = (
    "search.scheduler", "search.grace_epochs", "search.reduction_factor", "search.firing_range", "search.max_hours",
    "search.max_epochs", "search.max_concurrent",
)  # fmt: skip
"""Rules of stopping and budgets: what may be another for further trials, which are compared with those before them."""


def extend_sweep(sweep: Sweep, trials: int, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Sweep:
    """Run `trials` more trials than the sweep was asked for; its study, and what it learnt, go on.

    Args:
        sweep: which.
        trials: how many more.
        overrides: other rules of stopping and budgets from now on, fields of EXTENDABLE; the study keeps a record.

    Raises:
        UserError: another field is to be changed, or as `resume_sweep`.
    """
    config, fields = sweep.config, parse_overrides(overrides)
    asked = trials_of(config.search, sweep.space) + trials
    more = with_overrides(config, {**fields, "search.trials": asked})
    if fixed := [field for field in fields if field not in EXTENDABLE]:
        raise UserError(
            f"--set {fixed[0]}: must stay as it is, for further trials are compared with those before them; what may change is "
            f"{', '.join(EXTENDABLE)}"
        )
    trials_of(more.search, sweep.space)  # raises where a grid has not as many
    changed = {field: [get_field(config, field), get_field(more, field)] for field in fields}
    with sweep.writing():
        if changed := {field: both for field, both in changed.items() if both[0] != both[1]}:
            study = sweep.study()
            record = {"from_trial": len(study.get_trials(deepcopy=False)), "fields": changed}
            study.set_user_attr("changed", [*study.user_attrs.get("changed", []), record])
        write_text(sweep.path / "config.yaml", dump_config(more))
    return resume_sweep(Sweep(sweep.path))


def _execute(sweep: Sweep, plan: SweepPlan) -> Sweep:
    # Not before Ray is started: what these import from it reads the environment.
    from statten.search.live import LiveTable
    from statten.search.searcher import OptunaSearcher, StudyScheduler

    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        for sentence in searcher.rebuilt:
            console.print(sentence, markup=False)
        if sweep.ended and not searcher.unfinished:
            raise UserError(f"{sweep.path}: all of its trials have ended, there is nothing to resume; add some with: "
                            f"statten extend {in_shell(sweep.name)} --trials 8")  # fmt: skip
        with LiveTable(sweep, plan.trials) as live:
            if searcher.remaining:
                _run(sweep, plan, attempt, searcher, StudyScheduler(searcher), live)
            rows = list(sweep.rows(searcher.study))
            if not any(trial.state.name == "COMPLETE" for trial, _ in rows):
                searcher.study.set_user_attr("ended", searcher.trials)
                reasons = {trial.user_attrs.get("reason", "unknown") for trial, _ in rows}
                raise Failed(f"{sweep.path}: no trial reached its end: {'; '.join(sorted(reasons))}")
            repeats = _repeats(sweep, attempt)
            if repeats.remaining:
                _run(sweep, plan, attempt, repeats, None, live)
            searcher.study.set_user_attr("ended", searcher.trials)  # not before: `resume` finishes repeats too
        shutil.rmtree(sweep.path.resolve() / "ray", ignore_errors=True)
    return sweep


def _repeats(sweep: Sweep, attempt: str) -> "RepeatSearcher":
    from statten.search.repeats import planned
    from statten.search.searcher import RepeatSearcher

    try:
        runs = planned(sweep)
    except UserError:  # no trial keeps the constraints: nothing to repeat
        runs = []
    return RepeatSearcher(sweep, runs, attempt)


def _run(sweep: Sweep, plan: SweepPlan, attempt: str, searcher: Any, scheduler: Any, live: "LiveTable") -> None:
    """Train what a searcher proposes on Ray Tune."""
    from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner, with_resources

    one = plan.trial.world_size == 1
    gpu = {"GPU": plan.gpus_per_trial} if plan.gpus_per_trial else {}
    # A driver that held a CPU while its workers wait for CPUs would wait for ever; every head node has this resource.
    bundle = {"CPU": plan.trial.cpus_per_worker, **gpu} if one else {"node:__internal_head__": 0.001}
    Tuner(
        with_resources(_Trial(plan.trial), PlacementGroupFactory([bundle])),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=searcher.remaining,
            max_concurrent_trials=plan.concurrent,
            reuse_actors=one,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            name=f"{type(searcher).__name__}-{attempt}",
            storage_path=str(sweep.path.resolve() / "ray"),
            verbose=0,
            callbacks=[live],
            failure_config=FailureConfig(max_failures=sweep.config.scale.max_failures),
        ),
    ).fit()


def _trial_name(trial: Any) -> str:
    number = trial.config["number"]
    return f"{number:04d}" if isinstance(number, int) else number


class _Trial:
    """What a Tune actor runs for each trial. A class, because Ray wants something that it can pickle and name."""

    __name__ = "trial"

    def __init__(self, plan: Preflight):
        self.plan = plan

    def __call__(self, config: dict[str, Any]) -> None:
        import ray.tune

        run = Run.at(config["address"], config["attempt"], writes=self.plan.world_size == 1)
        if run.state == "failed":
            return
        try:
            if self.plan.world_size == 1:
                from statten.training.worker import run_fit  # and timm, which the driver does without

                run_fit(run, config["attempt"], threads=self.plan.cpus_per_worker, then=ray.tune.report)
            else:
                from ray.tune.integration.ray_train import TuneReportCallback

                fit_on_workers(run, config["attempt"], self.plan, TuneReportCallback())
        except Failed:
            return  # the reason is in the folder
        except Superseded:
            raise  # a newer driver has this trial: nothing of it is ours to write
        except Exception as error:
            fault = classify(error)
            if fault.retry:
                raise  # Ray starts the trial again, and it goes on from its newest checkpoint
            run.fail(fault.reason, cause=fault.kind)
