"""What lies in the storage: the lists and tables behind `runs`, `show` and a sweep's summary."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from statten.display import console, duration, table
from statten.runs import Run, best_row
from statten.search.sweep import Sweep, describe


def overview(storage: Path) -> list[dict[str, Any]]:
    """One row per run and sweep, oldest first."""
    rows = []
    for path in sorted(storage.glob("*/")) if storage.is_dir() else []:
        if (path / Run.marker).is_file():
            rows.append(_run_row(Run(path)))
        elif (path / Sweep.marker).is_file():
            rows.append(_sweep_row(Sweep(path)))
    return sorted(rows, key=lambda row: row["created"])


def _run_row(run: Run) -> dict[str, Any]:
    metrics = run.metrics()
    return {
        "name": run.name,
        "kind": "run",
        "state": run.state,
        "progress": f"{len(metrics)}/{run.config.train.total_epochs} epochs",
        "best": f"{best_row(metrics)['val/top1']:.2f} %" if metrics else "-",
        "created": run.info.get("created", ""),
    }


def _sweep_row(sweep: Sweep) -> dict[str, Any]:
    found, trials = counts(sweep), sweep.config.search.trials
    ended = sum(found.values()) - found.get("running", 0)
    values = [best_row(rows)["val/top1"] for trial, _ in sweep.rows() if (rows := sweep.trial(trial.number).metrics())]
    return {
        "name": sweep.name,
        "kind": "sweep",
        "state": "finished" if ended >= trials else "unfinished",
        "progress": f"{ended}/{trials} trials",
        "best": f"{max(values):.2f} %" if values else "-",
        "created": sweep.info.get("created", ""),
    }


def counts(sweep: Sweep) -> dict[str, int]:
    """Number of trials by state: complete, pruned, fail, running."""
    return dict(Counter(trial.state.name.lower() for trial, _ in sweep.rows()))


def details(path: Path) -> dict[str, Any]:
    """A run's epochs or a sweep's trials, as a document."""
    if (path / Sweep.marker).is_file():
        sweep = Sweep(path)
        trials = []
        for trial, point in sweep.rows():
            run = sweep.trial(trial.number)
            rows = run.metrics()
            state = trial.state.name.lower()
            value = trial.value if trial.value is not None else (best_row(rows)["val/top1"] if rows else None)
            reason = trial.user_attrs.get("reason")
            trials.append(
                {
                    "trial": trial.number,
                    "point": point,
                    "epochs": len(rows),
                    "value": value,
                    "state": state,
                    "reason": reason,
                }
            )
        return {"kind": "sweep", "name": sweep.name, "metric": sweep.config.search.metric, "trials": trials}
    run = Run.open(path)
    return {
        "kind": "run",
        "name": run.name,
        "state": run.state,
        "reason": (run.result or {}).get("reason"),
        "config": run.config.model_dump(mode="json"),
        "epochs": run.metrics(),
        "evaluation": (run.path / "evaluation.json").is_file(),
    }


def details_table(document: dict[str, Any]) -> Table:
    """The document of `details` as a table."""
    if document["kind"] == "sweep":
        cells = [
            [t["trial"], describe(t["point"]), t["epochs"], _number(t["value"]), t["state"], t["reason"] or ""]
            for t in document["trials"]
        ]
        columns = ["trial", "point", "epochs", document["metric"], "state", "reason"]
        return table(f"sweep {document['name']}", columns, cells, right=(0, 2, 3))
    cells = [
        [int(r["epoch"]), f"{r['train/loss']:.4f}", f"{r['val/loss']:.4f}", f"{r['val/top1']:.2f}", f"{r['val/top5']:.2f}",
         f"{r['lr']:.2e}", f"{r['samples_per_second']:,.0f}", duration(r["seconds"])]
        for r in document["epochs"]
    ]  # fmt: skip
    columns = ["epoch", "train loss", "val loss", "val top-1", "val top-5", "lr", "samples/s", "time"]
    reason = f" ({document['reason']})" if document["reason"] else ""
    return table(f"run {document['name']}: {document['state']}{reason}", columns, cells, right=range(8))


def sweep_summary(sweep: Sweep, began: float) -> None:
    """The end of a sweep: what was found, where it lies, what to type next."""
    found, best = counts(sweep), sweep.best()
    states = ", ".join(f"{number} {state}" for state, number in sorted(found.items()))
    console.print(
        f"\n[bold]{sweep.name}[/]: {sum(found.values())} trials ({states}) in {duration(time.monotonic() - began)}"
        f"\n  best trial  {best['trial']}: {describe(best['point'])}, validation top-1 {best['metrics']['val/top1']:.2f} %"
    )
    if len(best["values"]) > 1:
        console.print(
            f"  the front   trials {', '.join(str(t['trial']) for t in best['front'])}; see: statten best {sweep.path}"
        )
    if certain := sweep.certainty():
        console.print(f"  how sure    {certain}")
    console.print(f"  folder      {sweep.path}")
    console.print(f"  train on    statten promote {sweep.path} --set train.epochs=20")
    console.print(f"  compare     tensorboard --logdir {sweep.path}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"
