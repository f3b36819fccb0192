"""The commands that measure trained weights: evaluate, anytime, grid, compare, export, energy check."""

import os
from pathlib import Path
from typing import Annotated

import typer

from statten.cli.options import Ema, Evaluated, Json, OnData, Set, Storage, app, begin, print_json
from statten.errors import UserError, user_path
from statten.storage.run import locate

Output = Annotated[
    Path | None,
    typer.Option("--output", parser=user_path, metavar="DIR", help="Folder for the results; default: evaluations/ in the run."),
]
energy_app = typer.Typer(help="The energy ledger that `evaluate` writes.", rich_markup_mode=None)
app.add_typer(energy_app, name="energy")


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
    as_published: Annotated[
        bool, typer.Option("--as-published", help="QKFormer as its published code runs it: samples of a batch mix.")
    ] = False,
    first_layer_once: Annotated[
        bool, typer.Option("--first-layer-once", help="Count a repeated image's first layer once.")
    ] = False,
    skip_padding: Annotated[bool, typer.Option("--skip-padding", help="Do not count additions into zero padding.")] = False,
    memory_cost: Annotated[
        float | None, typer.Option(min=0, metavar="PJ", help="Also count memory traffic, at so many pJ a byte.")
    ] = None,
    storage: Storage = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint, a run's best epoch or a sweep's best trial on the test part."""
    path = locate(target, begin(as_json, storage))
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
        as_published=as_published,
        conventions=conventions,
        storage=storage,
        output=output,
    )
    if as_json:
        return print_json(report)
    return evaluation.summary(report)


@app.command()
def anytime(
    target: Evaluated,
    overrides: Set = [],  # noqa: B006
    data: OnData = None,
    ema: Ema = True,
    storage: Storage = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Accuracy, energy and latency after 1 .. T timesteps, and early exit by confidence."""
    path = locate(target, begin(as_json, storage))
    from statten.evaluation import anytime as times

    report = times.anytime(path, overrides, data=data, ema=ema, storage=storage, output=output)
    return print_json(report) if as_json else times.anytime_summary(report)


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
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Accuracy and energy of one set of weights at every (timesteps, block size), on the validation part."""
    path = locate(target, begin(as_json, storage))
    from statten.evaluation import grid as grids

    report = grids.grid(
        path,
        overrides,
        timesteps=timesteps or None,
        recalibrate=recalibrate,
        part=part,
        data=data,
        ema=ema,
        storage=storage,
        output=output,
    )
    return print_json(report) if as_json else grids.grid_summary(report)


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
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Compare models on the same test samples: confidence intervals, and whether a gain is noise."""
    folder = begin(as_json, storage)
    groups = [[target] if os.path.exists(os.path.expanduser(target)) else target.split(",") for target in targets]
    paths = [[locate(name, folder) for name in group] for group in groups]
    from statten.evaluation import compare as comparing

    report = comparing.compare(paths, overrides, data=data, ema=ema, resamples=resamples, storage=storage, output=output)
    return print_json(report) if as_json else comparing.compare_summary(report)


@app.command("export")
def export_model(
    target: Evaluated,
    output: Annotated[Path, typer.Option("--output", parser=user_path, metavar="FOLDER", help="New folder.")],
    formats: Annotated[
        list[str], typer.Option("--format", help="safetensors, published, torch_export (the default: these three) or onnx.")
    ] = [],  # noqa: B006
    overrides: Set = [],  # noqa: B006
    data: OnData = None,
    ema: Ema = True,
    repo: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="USER/NAME", help="Upload it to the Hugging Face Hub too.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write weights and network for other programs; every file is opened and run before it is kept."""
    path = locate(target, begin(as_json, storage))
    from statten.display import console
    from statten.evaluation import export as exporting
    from statten.evaluation import hub

    formats = formats or [*exporting.DEFAULT]
    if repo is not None:
        if "safetensors" not in formats:
            raise UserError("--push-to-hub: needs --format safetensors, which timm opens")
        hub.check_repo(repo)
    report = exporting.export(path, output, formats, overrides, data=data, ema=ema)
    report["hub"] = None if repo is None else hub.push(output, repo)
    if as_json:
        return print_json(report)
    for name, about in report["files"].items():
        console.print(f"{output / name}  runs; its logits differ by {about['largest_difference']:.1e} at most", markup=False)
    if report["open"]:
        console.print("\n".join(["", "it opens with", *[f"  {line}" for line in report["open"]]]), markup=False)
    if report["hub"]:
        console.print(f"\npushed to {report['hub']}", markup=False)
    return None


@energy_app.command("check")
def check_energy(
    file: Annotated[Path, typer.Argument(parser=user_path, metavar="FILE", help="energy.json or report.json.")],
    as_json: Json = False,
) -> None:
    """Recompute an energy ledger from its network; exit code 2 and a sentence for each row that is not as it must be."""
    begin(as_json, None)
    from statten.display import console
    from statten.metrics.energy import check_file

    found = check_file(file)
    if as_json:
        return print_json({"rows": len(found["rows"]), "total": found["total"], "non_spiking": found["non_spiking"]["total"]})
    total = found["total"]
    counts = f"{total['macs']:,.0f} MACs, {total['sops']:,.0f} SOPs"
    return console.print(f"{len(found['rows'])} rows add up: {counts}, {total['pj'] / 1e6:.6f} uJ a sample")
