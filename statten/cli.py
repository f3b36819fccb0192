"""The command line: thin, every command is a function of the package that a notebook can call."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from statten.cli_jobs import jobs_app
from statten.config import load_config, recipe_names
from statten.errors import Failed, UserError, nearest
from statten.jobs import RESUMABLE, SUBMITTED, begun, check_submitted_storage, ended, enter, load_job, run_with_retries
from statten.space.loading import space_file
from statten.storage.mirror import check_store, refresh
from statten.storage.run import Run, check_name, default_storage, free_name, locate
from statten.storage.store import working_copy

if TYPE_CHECKING:
    from statten.config import Config
    from statten.search import Sweep
    from statten.space.space import Space

app = typer.Typer(
    name="statten",
    help="Train spiking vision transformers with spatial-temporal attention, and search their architecture on Ray.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
energy_app = typer.Typer(help="The energy ledger that `evaluate` writes.", rich_markup_mode=None)
app.add_typer(energy_app, name="energy")
data_app = typer.Typer(help="Look at a dataset, make it ready to be read, or pack it into tar shards.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(jobs_app)
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer does not export it: unknown options, missing arguments

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `statten recipes`) or a YAML file.")]
Target = Annotated[str, typer.Argument(help="Name of a run or sweep in the storage, or a path.")]
Evaluated = Annotated[str, typer.Argument(help="Run or sweep (name or path), checkpoint, or published .pth.tar.")]
OnData = Annotated[str | None, typer.Option(metavar="NAME", help="Dataset; default: the one of the run.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Take averaged weights where there are some.")]
Set = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. model.depth=4.")]
Name = Annotated[str | None, typer.Option(help="Name of the new folder; default: the recipe's name and a number.")]
Storage = Annotated[
    Path | None,
    typer.Option(
        parser=working_copy, metavar="FOLDER|URI", help="Folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")]
Data = Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset, as in data.name.")]
Root = Annotated[Path, typer.Option(help="Folder of the dataset, as in data.root.")]
Threads = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; default: one for each core.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and start nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run or sweep of this name and config was.")]


def main() -> None:
    """Run the command line. Exit code 0: done; 2: the input is wrong, said in one sentence each; 1: anything else."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _fail(error.problems, 2)
    except USAGE_ERROR as error:
        _fail([error.format_message().rstrip(".")], 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail(["stopped; what is finished is kept, and `statten resume NAME` goes on from there"], 1)
    except Failed as error:
        _fail([str(error)], 1)


def _fail(problems: list[str], code: int) -> None:
    for problem in problems:
        print(f"statten: {problem}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(code)


def _print(document: Any) -> None:
    print(json.dumps(document, indent=1))


def _begin(as_json: bool, storage: Path | None) -> Path:
    from statten import display

    if as_json:
        display.use_stderr()
    folder = storage or default_storage()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--storage: must be a folder, but {folder} is a file")
    check_store(folder)
    if SUBMITTED in os.environ:
        check_submitted_storage(folder)
    return folder


def _place(storage: Path, name: str | None, stem: str) -> Path:
    """The new folder of a run or sweep."""
    if name is not None:
        check_name(name)
    path = storage / (name or free_name(storage, stem))
    parent = next(p for p in [storage, *storage.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--storage: {storage} cannot be written")
    check_store(storage, writable=True)
    refresh(path)
    return path


def _stem(recipe: str) -> str:
    return Path(recipe).stem


# ---------------------------------------------------------------------------------------------------------------------


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the bundled recipes."""
    from statten.display import console, table

    rows = {name: load_config(name) for name in recipe_names()}
    if as_json:
        return _print({name: config.model_dump(mode="json") for name, config in rows.items()})
    columns = ["recipe", "data", "image", "T", "b", "depth", "dim", "epochs", "batch"]
    cells = [
        [name, c.data.name, c.model.image_size, c.model.timesteps, c.model.block_size, c.model.depth, c.model.embed_dim,
         c.train.total_epochs, c.train.batch_size]
        for name, c in rows.items()
    ]  # fmt: skip
    return console.print(table("", columns, cells, right=range(2, 9)))


@app.command()
def train(
    recipe: Recipe,
    overrides: Set = [],  # noqa: B006 - typer copies it
    name: Name = None,
    storage: Storage = None,
    as_json: Json = False,
    dry_run: DryRun = False,
    again: Resume = False,
) -> None:
    """Train one run on Ray Train workers."""
    folder = _begin(as_json, storage)
    config, began = load_config(recipe, overrides), time.monotonic()
    path = _place(folder, name, _stem(recipe))
    if dry_run:
        return _plan(config, as_json)
    if again and begun(path, config):
        return _go_on(path, folder, as_json)
    from statten import trainer

    return _finish_run(trainer.train(config, path), began, as_json)


@app.command()
def tune(
    recipe: Recipe,
    space: Annotated[list[str], typer.Option(help="Search-space file, or its name in search_spaces/; several are merged.")],
    overrides: Set = [],  # noqa: B006
    trials: Annotated[int | None, typer.Option(help="Number of trials; the same as --set search.trials=N.")] = None,
    hours: Annotated[float | None, typer.Option(help="End the sweep after so many hours: search.max_hours.")] = None,
    epochs: Annotated[int | None, typer.Option(help="End it after so many epochs of all trials: search.max_epochs.")] = None,
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
    folder = _begin(as_json, storage)
    for field, value in (("trials", trials), ("max_hours", hours), ("max_epochs", epochs)):
        if value is not None:
            overrides = [*overrides, f"search.{field}={value}"]
    config = load_config(recipe, overrides)
    from statten.config import with_overrides
    from statten.search.samplers import trials_of
    from statten.space.loading import load_space

    loaded, began = load_space([space_file(s) for s in space], config), time.monotonic()
    config = with_overrides(config, {"search.trials": trials_of(config.search, loaded)})
    path = _place(folder, name, f"{_stem(recipe)}-sweep")
    if again and begun(path, config, loaded):
        return _go_on(path, folder, as_json)
    from statten import search

    other = search.Sweep.open(locate(source, folder)) if source else None
    if dry_run:
        return _plan(config, as_json, loaded)
    return _finish_sweep(search.tune(config, loaded, path, other), began, as_json)


@app.command()
def resume(target: Target, storage: Storage = None, as_json: Json = False) -> None:
    """Continue a stopped run or sweep where it was."""
    path, began = locate(target, _begin(as_json, storage)), time.monotonic()
    if (path / "sweep.json").is_file():
        from statten.search import Sweep, resume_sweep

        return _finish_sweep(resume_sweep(Sweep.open(path)), began, as_json)
    run = Run.open(path)
    from statten import trainer

    return _finish_run(trainer.resume(run), began, as_json)


@app.command()
def extend(
    target: Target,
    trials: Annotated[int, typer.Option(min=1, help="How many more trials.")],
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Add trials to a sweep; its study goes on."""
    path, began = locate(target, _begin(as_json, storage)), time.monotonic()
    from statten.search import Sweep, extend_sweep

    return _finish_sweep(extend_sweep(Sweep.open(path), trials), began, as_json)


@app.command()
def promote(
    target: Target,
    overrides: Set = [],  # noqa: B006
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
    """Train a sweep's best trial (or a run) further, from its own checkpoint."""
    folder = _begin(as_json, storage)
    path, began = locate(target, folder), time.monotonic()
    if front:
        if use_grid:
            raise UserError("--front: takes its trials as they are, and --grid changes (timesteps, block size); leave one out")
        return _promote_front(path, overrides, trial, name, folder, as_json, dry_run, again)
    source, recorded = _promotable(path, trial)
    from statten.config import with_overrides

    config = with_overrides(source.config, overrides)
    new = _place(folder, name, f"{path.name}-promoted")
    if again and use_grid and new.exists():  # the pair was chosen when it was begun
        config = with_overrides(config, ((Run.open(new).info["origin"] or {}).get("grid") or {}).get("fields", {}))
    if dry_run and use_grid:
        raise UserError("--dry-run: starts nothing, but --grid evaluates the weights; leave one of them out")
    if dry_run:
        return _plan(config, as_json)
    if again and begun(new, config):
        return _go_on(new, folder, as_json)
    fields: Any = overrides
    if use_grid:
        from statten.config import parse_overrides
        from statten.display import console
        from statten.evaluation.anytime import best_pair

        chosen, why, report = best_pair(source, overrides)
        console.print(why)
        fields = {**parse_overrides(overrides), **chosen}
        recorded["grid"] = {
            **report["best"],
            "fields": chosen,
            "part": report["part"],
            "samples": report["samples"],
            "why": why,
        }
    from statten import search

    return _finish_run(search.promote(source, fields, new, recorded), began, as_json)


@app.command()
def evaluate(
    target: Evaluated,
    overrides: Set = [],  # noqa: B006
    data: OnData = None,
    ema: Ema = True,
    large: Annotated[bool, typer.Option("--large", help="Images at 288 pixels, the centre of 320.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the samples; default: 1.")] = None,
    rates: Annotated[bool, typer.Option("--rates/--no-rates", help="Also measure firing rates and energy.")] = True,
    exact: Annotated[bool, typer.Option("--exact", help="Compute in float64, so that no rounding flips a spike.")] = False,
    first_layer_once: Annotated[
        bool, typer.Option("--first-layer-once", help="Count a repeated image's first layer once.")
    ] = False,
    skip_padding: Annotated[bool, typer.Option("--skip-padding", help="Do not count additions into zero padding.")] = False,
    memory_cost: Annotated[
        float | None, typer.Option(min=0, metavar="PJ", help="Also count memory traffic, at so many pJ a byte.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint, a run's best epoch or a sweep's best trial on the test part."""
    path = locate(target, _begin(as_json, storage))
    from statten import evaluation
    from statten.metrics.energy import Conventions

    conventions = Conventions(
        "once" if first_layer_once else "every_timestep", "skipped" if skip_padding else "counted", memory_cost
    )
    report = evaluation.evaluate(
        path,
        overrides,
        data=data,
        ema=ema,
        large=large,
        workers=workers,
        rates=rates,
        exact=exact,
        conventions=conventions,
        storage=storage,
    )
    if as_json:
        return _print(report)
    return evaluation.summary(report)


@app.command()
def anytime(
    target: Evaluated,
    overrides: Set = [],  # noqa: B006
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Accuracy, energy and latency after 1 .. T timesteps, and early exit by confidence."""
    path = locate(target, _begin(as_json, storage))
    from statten.evaluation import anytime as times

    report = times.anytime(path, overrides, data=data, ema=ema, storage=storage)
    return _print(report) if as_json else times.anytime_summary(report)


@app.command()
def grid(
    target: Evaluated,
    overrides: Set = [],  # noqa: B006
    timesteps: Annotated[
        list[int], typer.Option(min=1, max=64, help="A number of timesteps; may be given several times. Default: powers of 2.")
    ] = [],  # noqa: B006
    recalibrate: Annotated[
        int, typer.Option(min=0, metavar="BATCHES", help="Find BatchNorm's statistics anew from so many training batches.")
    ] = 0,
    part: Annotated[str, typer.Option(help="validation, so that (T, b) may be chosen by it, or test.")] = "validation",
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Accuracy and energy of one set of weights at every (timesteps, block size), on the validation part."""
    path = locate(target, _begin(as_json, storage))
    from statten.evaluation import anytime as times

    report = times.grid(
        path, overrides, timesteps=timesteps or None, recalibrate=recalibrate, part=part, data=data, ema=ema, storage=storage
    )
    return _print(report) if as_json else times.grid_summary(report)


@app.command()
def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Two or more runs, sweeps, checkpoints or published files; A1,A2,A3 is one model under several seeds."
        ),
    ],
    overrides: Set = [],  # noqa: B006
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Compare models on the same test samples: confidence intervals, and whether a gain is noise."""
    folder = _begin(as_json, storage)
    groups = [[target] if Path(target).exists() else target.split(",") for target in targets]
    paths = [[locate(name, folder) for name in group] for group in groups]
    from statten.evaluation import compare as comparing

    report = comparing.compare(paths, overrides, data=data, ema=ema, resamples=resamples, storage=storage)
    return _print(report) if as_json else comparing.compare_summary(report)


@app.command("export")
def export_model(
    target: Evaluated,
    output: Annotated[Path, typer.Option("--output", help="New folder.")],
    formats: Annotated[
        list[str], typer.Option("--format", help="safetensors, published, torch_export (the default: these three) or onnx.")
    ] = [],  # noqa: B006
    overrides: Set = [],  # noqa: B006
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write weights and network for other programs; every file is opened and run before it is kept."""
    path = locate(target, _begin(as_json, storage))
    from statten.display import console
    from statten.evaluation import export as exporting

    report = exporting.export(path, output, formats or exporting.DEFAULT, overrides, data=data, ema=ema)
    if as_json:
        return _print(report)
    for name, about in report["files"].items():
        console.print(f"{output / name}  runs; its logits differ by {about['largest_difference']:.1e} at most")
    return None


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


@app.command()
def best(target: Target, storage: Storage = None, as_json: Json = False) -> None:
    """Name the best trial of a sweep."""
    path = locate(target, _begin(as_json, storage))
    from statten.display import console, table
    from statten.search.sweep import Sweep, describe

    found = Sweep.open(path).best()
    if as_json:
        return _print(found)
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
    if certain := Sweep(path).certainty():
        console.print(f"  {certain}")
    return console.print(f"  train on    statten promote {Sweep(path).typed} --set train.epochs=20")


@app.command()
def runs(storage: Storage = None, as_json: Json = False) -> None:
    """List the runs and sweeps of the storage."""
    folder = _begin(as_json, storage)
    refresh(folder)
    from statten.display import console, table
    from statten.overview import overview

    rows = overview(folder)
    if as_json:
        return _print(rows)
    if not rows:
        return console.print(f"{folder} holds no runs yet; start with: statten train digits")
    cells = [[r["name"], r["kind"], r["state"], r["progress"], r["best"], r["created"][:16].replace("T", " ")] for r in rows]
    return console.print(table("", ["name", "kind", "state", "progress", "best val top-1", "created"], cells, right=(4,)))


@app.command()
def show(
    target: Target,
    watching: Annotated[bool, typer.Option("--watch", help="Draw it anew every second, until it has ended.")] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Show a run's epochs or a sweep's trials."""
    path = locate(target, _begin(as_json, storage))
    from statten.display import console
    from statten.overview import details, details_table, watch

    if watching:
        watch(path)
    document = details(path)
    return _print(document) if as_json else console.print(details_table(document))


@app.command("report")
def report_sweep(
    target: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the storage, or a path.")],
    output: Annotated[Path | None, typer.Option(help="Folder to write to; default: `report` in the sweep's folder.")] = None,
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
    path = locate(target, _begin(as_json or as_csv, storage))
    from statten.display import console
    from statten.report import report
    from statten.search import Sweep

    written = report(Sweep.open(path), output, rates)
    files = written["files"]
    if as_json:
        return _print(written)
    if as_csv:
        return print(Path(files["csv"]).read_text(encoding="utf-8"), end="")
    console.print(f"page      {files['page']}")
    console.print(f"pictures  {', '.join(Path(name).name for name in files['pictures']) or 'none: there are no trials yet'}")
    return console.print(f"trials    {len(written['trials'])} in {files['csv']} and {files['json']}")


@app.command()
def doctor(
    storage: Storage = None,
    address: Annotated[
        str | None, typer.Option(help="Also check a Ray cluster: http://HEAD:8265, or HOST:PORT from one of its machines.")
    ] = None,
    make_token: Annotated[bool, typer.Option("--make-token", help="Make the clusters' token file, if there is none.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, and say what is missing and what to do."""
    if make_token:
        from statten.cluster import make_token as make

        return print(f"the token of your clusters is in {make()}, which only you can read")
    _begin(as_json, storage)
    from statten import doctor as doctors
    from statten.display import console

    checks = doctors.diagnose(storage, address)
    if as_json:
        _print(doctors.to_json(checks))
    else:
        console.print(doctors.render(checks))
    raise typer.Exit(0 if doctors.healthy(checks) else 1)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(metavar="lif|step|memory|attention|data", help="What to measure.")],
    model: Annotated[str, typer.Option(help="cifar10_2_512, cifar10dvs_2_256_t16 or imagenet_8_768.")] = "cifar10_2_512",
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per step; default: 8, on a GPU the recipe's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Measured turns; their median is reported.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Write the results there too, with the hardware named.")] = None,
    as_json: Json = False,
) -> None:
    """Measure speed and memory against SpikingJelly and against what the machine can do."""
    from statten.bench import BENCHMARKS, documents, pick, run_benchmark

    _begin(as_json, None)
    if what not in BENCHMARKS:
        raise UserError(f"{what!r} is no benchmark; {nearest(what, list(BENCHMARKS))}")
    rows = run_benchmark(what, pick(device), repeats, model, batch, output)
    if as_json:
        _print(documents(rows))


@energy_app.command("check")
def check_energy(file: Annotated[Path, typer.Argument(help="energy.json or report.json.")], as_json: Json = False) -> None:
    """Recompute an energy ledger from the file alone; exit code 2 and a sentence for each row that does not add up."""
    _begin(as_json, None)
    from statten.display import console
    from statten.metrics.energy import check_file

    found = check_file(file)
    if as_json:
        return _print({"rows": len(found["rows"]), "total": found["total"], "non_spiking": found["non_spiking"]["total"]})
    total = found["total"]
    counts = f"{total['macs']:,.0f} MACs, {total['sops']:,.0f} SOPs"
    return console.print(f"{len(found['rows'])} rows add up: {counts}, {total['pj'] / 1e6:.6f} uJ a sample")


@data_app.command("check")
def check_dataset(
    name: Data,
    root: Root,
    timesteps: Annotated[int | None, typer.Option(min=1, help="T of the clips; default: what is there.")] = None,
    workers: Threads = None,
    as_json: Json = False,
) -> None:
    """Read every sample: layout, counts, sizes, mean and std, and the files that cannot be read (exit code 1)."""
    _dataset(name, as_json)
    from statten.data.check import check
    from statten.display import dataset_summary, progress

    with progress("samples") as move:
        report = check(name, root, timesteps, workers=workers, progress=move)
    if as_json:
        _print(report)
    else:
        dataset_summary(report)
    raise typer.Exit(1 if report["corrupt"] else 0)


@data_app.command("prepare")
def prepare_dataset(
    name: Data,
    root: Root,
    timesteps: Annotated[list[int], typer.Option(min=1, help="T of the clips to make; may be given several times.")] = [],  # noqa: B006
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out raw files that cannot be read.")] = False,
    workers: Threads = None,
    as_json: Json = False,
) -> None:
    """Fetch a dataset where that is allowed, and turn archives into events and frames; may be stopped and repeated."""
    _dataset(name, as_json)
    from statten.data.prepare import prepare
    from statten.display import console, progress

    with progress("files") as move:
        report = prepare(name, root, timesteps, workers=workers, skip_corrupt=skip_corrupt, progress=move)
    if as_json:
        return _print(report)
    for file in report.get("corrupt", []):
        console.print(f"left out {file['file']}: {file['reason']}")
    return console.print(f"{name} is ready in {root}; look at it with: statten data check {name} --root {root}")


@data_app.command("shard")
def shard_dataset(
    name: Data,
    root: Root,
    output: Annotated[
        Path | None, typer.Option(help="New folder of the shards; none: write the indices of shards in --root.")
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
        return _print(report)
    for part, found in report["parts"].items():
        console.print(f"{part}: {found['samples']:,} samples in {found['shards']:,} shards")
    return console.print(f"read them with: --set data.name={name} --set data.root={report['output']}")


@app.command()
def demo(storage: Storage = None, as_json: Json = False) -> None:
    """The main job on bundled data: sweep, promote the best trial, evaluate it."""
    folder = _begin(as_json, storage)
    from statten.demo import run_demo

    report = run_demo(folder)
    if as_json:
        _print(report)


# ---------------------------------------------------------------------------------------------------------------------


def _dataset(name: str, as_json: bool) -> None:
    from statten.config import DATASET_NAMES

    _begin(as_json, None)
    if name not in DATASET_NAMES:
        raise UserError(f"{name!r} is no dataset; {nearest(name, DATASET_NAMES)}")


def _promotable(path: Path, trial: int | None) -> "tuple[Run, dict[str, Any]]":
    if not (path / "sweep.json").is_file():
        if trial is not None:
            raise UserError(f"--trial: {path} is no sweep")
        return Run.open(path), {"run": path.name}
    from statten.search import Sweep

    sweep = Sweep.open(path)
    if trial is not None and not sweep.trial(trial).path.is_dir():
        last = len(list((path / "trials").glob("[0-9]*"))) - 1
        raise UserError(f"--trial: must be between 0 and {last}, but got {trial}")
    number = sweep.best_trial().number if trial is None else trial
    return sweep.trial(number), {"sweep": path.name, "trial": number}


def _promote_front(
    path: Path,
    overrides: list[str],
    trial: int | None,
    name: str | None,
    folder: Path,
    as_json: bool,
    dry_run: bool,
    again: bool,
) -> None:
    from statten import search, trainer
    from statten.config import with_overrides
    from statten.display import console

    if trial is not None:
        raise UserError("--front: takes every trial of the front, and --trial takes one; leave one of them out")
    sweep = search.Sweep.open(path)
    places = {t.number: _place(folder, f"{name or path.name + '-front'}-{t.number:04d}", "") for t in sweep.front()}
    known = [
        number for number, place in places.items()
        if again and begun(place, with_overrides(sweep.trial(number).config, overrides))
    ]  # fmt: skip
    if taken := [place for number, place in places.items() if place.exists() and number not in known]:
        raise UserError(f"--name: {taken[0]} exists already; choose another --name, or go on with --resume")
    if dry_run:
        return console.print(f"trials {', '.join(map(str, places))} of {path.name} would be promoted. Nothing was started.")
    done = []
    for number, place in places.items():
        if number not in known:
            run = search.promote(sweep.trial(number), overrides, place, {"sweep": path.name, "trial": number})
        else:
            run = Run.open(place) if ended(place) else trainer.resume(Run.open(place))
        best = (run.result or {})["best"]
        done.append({"trial": number, "name": run.name, "path": str(run.path), "metrics": best})
        console.print(f"{run.name}: top-1 {best['val/top1']:.2f} %, {best['energy_uj']:.4g} uJ a sample")
    return _print(done) if as_json else None


def _plan(config: "Config", as_json: bool, space: "Space | None" = None) -> None:
    import dataclasses

    from statten import nodes
    from statten.display import console

    machines, scale = nodes.survey(config.scale.address), config.scale
    if space is not None:
        from statten.search.launch import measure_sweep, plan_sweep

        planned = plan_sweep(config, space, nodes.capacity(machines))
        plan, found = planned.trial, {**vars(planned)}
        with nodes.joined(scale.address):
            cost = measure_sweep(planned)
        del found["trial"], found["extremes"]
        document = {**vars(plan), **found, "cost": cost and dataclasses.asdict(cost)}
    else:
        from statten.training.preflight import preflight

        plan = preflight(config, nodes.capacity(machines))
        document = dataclasses.asdict(plan)
    shares = nodes.place(machines, document.get("concurrent", 1), plan, scale)
    if as_json:
        where = [dataclasses.asdict(share) for share in shares]
        return _print({**document, "placement": where, "config": config.model_dump(mode="json")})
    console.print(f"parameters       {plan.parameters / 1e6:.3f} M")
    console.print(f"steps per epoch  {plan.steps_per_epoch}")
    workers = f"{plan.min_workers} to {plan.world_size}" if plan.min_workers < plan.world_size else plan.world_size
    console.print(f"workers          {workers} on {plan.device}, {plan.cpus_per_worker} CPU cores each")
    console.print(f"memory           about {plan.memory_bytes / 2**20:,.0f} MiB per worker")
    if space is not None:
        console.print(f"sweep            {planned}")
        console.print(f"largest trial    about {planned.largest_bytes / 2**20:,.0f} MiB per worker")
        if cost:
            console.print(f"cost             {cost}")
    for share in shares:
        console.print(f"on {share}")
    if config.data.workers:
        console.print(f"loading          {config.data.workers} processes beside each worker, on its cores")
    return console.print("Nothing was started.")


def _go_on(path: Path, storage: Path, as_json: bool) -> None:
    """What --resume does with a run or sweep that was begun."""
    if not ended(path):
        return resume(str(path.absolute()), storage, as_json)
    from statten.display import console

    console.print(f"{path}: is finished")
    if (path / "sweep.json").is_file():
        from statten.search import Sweep

        return _finish_sweep(Sweep.open(path), time.monotonic(), as_json)
    return _finish_run(Run.open(path), time.monotonic(), as_json)


def _finish_run(run: Run, began: float, as_json: bool) -> None:
    from statten.display import run_summary
    from statten.storage.run import best_row

    if not as_json:
        return run_summary(run, began)
    best = best_row(run.metrics())
    return _print(
        {
            "name": run.name,
            "path": str(run.path),
            **{key: best[f"val/{key}"] for key in ("top1", "top5", "loss")},
            "epoch": best["epoch"],
            "epochs": len(run.metrics()),
            "metrics": best,
            "checkpoint": str(run.best_checkpoint()),
            "seconds": time.monotonic() - began,
        }
    )


def _finish_sweep(sweep: "Sweep", began: float, as_json: bool) -> None:
    from statten.overview import counts, sweep_summary

    if as_json:
        return _print({"name": sweep.name, "path": str(sweep.path), "trials": counts(sweep), "best": sweep.best()})
    return sweep_summary(sweep, began)


if __name__ == "__main__":
    main()
