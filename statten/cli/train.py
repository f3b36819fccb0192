"""The commands that train: train, tune, extend, promote, and run, which does what a job file says."""

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
    Target,
    app,
    begin,
    check_data_option,
    load,
    print_json,
    short_forms,
    stem,
)
from statten.cli.resume import begun, check_free, finish_front, finish_run, finish_sweep, go_on
from statten.cli.supernet import promote_points
from statten.config import with_short_forms
from statten.errors import UserError
from statten.jobs.file import RESUMABLE, enter, load_job, run_with_retries
from statten.space.loading import space_file
from statten.storage.run import Run, folder_for, locate
from statten.storage.supernet import Supernet

if TYPE_CHECKING:
    from statten.config import Config
    from statten.space.space import Space


@app.command()
@short_forms
def train(
    recipe: Recipe,
    overrides: Set = [],  # noqa: B006 - typer copies it
    short: Short = {},  # noqa: B006
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> None:
    """Train one run on Ray Train workers."""
    folder, began = begin(as_json, storage), time.monotonic()
    config = load(recipe, overrides, short)
    path = folder_for(folder, name, stem(recipe))
    if dry_run:
        return _plan(config, as_json)
    if again and begun(path, config):
        return go_on(path, folder, as_json)
    from statten.cluster import trainer

    return finish_run(trainer.train(config, path), began, as_json)


@app.command()
@short_forms
def tune(
    recipe: Recipe,
    space: Annotated[list[str], typer.Option(help="Search-space file, or its name in search_spaces/; several are merged.")],
    overrides: Set = [],  # noqa: B006
    short: Short = {},  # noqa: B006
    trials: Annotated[int | None, typer.Option(metavar="N", help="Number of trials: search.trials.")] = None,
    hours: Annotated[float | None, typer.Option(metavar="HOURS", help="End after so many hours: search.max_hours.")] = None,
    total_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="End after so many epochs of all trials: search.max_epochs.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="SWEEP", help="Take over the trials of another sweep that fit.")
    ] = None,
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> None:
    """Sweep over a search space with Ray Tune and Optuna."""
    folder = begin(as_json, storage)
    config = load(recipe, overrides, {**short, "trials": trials, "hours": hours, "total_epochs": total_epochs})
    from statten.config import with_overrides
    from statten.data import resolved
    from statten.search.samplers import trials_of
    from statten.space.loading import load_space

    config = resolved(config)  # once, for all trials
    loaded, began = load_space([space_file(s) for s in space], config), time.monotonic()
    config = with_overrides(config, {"search.trials": trials_of(config.search, loaded)})
    path = folder_for(folder, name, f"{stem(recipe)}-sweep")
    if again and begun(path, config, loaded):
        return go_on(path, folder, as_json)
    from statten import search

    other = search.Sweep.open(locate(source, folder)) if source else None
    if dry_run:
        return _plan(config, as_json, loaded)
    return finish_sweep(search.tune(config, loaded, path, other), began, as_json)


@app.command()
def extend(
    target: Target,
    trials: Annotated[int, typer.Option(min=1, help="How many more trials.")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Other rules of stopping and budgets from now on.")
    ] = [],  # noqa: B006
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Add trials to a sweep; its study goes on."""
    path, began = locate(target, begin(as_json, storage)), time.monotonic()
    from statten.search import Sweep, extend_sweep

    return finish_sweep(extend_sweep(Sweep.open(path), trials, overrides), began, as_json)


@app.command()
@short_forms
def promote(
    target: Target,
    overrides: Set = [],  # noqa: B006
    short: Short = {},  # noqa: B006
    trial: Annotated[int | None, typer.Option(help="Trial of the sweep; default: the best one.")] = None,
    front: Annotated[bool, typer.Option("--front", help="Promote every trial of the Pareto front, in turn.")] = False,
    use_grid: Annotated[
        bool, typer.Option("--grid", help="Go on with the (timesteps, block size) that is best for the weights on validation.")
    ] = False,
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> None:
    """Train a sweep's best trial (or a run) further, from its own checkpoint.

    Of a supernet, train its best point, or that of --trial, by itself, from its slice of the weights.
    """
    folder = begin(as_json, storage)
    path, began, fields = locate(target, folder), time.monotonic(), with_short_forms(overrides, short)
    if (path / Supernet.marker).is_file():
        if use_grid:
            raise UserError("--grid: a supernet's points have a (timesteps, block size) of their own; leave it out")
        return promote_points(path, fields, short, trial, front, name, folder, as_json, dry_run, again)
    if front:
        if use_grid:
            raise UserError("--front: takes its trials as they are, and --grid changes (timesteps, block size); leave one out")
        return _promote_front(path, fields, short, trial, name, folder, as_json, dry_run, again)
    from statten.search.promotion import source_of

    source, recorded = source_of(path, trial)
    from statten.config import with_overrides

    config = with_overrides(source.config, fields)
    check_data_option(short, config)
    new = folder_for(folder, name, f"{path.name}-promoted")
    if again and use_grid and new.exists():  # the pair was chosen when it was begun
        config = with_overrides(config, Run.open(new).origin.get("grid", {}).get("fields", {}))
    if dry_run and use_grid:
        raise UserError("--dry-run: starts nothing, but --grid evaluates the weights; leave one of them out")
    if dry_run:
        return _plan(config, as_json)
    if again and begun(new, config):
        return go_on(new, folder, as_json)
    if use_grid:
        from statten.display import console
        from statten.evaluation.grid import best_pair

        chosen, why, report = best_pair(source, fields)
        console.print(why)
        fields = {**fields, **chosen}
        recorded["grid"] = {
            **report["best"],
            "fields": chosen,
            "part": report["part"],
            "samples": report["samples"],
            "why": why,
        }
    from statten import search

    return finish_run(search.promote(source, fields, new, recorded), began, as_json)


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="A job file, such as those in jobs/.")],
    overrides: Set = [],  # noqa: B006
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> Any:
    """Run a job file here: the command that it holds, as if it had been typed."""
    loaded = load_job(job)
    if dry_run and loaded.command == "evaluate":
        raise UserError(f"--dry-run: {job} evaluates, which has no plan to print")
    if name is not None and loaded.command not in RESUMABLE:
        raise UserError(f"--name: {job} evaluates, which makes no folder to name")
    enter(loaded)
    if again and loaded.command in RESUMABLE:
        name = name or loaded.name or job.stem  # without one there is nothing to find again
    line = loaded.arguments()
    for override in overrides:
        line += ["--set", override]
    for option, value in (("--name", name), ("--storage", storage)):
        line += [option, str(value)] if value is not None else []  # the last one counts
    flags = (("--json", as_json), ("--dry-run", dry_run), ("--resume", again and loaded.command in RESUMABLE))
    line += [flag for flag, given in flags if given]
    if loaded.retries and not dry_run:
        return run_with_retries(loaded, line)
    return app(line, standalone_mode=False)


def _promote_front(
    path: Path,
    fields: dict[str, Any],
    short: Short,
    trial: int | None,
    name: str | None,
    folder: Path,
    as_json: bool,
    dry_run: bool,
    again: bool,
) -> None:
    from statten import search
    from statten.config import with_overrides
    from statten.display import console
    from statten.search.promotion import promote_front

    if trial is not None:
        raise UserError("--front: takes every trial of the front, and --trial takes one; leave one of them out")
    sweep = search.Sweep.open(path)
    check_data_option(short, with_overrides(sweep.config, fields))
    places = {t.number: folder_for(folder, f"{name or path.name + '-front'}-{t.number:04d}", "") for t in sweep.front()}
    known = [
        number for number, place in places.items()
        if again and begun(place, with_overrides(sweep.trial(number).config, fields))
    ]  # fmt: skip
    check_free(places, known)
    if dry_run:
        return console.print(f"trials {', '.join(map(str, places))} of {path.name} would be promoted. Nothing was started.")
    return finish_front(promote_front(sweep, fields, places, known), as_json)


def _plan(config: "Config", as_json: bool, space: "Space | None" = None) -> None:
    from statten.cluster.nodes import placed
    from statten.config import config_tree
    from statten.data import lacks_data
    from statten.display import console
    from statten.search.plan import dry_run

    rehearsal = dry_run(config, space)
    plan, planned, missing = rehearsal.trial, rehearsal.sweep, lacks_data(config)
    if as_json:
        return print_json({**rehearsal.document(), "config": config_tree(rehearsal.config, "json"), "lacks_data": missing})
    console.print(f"parameters       {plan.parameters / 1e6:.3f} M")
    console.print(f"steps per epoch  {'unknown without data' if missing else plan.steps_per_epoch}")
    workers = f"{plan.min_workers} to {plan.world_size}" if plan.min_workers < plan.world_size else plan.world_size
    console.print(f"workers          {workers} on {plan.device}, {plan.cpus_per_worker} CPU cores each")
    console.print(f"memory           about {plan.memory_bytes / 2**20:,.0f} MiB per worker")
    if planned is not None:
        console.print(f"sweep            {planned}")
        console.print(f"largest trial    about {planned.largest_bytes / 2**20:,.0f} MiB per worker")
        if rehearsal.cost:
            console.print(f"cost             {rehearsal.cost}")
    for line in placed(rehearsal.placement):
        console.print(line)
    if config.data.workers:
        console.print(f"loading          {config.data.workers} processes beside each worker, on its cores")
    if missing:
        console.print(f"still missing    data.root, the folder of {config.data.name}: --data DIR")
    if rehearsal.config.auto:
        console.print(f"by the folder    {', '.join(rehearsal.config.auto)};")
        console.print("                 until then they count with their defaults")
    return console.print("Nothing was started.")
