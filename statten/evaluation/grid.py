"""How far one set of weights carries: accuracy and energy at every (timesteps, block size), which own no weights."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from statten.config import Config, parse_overrides, with_overrides
from statten.data import make_loaders, make_test_loader
from statten.display import console, progress_bar, table
from statten.display.plots import heat_map, md_table, save_figure
from statten.errors import ConfigError, UserError, in_shell
from statten.evaluation.evaluator import place
from statten.evaluation.measure import measure
from statten.evaluation.report import accuracy
from statten.evaluation.targets import Target, open_target
from statten.files import write_json, write_text
from statten.metrics.energy import Conventions, ledger
from statten.metrics.inference import recalibrate
from statten.models import Backbone
from statten.storage.mirror import publish
from statten.storage.run import Run

# The (T, b) grid.


def grid(
    path: Path | str, overrides: Iterable[str] | Mapping[str, Any] = (), *, timesteps: list[int] | None = None,
    recalibrate: int = 0, part: str = "validation", data: str | None = None, ema: bool = True, storage: Path | None = None,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy and energy of one set of weights at every number of timesteps and every block size that divides it.

    Args:
        path: as in `evaluate`, overrides, data, ema, storage and output too.
        timesteps: numbers of timesteps; empty means 1, 2, 4, ... up to twice the trained number.
        part: `validation`, so that (T, b) may be chosen by what is found here, or `test`.
        recalibrate: training batches from which BatchNorm's statistics are found anew in each cell; 0 keeps the trained ones.

    Returns:
        `cells`: a row for each (timesteps, block_size), with top1, loss and energy_pj; `best`: the one of highest top-1, of
        several the one of fewest timesteps, then that of the training, then of least loss.
    """
    if part not in ("validation", "test"):
        raise UserError(f"--part: must be validation or test, but got {part!r}")
    target = open_target(Path(path), overrides, data, ema)
    folder = place(target, storage, output)
    trained = target.config.model
    chosen = timesteps or sorted({2**i for i in range(7) if 2**i <= 2 * trained.timesteps} | {trained.timesteps})
    pairs = [(t, b) for t in chosen for b in range(1, t + 1) if t % b == 0 or (t, b) == (trained.timesteps, trained.block_size)]
    configs = [_at(target, t, b) for t, b in pairs]
    target.preflight(configs[0])
    cells = []
    with progress_bar("cells") as bar:
        task = bar.add_task("grid", total=len(pairs), rate="")
        model = target.model()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for (t, b), config in zip(pairs, configs, strict=True):
            model.load_state_dict(state)
            model.set_timesteps(t, b)
            if recalibrate:
                recalibrate_norms(model, config, recalibrate)
            loader = make_test_loader(config) if part == "test" else make_loaders(config).validation
            found = measure(model, loader, config)
            energy = ledger(config.model, t, found.sums, found.samples, Conventions())["total"]["pj"]
            cells.append({"timesteps": t, "block_size": b, **accuracy(found), "energy_pj": energy})
            bar.advance(task)
    best = best_cell(cells, trained.timesteps, trained.block_size)
    report = {
        "run": str(target.run.path) if target.run else None,
        "target": target.name, "checkpoint": str(target.source), "data": target.config.data.name, "samples": found.samples,
        "part": part, "recalibrated_batches": recalibrate,
        "trained": {"timesteps": trained.timesteps, "block_size": trained.block_size},
        "cells": cells, "best": best,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    files = f"grid-{part}" + (f"-recalibrated-{recalibrate}" if recalibrate else "")
    report |= {"folder": str(folder), "files": files}
    _write_grid(report, folder / files)
    return report


def best_cell(cells: list[dict[str, Any]], timesteps: int, block_size: int) -> dict[str, Any]:
    """The cell of highest top-1; another than that of the training (timesteps, block_size) only where it gains something."""

    def rank(cell: dict[str, Any]) -> tuple[float, int, bool, float]:
        in_use = (cell["timesteps"], cell["block_size"]) == (timesteps, block_size)
        return cell["top1"], -cell["timesteps"], in_use, -cell["loss"]

    return max(cells, key=rank)


def best_pair(run: Run, overrides: Iterable[str] | Mapping[str, Any] = ()) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Choose the (timesteps, block size) with which to train a run on: the best of its weights' grid on the validation part.

    Args:
        run: whose best weights are tried.
        overrides: of the further training; those of data.root and scale hold here too.

    Returns:
        The fields to override, why in a sentence, and the grid's report.

    Raises:
        UserError: the overrides choose already.
    """
    wanted = parse_overrides(overrides)
    for name in ("model.timesteps", "model.block_size"):
        if name in wanted:
            raise UserError(f"--grid: chooses {name}, but --set {name}={wanted[name]} does too; leave one of them out")
    here = {name: value for name, value in wanted.items() if name == "data.root" or name.startswith("scale.")}
    with tempfile.TemporaryDirectory() as aside:  # for somebody else's run: the choice is what counts
        report = grid(run.path, here, output=None if os.access(run.path, os.W_OK) else Path(aside))
    best, cells, before = report["best"], report["cells"], report["trained"]
    tied = sum(cell["top1"] == best["top1"] for cell in cells)
    trained = next(cell for cell in cells if {name: cell[name] for name in before} == before)
    why = (
        f"T={best['timesteps']} b={best['block_size']}: of {len(cells)} pairs it has the highest top-1 on {report['samples']} "
        f"validation samples, {best['top1']:.2f} % (trained with T={before['timesteps']} b={before['block_size']}: "
        f"{trained['top1']:.2f} %)" + (f"; {tied} pairs reach it, and none of them with fewer timesteps" if tied > 1 else "")
    )
    fields = {"model.timesteps": best["timesteps"], "model.block_size": best["block_size"]}
    if run.config.data.frames is not None:
        fields["data.frames"] = None  # as many as timesteps, as they were in the grid
    return fields, why, report


def _at(target: Target, timesteps: int, block_size: int) -> Config:
    fields = {"model.timesteps": timesteps, "model.block_size": block_size, "data.frames": None, "scale.workers": 1}
    try:
        return with_overrides(target.config, fields)
    except ConfigError as error:
        raise UserError([f"--timesteps: {problem}" for problem in error.problems]) from None


def recalibrate_norms(model: Backbone, config: Config, batches: int) -> None:
    """Replace BatchNorm's running statistics by their plain average over training batches, as the model now runs."""
    train = make_loaders(config).train
    recalibrate(model, (images for images, _ in itertools.islice(train.batches(0), batches)))


def grid_cells(report: dict[str, Any], name: str = "top1", form: str = "{:.2f}") -> tuple[list[str], list[list[str]]]:
    """Columns (block sizes) and cells (a line for each number of timesteps) of the grid."""
    values, steps, blocks = _square(report, name)
    rows = [[f"T={t}"] + [form.format(v) if v == v else "" for v in row] for t, row in zip(steps, values, strict=True)]
    return ["", *(f"b={b}" for b in blocks)], rows


def _square(report: dict[str, Any], name: str) -> tuple[list[list[float]], list[int], list[int]]:
    steps = sorted({cell["timesteps"] for cell in report["cells"]})
    blocks = sorted({cell["block_size"] for cell in report["cells"]})
    found = {(cell["timesteps"], cell["block_size"]): cell[name] for cell in report["cells"]}
    return [[found.get((t, b), float("nan")) for b in blocks] for t in steps], steps, blocks


def _write_grid(report: dict[str, Any], stem: Path) -> None:
    write_json(stem.with_suffix(".json"), report)
    parts = [f"Top-1 in percent, {report['part']} part", md_table(*grid_cells(report)), "Energy of a sample in uJ"]
    micro = {**report, "cells": [{**cell, "energy_uj": cell["energy_pj"] / 1e6} for cell in report["cells"]]}
    write_text(stem.with_suffix(".md"), "\n\n".join([*parts, md_table(*grid_cells(micro, "energy_uj", "{:.4f}"))]) + "\n")
    values, steps, blocks = _square(report, "top1")
    how = f",\nBatchNorm from {report['recalibrated_batches']} batches" if report["recalibrated_batches"] else ""
    title = f"Top-1 (%), {report['part']} part{how}"
    made = heat_map(values, [f"T={t}" for t in steps], [f"b={b}" for b in blocks], title, "{:.2f}")
    save_figure(made, stem.with_suffix(".png"))
    publish(stem.parent)


def grid_summary(report: dict[str, Any]) -> None:
    """Print what `grid` found."""
    trained, best = report["trained"], report["best"]
    how = (
        f"BatchNorm from {report['recalibrated_batches']} training batches" if report["recalibrated_batches"] else "as trained"
    )
    console.print(
        f"[bold]{report['target']}[/] on {report['data']}, {report['samples']} {report['part']} samples, "
        f"top-1 in percent, {how}"
    )
    console.print(table("", *grid_cells(report), right=range(1, 20)))
    console.print(
        f"trained at T={trained['timesteps']} b={trained['block_size']}; best T={best['timesteps']} b={best['block_size']}: "
        f"top-1 {best['top1']:.2f} %, {best['energy_pj'] / 1e6:.4f} uJ a sample"
    )
    if all(best[name] == value for name, value in trained.items()):
        console.print("  the pair that it was trained at is the best one: nothing to change")
    elif report["run"]:
        to = f"--set model.timesteps={best['timesteps']} --set model.block_size={best['block_size']}"
        console.print(f"  train on  statten promote {in_shell(report['run'])} {to}")
    console.print(f"  report    {report['folder']}/{report['files']}.md, .json, .png")
