"""One training for every architecture of a space: a supernet is trained as a run is, and its points are evaluated then."""

import random
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from math import ceil, lcm
from pathlib import Path
from typing import Any

from statten.cluster.nodes import capacity
from statten.cluster.session import ray_cluster
from statten.cluster.trainer import check_nodes, fit_on_workers, show_places, train
from statten.config import Config, get_field, with_overrides
from statten.data import check_split, split_document
from statten.display import console
from statten.display.run import following
from statten.errors import ConfigError, UserError, nearest
from statten.files import write_json
from statten.machine import environment
from statten.models.slices import FREE, NESTED, check_sliced, extract
from statten.registry import BACKBONES
from statten.search.front import compared, objectives
from statten.search.points import MEASURED, evaluate_points, points_of
from statten.space.dimensions import Couple, Derived, Multiples, Plain
from statten.space.expressions import Expression
from statten.space.loading import make_space
from statten.space.space import Point, Space
from statten.storage.checkpoint import load_weights, save_tensors
from statten.storage.loggers import check_loggers
from statten.storage.run import Run
from statten.storage.supernet import FRONT, Supernet
from statten.training.preflight import Preflight, preflight
from statten.training.resuming import check_resumable

WATCHED = 3
"""Points beside the largest and the smallest that are validated after every epoch."""
CORNERS = 2000
"""Points among which the largest and the smallest are sought."""


def planned(config: Config, space: Space, points: int | None = None) -> tuple[Config, Space, dict[str, Point], int]:
    """What a supernet over a space is: the config of its largest network, the space around it, points that are watched, and
    how many are evaluated in the end.

    Args:
        config: the base of the space, with no field at auto.
        space: what is searched.
        points: how many are to be evaluated; None means all of a small space, see `points_of`.

    Raises:
        UserError: something in config or space that slices of weights cannot be.
    """
    _check(space)
    whole = _largest(space)
    space = make_space(space.tree, whole, notes=space.notes)
    ordered = sorted(islice(space.corners(), CORNERS), key=lambda point: _activations(space.config(point)))
    watched = {"largest": ordered[-1], "smallest": ordered[0]}
    generator = random.Random(0)
    for _ in range(20 * WATCHED):
        point = space.random_point(generator)
        if point not in watched.values() and len(watched) < 2 + WATCHED:
            watched[f"point-{len(watched) - 1}"] = point
    return whole, space, watched, points_of(space, points)


def _activations(config: Config) -> int:
    return BACKBONES[config.model.backbone].activations(config.model)


def _check(space: Space) -> None:
    base, allowed = space.base, [f"model.{field}" for field in (*FREE, *NESTED)]
    problems = []
    constants = {d.name for d in space.dimensions if isinstance(d, Derived) and not isinstance(d.source, Expression)}
    for dimension in space.dimensions:
        for path in dimension.paths:
            if path not in allowed and path not in constants:
                problems.append(
                    f"{path}: cannot be cut out of one network's weights; a supernet's space may have {', '.join(allowed)}; "
                    f"leave it out, give it a constant, or search it with: statten tune"
                )
            elif path.removeprefix("model.") in NESTED and isinstance(dimension, Derived) and path not in constants:
                problems.append(f"{path}: must be searched by itself in a supernet's space, but follows other fields")
        if dimension.name == "model.timesteps" and base.model.events:
            problems.append(
                f"model.timesteps: cannot be searched by one training on event clips, for a clip of {base.data.name} has as "
                f"many frames as timesteps; leave it out, or search it with: statten tune"
            )
    if base.scale.cuda_graphs:
        problems.append("scale.cuda_graphs: cannot record a supernet's steps, each of another network; set it to false")
    if base.scale.activation_checkpointing:
        problems.append("scale.activation_checkpointing: cannot run blocks of slices again; set it to false")
    for metric in objectives(base):
        if metric not in MEASURED:
            problems.append(f"search.objectives: a supernet's points have no {metric}; {nearest(metric, MEASURED)}")
    try:
        check_sliced(space.config(next(space.corners())).model.backbone if not problems else base.model.backbone)
    except UserError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def _largest(space: Space) -> Config:
    """A config that all points are slices of; it may be no point itself, where a constraint is in the way."""
    most: dict[str, Any] = {}
    for dimension in space.searched:
        ends: list[tuple[Any, ...]] = []
        if isinstance(dimension, Plain):
            ends = [(value,) for value in dimension.values.items()]
        elif isinstance(dimension, Multiples):
            ends = [(dimension.high,)]
        elif isinstance(dimension, Couple):
            ends = list(dimension.rows)
        for row in ends:
            for path, value in zip(dimension.paths, row, strict=True):
                if path.removeprefix("model.") in (*NESTED, "timesteps"):
                    most[path] = max(most.get(path, value), value)
    corner = max(islice(space.corners(), CORNERS), key=lambda point: _activations(space.config(point)))
    config = space.config(corner)
    for path in most:  # where a condition leaves a field out, the base's value holds
        most[path] = max(most[path], get_field(space.base, path))
    if "model.embed_dim" in most:
        unit = lcm(8, config.model.num_heads)
        most["model.embed_dim"] = ceil(most["model.embed_dim"] / unit) * unit
    return with_overrides(config, most)


def train_supernet(config: Config, space: Space, path: Path, watched: dict[str, Point], points: int) -> Supernet:
    """Train a supernet in a new folder, evaluate its points, and return it.

    Args:
        config: of the largest network, and how to train.
        space: around it, of which its parts are the points.
        path: its folder; must not exist, on storage that all workers see.
        watched: points that are validated after every epoch, by what they are called.
        points: how many are evaluated in the end; these four as `planned` finds them.

    Raises:
        UserError: something in config, space, name or machine; nothing is written then.
        Failed: training or evaluation did not reach its end.
    """
    if path.exists():
        Supernet.begin(path, config, space, watched, points, {})  # raises: say so before any machine is asked for
    check_loggers(config, None)
    with ray_cluster(config.scale.address) as there:
        machines = check_nodes(config, path)
        plan = preflight(config, capacity(machines))
        show_places(machines, plan, config.scale)
        extra = {"environment.json": environment(), "splits.json": split_document(config)}
        made = Supernet.begin(path, config, space, watched, points, extra)
        return _execute(made, plan, there)


def resume_supernet(made: Supernet) -> Supernet:
    """Go on with a supernet that was stopped, in its training or in its evaluation; raises like `supernet`."""
    if made.complete:
        raise UserError(f"{made.path}: all of its points are evaluated, there is nothing to resume; train one further with: "
                        f"statten promote {made.typed} --front")  # fmt: skip
    config = made.config
    if changed := check_resumable(made):
        console.print(f"changed since its newest checkpoint: {', '.join(changed)}", markup=False)
    _check(made.space)
    check_loggers(config, None)
    with made.resumable(), ray_cluster(config.scale.address) as there:
        machines = check_nodes(config, made.path)
        plan = preflight(config, capacity(machines))
        show_places(machines, plan, config.scale)
        check_split(config, made.path / "splits.json")
        return _execute(made, plan, there)


def _execute(made: Supernet, plan: Preflight, there: Mapping[str, float]) -> Supernet:
    with made.writing() as attempt:
        if made.state != "finished":
            with following(made):
                fit_on_workers(made, attempt, plan)
        rows = evaluate_points(made, plan, there)
        write_json(made.path / FRONT, compared(made.space, rows, objectives(made.config)))
    return made


def promote_point(made: Supernet, number: int, config_overrides: Iterable[str] | Mapping[str, Any], path: Path) -> Run:
    """Train a point of a supernet by itself, in a new folder, from its slice of the weights: at the full learning rate, for a
    third of the supernet's epochs unless the overrides say otherwise.

    Raises:
        UserError: there is no such point, the supernet is not trained yet, or as `train`.
    """
    config, point = promoted_config(made, number, config_overrides)
    checkpoint = made.weights()
    state = load_weights(checkpoint, averaged=made.config.train.ema_decay is not None)
    origin = {"supernet": made.name, "trial": number, "point": point, "checkpoint": str(checkpoint)}
    with tempfile.TemporaryDirectory() as aside:
        weights = Path(aside) / "slice.safetensors"
        save_tensors(extract(state, config.model), weights)
        return train(config, path, weights, origin)


def promoted_config(
    made: Supernet, number: int, config_overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[Config, Point]:
    """The config with which a point is trained by itself, and the point; raises UserError where there is no such point."""
    made.weights()  # raises before they are there
    rows = {row["number"]: row["point"] for row in made.evaluated()}
    if number not in rows:
        there = f"are 0 to {max(rows)}" if rows else f"none yet; go on with: {made.resume_command}"
        raise UserError(f"--trial: {made.path} has no evaluated point {number}; there {there}")
    point = rows[number]
    own = with_overrides(made.space.config(point), {"train.epochs": max(1, round(made.config.train.epochs / 3))})
    config = with_overrides(own, config_overrides)
    if fields := [f"model.{f}" for f in NESTED if getattr(config.model, f) != getattr(own.model, f)]:
        raise UserError(
            f"--set: a promoted point starts from its slice of the weights, so {', '.join(fields)} must stay as in {number}"
        )
    return config, point
