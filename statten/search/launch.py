"""Start, continue and extend sweeps on Ray Tune.

A trial of one worker is `fit` inside a Ray Tune actor, which the next trial reuses: starting one costs a tenth of a second.
A trial of several workers is a Tune function that holds no CPU and runs a TorchTrainer.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from statten.cluster import ray_cluster
from statten.config import Config, Failed, UserError, dump_config, with_overrides
from statten.data import absolute_root, split_document
from statten.files import write_text
from statten.runs import Run, environment
from statten.search.samplers import make_sampler, trials_of
from statten.search.space import Space
from statten.search.sweep import Sweep
from statten.train import Preflight, preflight, run_fit
from statten.trainer import fit_on_workers


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will be, before it starts."""

    trial: Preflight
    """One trial, at the base config."""
    trials: int
    """Trials in all."""
    concurrent: int
    """Trials that run side by side."""


def plan_sweep(config: Config, capacity: dict[str, float] | None = None) -> SweepPlan:
    """Check that the trials of a sweep can run, and how many at once; raises UserError with every problem."""
    if config.scale.cpus_per_worker is None:
        config = with_overrides(config, {"scale.cpus_per_worker": 1})
    trial = preflight(config, capacity)
    if capacity is None:
        capacity = {"CPU": float(os.cpu_count() or 1)}
        if trial.device == "cuda":
            capacity["GPU"] = float(torch.cuda.device_count())
    fit_at_once = int(capacity.get("CPU", 0)) // (trial.world_size * trial.cpus_per_worker)
    if trial.device == "cuda":
        fit_at_once = min(fit_at_once, int(capacity.get("GPU", 0)) // trial.world_size)
    concurrent = min(fit_at_once, config.search.max_concurrent or fit_at_once, config.search.trials)
    return SweepPlan(trial, config.search.trials, concurrent)


def tune(config: Config, space: Space, path: Path) -> Sweep:
    """Run a sweep in a new folder at `path` and return it.

    Raises:
        UserError: something in config, space, name or machine; nothing is written then.
        Failed: no trial reached its end.
    """
    make_sampler(config.search, space)  # raises where it cannot work in this space
    trials_of(config.search, space)
    if path.exists():
        Sweep.create(path, config, space)  # raises: say so before any machine is asked for
    config = absolute_root(config)
    with ray_cluster(config.scale.address, dashboard=config.scale.workers > 1) as capacity:
        plan = plan_sweep(config, capacity)
        extra = {"environment.json": environment(), "splits.json": split_document(config)}
        sweep = Sweep.create(path, config, space, extra)
        return _execute(sweep, plan)


def resume_sweep(sweep: Sweep) -> Sweep:
    """Finish a sweep whose driver was stopped: unfinished trials go on from their checkpoints, finished ones stay."""
    config = sweep.config
    with ray_cluster(config.scale.address, dashboard=config.scale.workers > 1) as capacity:
        return _execute(sweep, plan_sweep(config, capacity))


def extend_sweep(sweep: Sweep, trials: int) -> Sweep:
    """Run `trials` more trials than the sweep was asked for; its study, and what it learnt, go on."""
    config = sweep.config
    more = with_overrides(config, {"search.trials": config.search.trials + trials})
    trials_of(more.search, sweep.space)  # raises where a grid has not as many
    with sweep.writing():
        write_text(sweep.path / "config.yaml", dump_config(more))
    return resume_sweep(sweep)


def _execute(sweep: Sweep, plan: SweepPlan) -> Sweep:
    from ray.tune import FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner, with_resources

    from statten.search.live import LiveTable
    from statten.search.searcher import OptunaSearcher, StudyScheduler

    one = plan.trial.world_size == 1
    gpu = {"GPU": 1.0} if plan.trial.device == "cuda" else {}
    # A driver that held a CPU while its workers wait for CPUs would wait for ever; every head node has this resource.
    bundle = {"CPU": plan.trial.cpus_per_worker, **gpu} if one else {"node:__internal_head__": 0.001}
    scratch = sweep.path.resolve() / "ray"
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        if searcher.remaining == 0:
            raise UserError(f"{sweep.path}: all {searcher.trials} trials have ended, there is nothing to resume")
        with LiveTable(sweep, searcher.trials) as live:
            Tuner(
                with_resources(_Trial(plan.trial), PlacementGroupFactory([bundle])),
                tune_config=TuneConfig(
                    search_alg=searcher,
                    scheduler=StudyScheduler(searcher),
                    num_samples=searcher.remaining,
                    max_concurrent_trials=plan.concurrent,
                    reuse_actors=one,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=RunConfig(
                    name=attempt,
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[live],
                    failure_config=FailureConfig(max_failures=sweep.config.scale.max_failures),
                ),
            ).fit()
        shutil.rmtree(scratch, ignore_errors=True)
        if not any(trial.state.name == "COMPLETE" for trial, _ in sweep.rows(searcher.study)):
            reasons = {trial.user_attrs.get("reason", "unknown") for trial, _ in sweep.rows(searcher.study)}
            raise Failed(f"{sweep.path}: no trial reached its end: {'; '.join(sorted(reasons))}")
    return sweep


def _trial_name(trial: Any) -> str:
    return f"{trial.config['number']:04d}"


class _Trial:
    """What a Tune actor runs for each trial. A class, because Ray wants something that it can pickle and name."""

    __name__ = "trial"

    def __init__(self, plan: Preflight):
        self.plan = plan

    def __call__(self, config: dict[str, Any]) -> None:
        import ray.tune

        run = Run(Path(config["run"]))
        try:
            if self.plan.world_size == 1:
                run_fit(run, config["attempt"], threads=self.plan.cpus_per_worker, then=ray.tune.report)
            else:
                from ray.tune.integration.ray_train import TuneReportCallback

                fit_on_workers(run, config["attempt"], self.plan, TuneReportCallback())
        except Failed:
            return  # the reason is in the folder
        except Exception as error:
            # The same trial would fail the same way again; only a lost process is worth another try, and Ray sees to that.
            run.fail(f"{type(error).__name__}: {error}")
