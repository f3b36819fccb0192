"""How good, how costly and how late an answer is after 1 .. T timesteps.

Timesteps and blocks own no weights. After t timesteps a network of T has seen what a network of t sees, with a last, shorter
block where b does not divide t: so it is run with t timesteps and blocks of min(b, t). Event clips keep the frames that they
were cut into for T, and the first t of them are read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from statten.data import make_test_loader
from statten.display import console, progress_bar, table
from statten.display.plots import figure, md_table, save_figure
from statten.evaluation.evaluator import place
from statten.evaluation.measure import Measured, measure
from statten.evaluation.report import accuracy
from statten.evaluation.targets import open_target
from statten.files import write_json, write_text
from statten.metrics.energy import Conventions, ledger
from statten.metrics.inference import latency_ms
from statten.storage.mirror import publish

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Confidence levels at which early exit is reported."""


class _FirstFrames:
    """A loader's clips cut to their first t frames."""

    def __init__(self, loader: Any, timesteps: int):
        self._loader, self._timesteps = loader, timesteps
        self.indices, self.corrupt = loader.indices, loader.corrupt

    def __iter__(self) -> Any:
        for x, y in self._loader:
            yield x[:, : self._timesteps], y


def anytime(
    path: Path | str, overrides: Iterable[str] | Mapping[str, Any] = (), *, data: str | None = None, ema: bool = True,
    storage: Path | None = None, output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy, energy and latency after 1 .. T timesteps, and early exit by confidence, on the test part.

    Early exit: a sample's answer is taken at the first t at which its largest softmax probability reaches a level, else at T.
    Its energy is that of the mean sample after the t timesteps.

    Args:
        path: as in `evaluate`, overrides, data, ema, storage and output too.

    Returns:
        `steps`: a row for each t; `early_exit`: a row for each level.
    """
    target = open_target(Path(path), overrides, data, ema)
    folder = place(target, storage, output)
    config = target.evaluated_on(1)
    target.preflight(config)
    model, m = target.model(), config.model
    loader = make_test_loader(config)
    rows, records, sample = [], [], next(iter(loader))[0][:1]
    with progress_bar("timesteps") as bar:
        task = bar.add_task("after t timesteps", total=m.timesteps, rate="")
        for t in range(1, m.timesteps + 1):
            model.set_timesteps(t, min(m.block_size, t))
            found = measure(model, _FirstFrames(loader, t) if m.events else loader, config)  # type: ignore[arg-type]
            energy = ledger(m, t, found.sums, found.samples, Conventions())["total"]["pj"]
            latency = latency_ms(model, config, sample[:, :t] if m.events else sample, turns=15)
            rows.append({"timesteps": t, **accuracy(found), "energy_pj": energy, "latency_ms": latency})
            records.append(found)
            bar.advance(task)
    exits = [early_exit(records, [row["energy_pj"] for row in rows], level) for level in CONFIDENCES]
    report = {
        "target": target.name, "checkpoint": str(target.source), "data": config.data.name, "samples": records[0].samples,
        "block_size": m.block_size, "steps": rows, "early_exit": exits,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    report["folder"] = str(folder)
    _write_anytime(report, folder)
    return report


def early_exit(records: list[Measured], energies: list[float], level: float) -> dict[str, float]:
    """What comes of stopping at a confidence level.

    Args:
        records: of the same samples after 1 .. T timesteps.
        energies: of a sample after each.
        level: confidence from which on an answer is taken.
    """
    sure = torch.stack([found.column("confidence") for found in records]) >= level
    sure[-1] = True
    at = sure.int().argmax(0)  # the first
    right = torch.stack([found.column("rank") < 1 for found in records])
    taken = right.gather(0, at[None])[0]
    return {
        "confidence": level,
        "top1": 100 * taken.double().mean().item(),
        "average_timesteps": (at + 1).double().mean().item(),
        "energy_pj": torch.tensor(energies, dtype=torch.float64)[at].mean().item(),
    }


def _write_anytime(report: dict[str, Any], folder: Path) -> None:
    write_json(folder / "anytime.json", report)
    write_text(folder / "anytime.md", "\n\n".join([md_table(*steps_cells(report)), md_table(*exit_cells(report))]) + "\n")
    made = figure(9, 3.6)
    left, right = made.subplots(1, 2)
    steps, exits = report["steps"], report["early_exit"]
    left.plot([r["timesteps"] for r in steps], [r["top1"] for r in steps], marker="o", label="after t timesteps")
    left.plot([r["average_timesteps"] for r in exits], [r["top1"] for r in exits], marker="x", label="early exit")
    left.set_xlabel("timesteps (average)")
    right.plot([r["energy_pj"] / 1e6 for r in steps], [r["top1"] for r in steps], marker="o")
    right.plot([r["energy_pj"] / 1e6 for r in exits], [r["top1"] for r in exits], marker="x")
    right.set_xlabel("energy of a sample (uJ)")
    for axes in (left, right):
        axes.set_ylabel("top-1 (%)")
        axes.grid(alpha=0.3)
    left.legend()
    save_figure(made, folder / "anytime.png")
    publish(folder)


def steps_cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of timesteps."""
    columns = ["timesteps", "top-1 %", "loss", "energy uJ", "latency ms"]
    return columns, [
        [str(r["timesteps"]), f"{r['top1']:.2f}", f"{r['loss']:.4f}", f"{r['energy_pj'] / 1e6:.4f}", f"{r['latency_ms']:.2f}"]
        for r in report["steps"]
    ]


def exit_cells(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of early exits."""
    columns = ["exit at confidence", "top-1 %", "average timesteps", "energy uJ"]
    return columns, [
        [f"{r['confidence']:g}", f"{r['top1']:.2f}", f"{r['average_timesteps']:.3f}", f"{r['energy_pj'] / 1e6:.4f}"]
        for r in report["early_exit"]
    ]


def anytime_summary(report: dict[str, Any]) -> None:
    """Print what `anytime` found."""
    console.print(f"[bold]{report['target']}[/] on {report['data']}, {report['samples']} samples, b={report['block_size']}")
    for cells in (steps_cells(report), exit_cells(report)):
        console.print()
        console.print(table("", *cells, right=range(5)))
    console.print(f"\n  report  {report['folder']}/anytime.md, .json, .png")
