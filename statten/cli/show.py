"""The commands that only read the storage: runs, show, best, report."""

from pathlib import Path
from typing import Annotated

import typer

from statten.cli.options import Json, Storage, Target, app, begin, print_json
from statten.errors import UserError, user_path
from statten.storage.mirror import refresh
from statten.storage.run import locate


@app.command()
def best(target: Target, storage: Storage = None, as_json: Json = False) -> None:
    """Name the best trial of a sweep."""
    path = locate(target, begin(as_json, storage))
    from statten.display import console, table
    from statten.search.repeats import sentence
    from statten.search.sweep import Sweep, describe

    found = Sweep.open(path).best()
    if as_json:
        return print_json(found)
    metrics = found["metrics"]
    console.print(f"[bold]trial {found['trial']}[/] of {path.name}: {describe(found['point'])}")
    console.print(
        f"  validation  top-1 {metrics['val/top1']:.2f} %, loss {metrics['val/loss']:.4f} at epoch {metrics['epoch']}"
    )
    console.print(f"  checkpoint  {found['checkpoint']}")
    if "front" in found:
        columns = list(found["values"])
        cells = [[t["trial"], describe(t["point"]), *[f"{t[c]:.4g}" for c in columns]] for t in found["front"]]
        console.print(table("the Pareto front", ["trial", "point", *columns], cells, right=(0, *range(2, 2 + len(columns)))))
    if certain := sentence(Sweep(path)):
        console.print(f"  {certain}")
    return console.print(f"  train on    statten promote {Sweep(path).typed} --set train.epochs=20")


@app.command()
def runs(storage: Storage = None, as_json: Json = False) -> None:
    """List the runs and sweeps of the storage."""
    folder = begin(as_json, storage)
    refresh(folder)
    from statten.display import console, state_word, table
    from statten.report.overview import overview

    rows = overview(folder)
    if as_json:
        return print_json(rows)
    if not rows:
        return console.print(f"{folder} holds no runs yet; start with: statten train digits")
    cells = [
        [r["name"], r["kind"], state_word(r["state"]), r["progress"], r["best"], r["created"][:16].replace("T", " ")]
        for r in rows
    ]
    console.print(table("", ["name", "kind", "state", "progress", "best val top-1", "created"], cells, right=(4,)))
    for problem in (row["problem"] for row in rows if "problem" in row):
        console.print(f"damaged: {problem}", markup=False)
    return None


@app.command()
def show(
    target: Target,
    watching: Annotated[
        bool, typer.Option("--watch", help="Draw it anew every second, until it has ended; wait for it to begin.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Show a run's epochs or a sweep's trials."""
    folder = begin(as_json, storage)
    from statten.display import console
    from statten.report.overview import awaited, details, details_table, watch

    if watching:
        user_path(target)  # what no file system can hold is not waited for
        path = awaited(lambda: locate(target, folder))
        watch(path)
    else:
        path = locate(target, folder)
    document = details(path)
    return print_json(document) if as_json else console.print(details_table(document))


@app.command("report")
def report_sweep(
    target: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the storage, or a path.")],
    output: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="FOLDER", help="Folder to write to; default: `report` in the sweep's folder."),
    ] = None,
    rates: Annotated[bool, typer.Option("--rates/--no-rates", help="Also measure the best trials' firing rates.")] = True,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print all trials as CSV on stdout, everything else on stderr.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write a sweep's report: one HTML page, pictures, and all trials as CSV and JSON; the sweep may be running."""
    if as_csv and as_json:
        raise UserError("--csv: stdout takes one document, but --json is given too; the report's folder has both as files")
    path = locate(target, begin(as_json or as_csv, storage))
    from statten.display import console
    from statten.report import report
    from statten.search import Sweep

    written = report(Sweep.open(path), output, rates)
    files = written["files"]
    if as_json:
        return print_json(written)
    if as_csv:
        return print(Path(files["csv"]).read_text(encoding="utf-8"), end="")
    console.print(f"page      {files['page']}")
    console.print(f"pictures  {', '.join(Path(name).name for name in files['pictures']) or 'none: there are no trials yet'}")
    return console.print(f"trials    {len(written['trials'])} in {files['csv']} and {files['json']}")
