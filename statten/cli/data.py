"""The commands for datasets: data check, data prepare, data shard."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from statten.cli.jobs import jobs_app
from statten.cli.options import Data, DataFolder, Json, Threads, app, begin, print_json
from statten.display.terminal import console, table
from statten.errors import UserError, in_shell, nearest, user_path

data_app = typer.Typer(help="Look at a dataset, make it ready to be read, or pack it into tar shards.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(jobs_app)


@data_app.command("check")
def check_dataset(
    name: Data,
    root: DataFolder,
    timesteps: Annotated[int | None, typer.Option(min=1, help="T of the clips; default: what is there.")] = None,
    workers: Threads = None,
    as_json: Json = False,
) -> None:
    """Read every sample: layout, counts, sizes, mean and std; exit code 1 if files cannot be read, 2 if parts share samples."""
    _dataset(name, as_json)
    from statten.cli.data import dataset_summary
    from statten.data.check import check
    from statten.display import progress

    with progress("samples") as move:
        report = check(name, root, timesteps, workers=workers, progress=move)
    if as_json:
        print_json(report)
    else:
        dataset_summary(report)
    if report["shared"]:
        (one, other), *more = report["shared"]
        others = f" and {len(more):,} more pairs (--json lists them)" if more else ""
        raise UserError(
            f"{root}: two parts must not share a sample, but {one} and {other} are the same{others}; keep one of each"
        )
    raise typer.Exit(1 if report["corrupt"] else 0)


@data_app.command("prepare")
def prepare_dataset(
    name: Data,
    root: DataFolder,
    timesteps: Annotated[list[int], typer.Option(min=1, help="T of the clips to make; may be given several times.")] = [],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="FOLDER", help="event_folder: folder for clips of the recordings in --root."),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="event_folder: pixels of the sensor, such as 240x180.")
    ] = None,
    downsample: Annotated[int, typer.Option(min=1, help="event_folder: count so many x so many pixels as one.")] = 1,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out raw files that cannot be read.")] = False,
    workers: Threads = None,
    as_json: Json = False,
) -> None:
    """Fetch a dataset where that is allowed, and turn archives or own recordings into clips; may be stopped and repeated."""
    _dataset(name, as_json)
    from statten.data.prepare import prepare
    from statten.display import console, progress

    with progress("files") as move:
        report = prepare(
            name, root, timesteps, output=output, size=size, downsample=downsample, workers=workers,
            skip_corrupt=skip_corrupt, progress=move,
        )  # fmt: skip
    if as_json:
        return print_json(report)
    for file in report.get("corrupt", []):
        console.print(f"left out {file['file']}: {file['reason']}", markup=False)
    if name == "event_folder":
        return own_summary(report)
    return console.print(f"{name} is ready in {root}; look at it with: statten data check {name} --root {in_shell(root)}")


@data_app.command("shard")
def shard_dataset(
    name: Data,
    root: DataFolder,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, metavar="FOLDER", help="New folder of the shards; none: write the indices of shards in --root."
        ),
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Samples in each shard.")] = 1000,
    workers: Threads = None,
    as_json: Json = False,
) -> None:
    """Pack class folders of images into tar shards with an index; may be stopped and repeated."""
    _dataset(name, as_json)
    from statten.data.shards import shard
    from statten.display import console, progress

    with progress("shards") as move:
        report = shard(name, root, output, per_shard, workers=workers, progress=move)
    if as_json:
        return print_json(report)
    for part, found in report["parts"].items():
        console.print(f"{part}: {found['samples']:,} samples in {found['shards']:,} shards")
    return console.print(f"read them with: --set data.name={name} --set data.root={in_shell(report['output'])}")


def _dataset(name: str, as_json: bool) -> None:
    from statten.config import DATASET_NAMES

    begin(as_json, None)
    if name not in DATASET_NAMES:
        raise UserError(f"{name!r} is no dataset; {nearest(name, DATASET_NAMES)}")


def own_summary(report: dict[str, Any]) -> None:
    """What `data prepare event_folder` made."""
    lost, timesteps = len(report["corrupt"]), max(map(int, report["frames"]))
    clips = f"{report['samples']:,} clips of {report['classes']:,} classes from {report['recordings']:,} recordings"
    console.print(f"{clips}, {lost:,} left out" if lost else clips)
    if report["left_out"]:
        console.print(f"no recordings: {_left_out(report)}", markup=False)
    command = f"statten train event_folder --data {in_shell(report['output'])} --set model.timesteps={timesteps}"
    console.print(f"train with: {command}", markup=False)


def _left_out(report: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(report["left_out"].items()))


def dataset_summary(report: dict[str, Any]) -> None:
    """What `data check` found."""
    parts = ", ".join(f"{count:,} {part}" for part, count in report["split"].items())
    console.print(f"[bold]{report['name']}[/] in {report['root']}: {report['layout']}, {report['samples']:,} samples ({parts})")
    rows = [[escape(name), *counts.values()] for name, counts in report["per_class"].items()]
    console.print(table("", ["class", *report["split"]], rows, right=(1, 2, 3)))
    sizes = ", ".join(f"{size} ({count:,})" for size, count in report["sizes"].items())
    console.print(f"\n  sizes    {sizes}; smallest {_by(report['smallest'])}, largest {_by(report['largest'])}")
    for key in ("mean", "std"):
        console.print(f"  {key:<8} {' '.join(f'{value:.4f}' for value in report[key])}")
    console.print(f"  corrupt  {len(report['corrupt'])}")
    for file in report["corrupt"]:
        console.print(f"    {file['file']}: {file['reason']}")
    if report["left_out"]:
        console.print(f"  no samples: {_left_out(report)}")
    for warning in report["warnings"]:
        console.print(f"  warning: {warning}")


def _by(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"
