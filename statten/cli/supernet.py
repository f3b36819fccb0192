"""One training for every architecture of a space: the command supernet, and what promote does with one."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statten.cli.options import (
    DryRun,
    Json,
    Name,
    Recipe,
    Resume,
    Set,
    Short,
    Storage,
    app,
    begin,
    check_data_option,
    load,
    print_json,
    short_forms,
    stem,
)
from statten.cli.resume import begun, check_free, check_same, finish_front, finish_run, finish_supernet, go_on
from statten.errors import UserError
from statten.space.loading import space_file
from statten.storage.run import folder_for
from statten.storage.supernet import Supernet

if TYPE_CHECKING:
    from statten.config import Config
    from statten.space.space import Space


@app.command()
@short_forms
def supernet(
    recipe: Recipe,
    space: Annotated[list[str], typer.Option(help="Search-space file, or its name in search_spaces/; several are merged.")],
    overrides: Set = [],  # noqa: B006 - typer copies it
    short: Short = {},  # noqa: B006
    points: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Points to evaluate; default: all of at most 5,000, else 2,000 by NSGA-II."),
    ] = None,
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> None:
    """Train one network whose slices are all points of a search space, and evaluate them."""
    folder, began = begin(as_json, storage), time.monotonic()
    config = load(recipe, overrides, short)
    from statten.data import resolved
    from statten.search.supernet import planned
    from statten.space.loading import load_space

    config = resolved(config)
    whole, loaded, watched, number = planned(config, load_space([space_file(s) for s in space], config), points)
    path = folder_for(folder, name, f"{stem(recipe)}-supernet")
    if dry_run:
        return _plan(whole, loaded, number, as_json)
    if again and path.exists():
        there = Supernet.open(path)
        others = ["the search space"] * (there.space.tree != loaded.tree) + ["the number of points"] * (there.points != number)
        check_same(there, whole, others)
        return go_on(path, folder, as_json)
    from statten.search.supernet import train_supernet

    return finish_supernet(train_supernet(whole, loaded, path, watched, number), began, as_json)


def _plan(config: "Config", space: "Space", points: int, as_json: bool) -> None:
    from statten.config import config_tree
    from statten.display import console
    from statten.search.plan import dry_run

    rehearsal, there = dry_run(config), space.count()
    if as_json:
        more = {"points": points, "configurations": there, "config": config_tree(rehearsal.config, "json")}
        return print_json({**rehearsal.document(), **more})
    plan, model = rehearsal.trial, config.model
    largest = f"depth={model.depth} dim={model.embed_dim} T={model.timesteps}"
    console.print(f"largest network  {largest}, {plan.parameters / 1e6:.3f} M parameters")
    console.print(f"training         {config.train.total_epochs} epochs of {plan.steps_per_epoch} steps, one point a step")
    console.print(f"workers          {plan.world_size} on {plan.device}, {plan.cpus_per_worker} CPU cores each")
    console.print(f"memory           about {plan.memory_bytes / 2**20:,.0f} MiB per worker, at the largest point")
    console.print(f"evaluation       {points:,} points of {'infinitely many' if there is None else format(there, ',')}")
    return console.print("Nothing was started.")


def promote_points(
    path: Path, fields: dict[str, Any], short: Short, trial: int | None, front: bool, name: str | None, folder: Path,
    as_json: bool, dry_run: bool, again: bool,
) -> None:  # fmt: skip
    """What `promote` does with a supernet: train a point, or all of the front, each from its slice."""
    from statten.display import console
    from statten.search.promotion import in_turn
    from statten.search.supernet import promote_point, promoted_config

    there, began = Supernet.open(path), time.monotonic()
    if front and trial is not None:
        raise UserError("--front: takes every point of the front, and --trial takes one; leave one of them out")
    best = there.front()
    numbers = [row["number"] for row in best] if front else [best[0]["number"] if trial is None else trial]
    stem_ = f"{name or path.name + '-front'}-" if front else ""
    places = {
        number: folder_for(folder, f"{stem_}{number:04d}" if front else name, f"{path.name}-promoted") for number in numbers
    }
    configs = {number: promoted_config(there, number, fields)[0] for number in numbers}
    check_data_option(short, next(iter(configs.values())))
    known = [number for number, place in places.items() if again and begun(place, configs[number])]
    if front:
        check_free(places, known)
    if dry_run:
        which = ", ".join(f"{number} for {configs[number].train.total_epochs} epochs" for number in numbers)
        return console.print(f"points {which} of {path.name} would be trained by themselves. Nothing was started.")
    if front:
        return finish_front(in_turn(lambda number, place: promote_point(there, number, fields, place), places, known), as_json)
    ((number, place),) = places.items()
    if number in known:
        return go_on(place, folder, as_json)
    return finish_run(promote_point(there, number, fields, place), began, as_json)
