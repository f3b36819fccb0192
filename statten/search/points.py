"""A supernet's points, evaluated by Ray actors that hold its weights: no trial of Tune, no folder and no training for a point.

The driver alone writes: a line for each point, some at a time. So whatever is killed, what was written stays, and a point that
was not written is evaluated again; the points that a search asks for follow from the values of those before them, so it finds
its way again. Ray starts a lost actor anew with the same weights.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from statten.config import Config, build_config
from statten.data import make_loaders
from statten.display import progress_bar
from statten.errors import Failed, first_line
from statten.files import append_line, cut_torn_line
from statten.metrics.inference import latency_ms
from statten.records.runs import Inherited
from statten.search.front import objectives
from statten.search.searcher import point_key
from statten.space.loading import make_space
from statten.space.space import Point, Space
from statten.storage.checkpoint import load_weights
from statten.storage.supernet import POINTS, Supernet
from statten.training.loop import validate
from statten.training.preflight import Preflight, this_device
from statten.training.subnetworks import ready

ALL = 5000
"""Points up to which a space is evaluated whole."""
SEARCHED = 2000
"""Points that are evaluated of a larger one."""
POPULATION = 64
IDLE = 10
"""Generations without a new point after which a search ends."""
MOST_AT_ONCE = 16
"""Points of one call at most."""
LOST = 20
"""How often a call is made again whose actor was lost."""
KEPT = ("val/loss", "val/top1", "val/top5", "energy_uj")
MEASURED = (*KEPT, "parameters", "latency_ms")
"""Metrics of a point."""

Asked = list[tuple[int, Point]]


class Evaluator:
    """What an actor is: the data, and the evaluation of points.

    The weights come with every call, which is not to send them: they lie in Ray's memory on each machine once, and an actor
    that is started anew finds them there.
    """

    def __init__(self, checkpoint: str, config: dict[str, Any], tree: dict[str, Any], threads: int):
        torch.set_num_threads(threads)
        self._checkpoint = checkpoint
        self._config = build_config(config)
        self._space = make_space(tree, self._config)
        self._loaders = make_loaders(self._config)
        self._device = this_device(self._config.scale)

    def evaluate(self, weights: Mapping[str, Any], asked: Asked) -> list[Inherited]:
        """A line for each point, with slices of the weights, arrays by name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Ray's memory cannot be written, and nobody does
            state = {name: torch.from_numpy(value) for name, value in weights.items()}
        return [self._evaluate(state, number, point) for number, point in asked]

    def _evaluate(self, state: Mapping[str, Tensor], number: int, point: Point) -> Inherited:
        began, config = time.monotonic(), self._space.config(point)
        network = ready(state, config, self._loaders, self._device)
        found = validate(network, self._loaders.validation, config)
        metrics = {name: found[name] for name in KEPT}
        metrics["parameters"] = float(sum(parameter.numel() for parameter in network.parameters()))
        metrics["latency_ms"] = latency_ms(network, config)
        seconds = time.monotonic() - began
        return {"number": number, "point": point, "metrics": metrics, "checkpoint": self._checkpoint, "seconds": seconds}


def points_of(space: Space, asked: int | None) -> int:
    """How many points are evaluated: as many as were asked for, else all of a small space, and SEARCHED of a larger one."""
    count = space.count()
    there = ALL + 1 if count is None else count
    wanted = asked or (there if there <= ALL else SEARCHED)
    return wanted if count is None else min(wanted, count)


def rounds(space: Space, config: Config, points: int, known: Mapping[int, Inherited]) -> Iterator[Asked]:
    """Which points to evaluate, in rounds: each follows from the values of those before it, which `known` has then.

    All points, where as many are asked for as there are; else NSGA-II's generations.
    """
    if space.count() == points:
        yield list(enumerate(space.points()))
        return
    import optuna

    from statten.search.study import quietly

    directions = objectives(config)
    with quietly():
        sampler = optuna.samplers.NSGAIISampler(seed=config.search.seed, population_size=POPULATION)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ways = [
        optuna.study.StudyDirection.MAXIMIZE if way == "max" else optuna.study.StudyDirection.MINIMIZE
        for way in directions.values()
    ]
    study = optuna.create_study(directions=ways, sampler=sampler)
    numbers: dict[str, int] = {}
    idle = 0
    while len(numbers) < points and idle < IDLE:
        generation: list[tuple[optuna.Trial, int | None]] = []
        fresh: Asked = []
        for _ in range(POPULATION):
            trial = study.ask()
            point = space.suggest(trial)
            key = point_key(point)
            if key not in numbers and len(numbers) < points:
                numbers[key] = len(numbers)
                fresh.append((numbers[key], point))
            generation.append((trial, numbers.get(key)))
        idle = 0 if fresh else idle + 1
        if fresh:
            yield fresh
        for trial, number in generation:
            if number is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, [known[number]["metrics"][metric] for metric in directions])


def evaluate_points(supernet: Supernet, plan: Preflight, capacity: Mapping[str, float]) -> list[Inherited]:
    """Evaluate the points that a trained supernet was asked for, and return all; those that were evaluated before stay.

    Args:
        supernet: which; the caller is its only writer.
        plan: of its training, whose device counts.
        capacity: CPUs and GPUs of the cluster.

    Raises:
        Failed: an evaluation ended in an error, or an actor was lost again and again.
    """
    cut_torn_line(supernet.path / POINTS)
    known = {row["number"]: row for row in supernet.evaluated()}
    with _Actors(supernet, plan, capacity) as actors, progress_bar("points") as bar:
        task = bar.add_task("evaluating", total=supernet.points, rate="", completed=len(known))
        for asked in rounds(supernet.space, supernet.config, supernet.points, known):
            left = [(number, point) for number, point in asked if number not in known]
            for rows in actors.evaluated(left):
                append_line(supernet.path / POINTS, "\n".join(json.dumps(row) for row in rows))
                known.update((row["number"], row) for row in rows)
                bar.advance(task, len(rows))
    return [known[number] for number in sorted(known)]


class _Actors:
    """As many actors as there is room for, made when they are first needed; the weights lie in Ray's memory once."""

    def __init__(self, supernet: Supernet, plan: Preflight, capacity: Mapping[str, float]):
        scale = supernet.config.scale
        self._supernet, self._gpu = supernet, plan.device == "cuda"
        self._cpus = scale.cpus_per_worker or 1
        self._most = int(capacity.get("CPU", 0)) // self._cpus
        if self._gpu:
            self._most = min(self._most, int(capacity.get("GPU", 0) / scale.gpus_per_worker + 1e-9))
        self._most = max(1, min(self._most, supernet.config.search.max_concurrent or self._most))
        self._checkpoint = supernet.weights()
        self.actors: list[Any] = []
        self._weights: Any = None

    def __enter__(self) -> "_Actors":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)

    def _start(self, number: int) -> None:
        import ray

        if self.actors:
            return
        supernet, scale = self._supernet, self._supernet.config.scale
        averaged = supernet.config.train.ema_decay is not None
        state = load_weights(self._checkpoint, averaged=averaged)
        self._weights = ray.put({name: value.numpy() for name, value in state.items()})
        kind = ray.remote(
            num_cpus=self._cpus, num_gpus=scale.gpus_per_worker if self._gpu else 0, max_restarts=-1, max_task_retries=LOST
        )(Evaluator)
        config = supernet.config.model_dump(mode="json")
        for _ in range(min(self._most, number)):
            self.actors.append(kind.remote(self._checkpoint.name, config, supernet.space.tree, self._cpus))

    def evaluated(self, asked: Asked) -> Iterator[list[Inherited]]:
        """Evaluate points, and yield them as calls end."""
        import ray

        if not asked:
            return
        at_once = max(1, min(MOST_AT_ONCE, len(asked) // (4 * self._most)))
        calls = [asked[start : start + at_once] for start in range(0, len(asked), at_once)]
        self._start(len(calls))
        waiting, running = iter(calls), dict[Any, tuple[Any, Any]]()
        # Two calls for each: the next one is there when the first ends.
        for actor, call in zip(self.actors * 2, waiting, strict=False):
            running[actor.evaluate.remote(self._weights, call)] = (actor, call)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, call = running.pop(done)
            if following := next(waiting, None):
                running[actor.evaluate.remote(self._weights, following)] = (actor, following)
            try:
                found = ray.get(done)
            except ray.exceptions.RayError as error:
                raise Failed(
                    f"{self._supernet.path}: points {call[0][0]} to {call[-1][0]} could not be evaluated: "
                    f"{_reason(error)}; go on with: {self._supernet.resume_command}"
                ) from error
            yield found


def _reason(error: Exception) -> str:
    return first_line(getattr(error, "cause", None) or error)
