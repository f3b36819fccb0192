"""What a sweep will be and cost, before it starts."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from statten.cluster import nodes
from statten.config import Config, constraint, with_overrides
from statten.data import lacks_data, make_loaders, resolved
from statten.display import console, duration
from statten.errors import Failed, UserError, nearest
from statten.metrics.labels import reported
from statten.registry import BACKBONES
from statten.search.costs import Cost, costs
from statten.search.samplers import make_sampler, trials_of
from statten.space.space import Space
from statten.storage.loggers import check_loggers
from statten.training.preflight import Preflight, memory_bytes, own_capacity, preflight


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
    capacity = own_capacity() if capacity is None else capacity
    check_objectives(config, trial.device)
    gpus = config.scale.gpus_per_worker * trial.world_size if trial.device == "cuda" else 0.0
    at_once = int(capacity.get("CPU", 0)) // (trial.world_size * trial.cpus_per_worker)
    if gpus:
        at_once = min(at_once, int(capacity.get("GPU", 0) / gpus + 1e-9))
    count, trials = space.count(), trials_of(search, space)
    trials = trials if count is None else min(trials, count)
    concurrent = min(at_once, search.max_concurrent or at_once, trials)
    extremes = extreme_configs(space)
    largest = memory_bytes(extremes[1], trial.device)
    if trial.device == "cuda" and torch.cuda.is_available():  # a driver without a GPU cannot know those of its workers
        there = torch.cuda.get_device_properties(0).total_memory
        _check_memory(largest, there, trial.device, config.scale.gpus_per_worker)
    epochs = config.train.total_epochs * (trials + (search.repeats - 1) * min(search.finalists, trials))
    return SweepPlan(trial, largest, trials, concurrent, count, min(epochs, search.max_epochs or epochs), gpus, extremes)


def extreme_configs(space: Space) -> tuple[Config, Config]:
    """The corners of a space whose activations are fewest and most, by what its backbone says of them."""

    def size(config: Config) -> tuple[int, int]:
        model = config.model
        blocks = -(-model.timesteps // model.block_size)  # of two alike, more of them keep more products
        return config.train.batch_size * BACKBONES[model.backbone].activations(model), blocks

    corners = sorted((space.config(point) for point in itertools.islice(space.corners(), 2000)), key=size)
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
    known, problems = reported(config), []
    named = [("objectives", metric) for metric in config.search.directions]
    named += [("constraints", constraint(text)[0]) for text in config.search.constraints]
    for field, metric in named:
        if metric not in known and not metric.startswith("firing_rate/blocks."):  # depth may be searched
            problems.append(f"search.{field}: no trial reports {metric}; {nearest(metric, known)}")
        if metric == "peak_memory_mib" and device == "cpu":
            problems.append(f"search.{field}: peak_memory_mib is measured on GPUs, and the device is cpu; leave it out")
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


@dataclass(frozen=True)
class Rehearsal:
    """What a run or a sweep would be: what `--dry-run` shows."""

    config: Config
    """With no field at auto, unless there is no data yet."""
    trial: Preflight
    """The run, or one trial of the sweep."""
    placement: list[nodes.Share]
    """What would run where."""
    sweep: SweepPlan | None = None
    cost: SweepCost | None = None
    """Of the sweep, where it could be measured."""

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        found: dict[str, Any] = asdict(self.trial)
        if self.sweep is not None:
            found |= {name: value for name, value in vars(self.sweep).items() if name not in ("trial", "extremes")}
            found["cost"] = self.cost and asdict(self.cost)
        return {**found, "placement": [asdict(share) for share in self.placement]}


def dry_run(config: Config, space: Space | None = None) -> Rehearsal:
    """Check everything that `train` (with a space: `tune`) would check, plan it, and start nothing.

    Raises:
        UserError: with every problem.
    """
    scale = config.scale
    if has_data := not lacks_data(config):
        config = resolved(config)
    check_loggers(config, starts=False)
    machines = nodes.survey(scale.address)
    if space is None:
        plan = preflight(config, nodes.capacity(machines), has_data)
        return Rehearsal(config, plan, nodes.place(machines, 1, plan, scale))
    sweep = plan_sweep(config, space, nodes.capacity(machines))
    with nodes.joined(scale.address):
        cost = measure_sweep(sweep)
    return Rehearsal(config, sweep.trial, nodes.place(machines, sweep.concurrent, sweep.trial, scale), sweep, cost)
