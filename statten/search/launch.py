"""Start, continue and extend sweeps on Ray Tune.

A trial of one worker is `fit` inside a Ray Tune actor, which the next trial reuses: starting one costs a tenth of a second.
A trial of several workers is a Tune function that holds no CPU and runs a TorchTrainer.
"""

import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from statten import nodes
from statten.cluster import ray_cluster
from statten.config import METRICS, Config, constraint, dump_config, with_overrides
from statten.costs import Cost, costs
from statten.data import absolute_root, make_loaders, split_document
from statten.display import console, duration
from statten.errors import Failed, Superseded, UserError, nearest
from statten.files import write_text
from statten.machine import environment
from statten.models import build_model
from statten.search.samplers import make_sampler, trials_of
from statten.search.sweep import Sweep
from statten.space.space import Space
from statten.storage.run import Run
from statten.trainer import check_nodes, fit_on_workers, show_places
from statten.training.faults import classify
from statten.training.preflight import Preflight, memory_bytes, preflight
from statten.training.worker import run_fit

if TYPE_CHECKING:
    from statten.search.live import LiveTable
    from statten.search.searcher import RepeatSearcher


@dataclass(frozen=True)
class SweepCost:
    """What a sweep may cost, by a few steps of its smallest and its largest trial; see costs.py."""

    smallest: Cost
    largest: Cost
    hours: tuple[float, float]
    """If all trials were as the smallest, or as the largest, and none is stopped early; reading data comes on top."""

    def __str__(self) -> str:
        least, most = (duration(3600 * hours) for hours in self.hours)
        return (
            f"the largest trial needs {self.largest.memory_bytes / 2**20:,.0f} MiB and {1000 * self.largest.step_seconds:,.0f} "
            f"ms a step; {least} to {most} in all, if no trial is stopped early"
        )


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will be, before it starts."""

    trial: Preflight
    """One trial, at the base config."""
    largest_bytes: int
    """Memory of one worker of the trial that needs the most; an estimate, see Preflight."""
    trials: int
    """Trials in all."""
    concurrent: int
    """Trials that run side by side."""
    configurations: int | None
    """Different configurations in the space; None where a range is continuous."""
    epochs: int
    """Epochs of training at most: no trial is stopped early, repeats included."""
    gpus_per_trial: float
    """Share of GPUs that a trial holds."""
    extremes: tuple[Config, Config]
    """Those trials that are likely to need the least and the most; see `extreme_configs`."""

    def __str__(self) -> str:
        of = "" if self.configurations is None else f" of {self.configurations:,} configurations"
        return f"{self.trials} trials{of}, {self.concurrent} at a time, at most {self.epochs:,} epochs"


def plan_sweep(config: Config, space: Space, capacity: dict[str, float] | None = None) -> SweepPlan:
    """Check that the trials of a sweep can run, and how many at once; raises UserError with every problem."""
    if config.scale.cpus_per_worker is None:
        config = with_overrides(config, {"scale.cpus_per_worker": 1})
    trial, search = preflight(config, capacity), config.search
    make_sampler(search, space, objectives=len(search.objectives))  # raises where it cannot work in this space
    if capacity is None:
        capacity = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    check_objectives(config, trial.device)
    gpus = config.scale.gpus_per_worker * trial.world_size if trial.device == "cuda" else 0.0
    at_once = int(capacity.get("CPU", 0)) // (trial.world_size * trial.cpus_per_worker)
    if gpus:
        at_once = min(at_once, int(capacity.get("GPU", 0) / gpus + 1e-9))
    count, trials = space.count(), trials_of(search, space)
    trials = trials if count is None else min(trials, count)
    concurrent = min(at_once, search.max_concurrent or at_once, trials)
    extremes = extreme_configs(space)
    largest = memory_bytes(extremes[1])
    if trial.device == "cuda" and torch.cuda.is_available():  # a driver without a GPU cannot know those of its workers
        there = torch.cuda.get_device_properties(0).total_memory
        _check_memory(largest, there, trial.device, config.scale.gpus_per_worker)
    epochs = config.train.total_epochs * (trials + (search.repeats - 1) * min(search.finalists, trials))
    return SweepPlan(trial, largest, trials, concurrent, count, min(epochs, search.max_epochs or epochs), gpus, extremes)


def extreme_configs(space: Space) -> tuple[Config, Config]:
    """The corners of a space whose activations are fewest and most, by B x T x D x depth."""

    def activations(config: Config) -> int:
        model, batch = config.model, config.train.batch_size
        return batch * model.timesteps * model.embed_dim * (model.depth + 2)  # the embedding is worth about two blocks

    corners = sorted((space.config(point) for point in itertools.islice(space.corners(), 2000)), key=activations)
    return corners[0], corners[-1]


def measure_sweep(plan: SweepPlan) -> SweepCost | None:
    """Measure the smallest and the largest trial, where a sweep's trials would run; None, and a line why, where that fails.

    Raises:
        UserError: the largest does not fit into memory, or into its share of a GPU.
    """
    device, share = plan.trial.device, plan.gpus_per_trial / plan.trial.world_size
    try:
        smallest, largest = costs(plan.extremes, device, plan.trial.cpus_per_worker, share)
    except Failed as error:
        console.print(f"cost: not measured: {error}")
        return None
    _check_memory(largest.memory_bytes, largest.there_bytes, device, share)

    def hours(config: Config, cost: Cost) -> float:
        loaders = make_loaders(config, 0, plan.trial.world_size)
        steps, batches = loaders.train.steps_per_epoch, len(loaders.validation)
        epoch = steps * cost.step_seconds + batches * cost.validation_seconds
        return epoch * plan.epochs / plan.concurrent / 3600

    least, most = (hours(c, cost) for c, cost in zip(plan.extremes, (smallest, largest), strict=True))
    return SweepCost(smallest, largest, (min(least, most), max(least, most)))


def check_objectives(config: Config, device: str) -> None:
    """Raise UserError unless trials report everything that `search.objectives` and `search.constraints` name."""
    with torch.device("meta"):
        layers = build_model(config.model, "torch").spiking_layers()
    reported = [*METRICS, "train/loss", "train/top1", "lr", "samples_per_second", *(f"firing_rate/{layer}" for layer in layers)]
    wanted = [*config.search.directions, *(constraint(text)[0] for text in config.search.constraints)]
    problems = []
    for metric in wanted:
        if metric not in reported and not metric.startswith("firing_rate/blocks."):  # depth may be searched
            problems.append(f"search.objectives: no trial reports {metric}; {nearest(metric, reported)}")
        if metric == "peak_memory_mib" and device == "cpu":
            problems.append("search.objectives: peak_memory_mib is measured on GPUs, and the device is cpu; leave it out")
    if problems:
        raise UserError(problems)


def _check_memory(largest: int, there: int, device: str, share: float) -> None:
    share = share if device == "cuda" else 1.0
    if largest > there * share:
        where = f"its share of a GPU has {there * share / 2**30:.1f}" if device == "cuda" else f"there are {there / 2**30:.1f}"
        raise UserError(
            f"search: the largest trial needs about {largest / 2**30:.1f} GiB, and {where}; make the space or "
            "train.batch_size smaller, or set scale.activation_checkpointing=true"
        )


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
    config = with_overrides(absolute_root(config), {"search.trials": trials_of(config.search, space)})
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
            from statten.search.searcher import take_over

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
    with ray_cluster(config.scale.address, dashboard=config.scale.max_workers > 1):
        machines = check_nodes(config, sweep.path)
        plan = plan_sweep(config, sweep.space, nodes.capacity(machines))
        show_places(machines, plan.trial, config.scale, plan.concurrent)
        return _execute(sweep, plan)


def extend_sweep(sweep: Sweep, trials: int) -> Sweep:
    """Run `trials` more trials than the sweep was asked for; its study, and what it learnt, go on."""
    config = sweep.config
    more = with_overrides(config, {"search.trials": trials_of(config.search, sweep.space) + trials})
    trials_of(more.search, sweep.space)  # raises where a grid has not as many
    with sweep.writing():
        write_text(sweep.path / "config.yaml", dump_config(more))
    return resume_sweep(Sweep(sweep.path))


def _execute(sweep: Sweep, plan: SweepPlan) -> Sweep:
    # Not before Ray is started: what these import from it reads the environment.
    from statten.search.live import LiveTable
    from statten.search.searcher import OptunaSearcher, StudyScheduler

    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        if sweep.ended and not searcher.unfinished:
            raise UserError(f"{sweep.path}: all of its trials have ended, there is nothing to resume; add some with: "
                            f"statten extend {sweep.name} --trials 8")  # fmt: skip
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
