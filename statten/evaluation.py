"""Evaluation on the test part, which nothing else reads: top-1, top-5, loss, and the firing rate of every layer."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from statten.checkpoint import load_weights
from statten.config import Config, UserError, parse_overrides, with_overrides
from statten.data import check_split, make_test_loader
from statten.display import console, progress_bar
from statten.files import write_json
from statten.models import build_model
from statten.runs import Run, now
from statten.train import pick_device, place, preflight, validate


def resolve(path: Path) -> tuple[Run, Path]:
    """The run and the checkpoint that a path means: a sweep (its best trial), a run (its best epoch) or a checkpoint."""
    if (path / "sweep.json").is_file():
        from statten.search.sweep import Sweep

        sweep = Sweep.open(path)
        run = sweep.trial(sweep.best_trial().number)
        return run, run.best_checkpoint()
    if (path / "run.json").is_file():
        run = Run.open(path)
        return run, run.best_checkpoint()
    if (path / "state.json").is_file():
        return Run.open(path.resolve().parent.parent), path
    raise UserError(f"{path}: is neither a run, a sweep nor a checkpoint folder; list them with: statten runs")


def evaluate(path: Path | str, overrides: Iterable[str] | Mapping[str, Any] = ()) -> dict[str, Any]:
    """Evaluate a sweep's best trial, a run's best epoch or a checkpoint on the test part of its dataset.

    Args:
        path: folder of the sweep, run or checkpoint.
        overrides: fields to change, such as model.timesteps, which owns no weights. A run with `train.ema_decay` is
            evaluated with its averaged weights; `train.ema_decay=null` takes the trained ones.

    Returns:
        top1, top5 (percent), loss (cross-entropy), samples, firing_rates (spikes per neuron and timestep, by layer).
    """
    run, checkpoint = resolve(Path(path))
    changed = parse_overrides(overrides)
    config = with_overrides(run.config, {**changed, "scale.workers": 1})
    preflight(config)
    if not any(field.startswith("data.") for field in changed):
        check_split(config, run.path / "splits.json")
    device = torch.device(pick_device(config.scale))
    model = place(_load(config, checkpoint), device)
    loader = make_test_loader(config)
    began = time.monotonic()
    with progress_bar("batches") as bar:
        task = bar.add_task("test part", total=len(loader), rate="")
        found = validate(model, _advancing(loader, bar, task), config, prefix="")
    rates = {name.removeprefix("firing_rate/"): found.pop(name) for name in list(found) if name.startswith("firing_rate/")}
    report = {
        "run": str(run.path),
        "checkpoint": str(checkpoint),
        "part": "test",
        "samples": loader.total,
        **found,
        "timesteps": config.model.timesteps,
        "block_size": config.model.block_size,
        "firing_rates": rates,
        "seconds": time.monotonic() - began,
        "evaluated": now(),
    }
    if not changed:
        write_json(run.path / "evaluation.json", report)
    return report


def _load(config: Config, checkpoint: Path) -> torch.nn.Module:
    model = build_model(config.model, config.scale.neuron_backend)
    try:
        model.load_state_dict(load_weights(checkpoint, averaged=config.train.ema_decay is not None))
    except RuntimeError as error:
        raise UserError(f"{checkpoint}: does not fit the model of its config: {' '.join(str(error).split())}") from None
    return model


def _advancing(loader: Any, bar: Any, task: Any) -> Iterable:
    for batch in loader:
        yield batch
        bar.advance(task)


def summary(report: dict[str, Any]) -> None:
    """Print a report: accuracy first, then the firing rates."""
    console.print(
        f"[bold]test[/] top-1 {report['top1']:.2f} %  top-5 {report['top5']:.2f} %  loss {report['loss']:.4f}  "
        f"({report['samples']} samples, T={report['timesteps']}, b={report['block_size']})"
    )
    rates = report["firing_rates"]
    width = max(map(len, rates))
    console.print("\nfiring rate (spikes per neuron and timestep)")
    for name, rate in rates.items():
        console.print(f"  {name:<{width}}  {rate:6.3f}  {'█' * round(40 * rate)}")
    console.print(f"\n  checkpoint  {report['checkpoint']}")
