"""What lies in the storage: the lists and tables behind `runs`, `show` and a sweep's summary."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from statten.display import console, duration, numeral, state_word, table
from statten.errors import UserError, in_shell
from statten.report.supernet import supernet_details, supernet_row, supernet_table
from statten.report.trials import STATES, SweepTrials, common_reason
from statten.search.repeats import sentence
from statten.search.sweep import Sweep, describe, open_folder
from statten.storage.run import Run, best_row, written
from statten.storage.supernet import Supernet

EPOCH = (
    ("train/loss", "{:.4f}"), ("val/loss", "{:.4f}"), ("val/top1", "{:.2f}"), ("val/top5", "{:.2f}"), ("lr", "{:.2e}"),
    ("samples_per_second", "{:,.0f}"),
)  # fmt: skip
"""Metrics of an epoch in a table, and how they are written; an older version may have had fewer."""


def overview(storage: Path) -> list[dict[str, Any]]:
    """One row per run and sweep, oldest first; one that cannot be read says why under `problem`."""
    rows = []
    for path in sorted(storage.glob("*/")) if storage.is_dir() else []:
        folder = None
        try:
            if (folder := open_folder(path)) is not None:
                rows.append(_row(folder))
        except (UserError, OSError) as error:  # one that cannot be read hides no other
            row = {"name": path.name, "kind": folder.noun if folder else "?", "state": "damaged", "progress": "-", "best": "-"}
            rows.append({**row, "created": "", "problem": str(error)})
    return sorted(rows, key=lambda row: row["created"])


def _row(folder: Run | Sweep) -> dict[str, Any]:
    if isinstance(folder, Sweep):
        return _sweep_row(folder)
    return supernet_row(folder) if isinstance(folder, Supernet) else _run_row(folder)


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
    found, trials = counts(sweep), sweep.trials
    ended = sum(found.values()) - found.get("running", 0) - found.get("unfinished", 0)
    values = [best_row(rows)["val/top1"] for trial, _ in sweep.rows() if (rows := sweep.trial(trial.number).metrics())]
    return {
        "name": sweep.name,
        "kind": "sweep",
        "state": "finished" if sweep.ended else "unfinished",
        "progress": f"{ended}/{trials} trials",
        "best": f"{max(values):.2f} %" if values else "-",
        "created": sweep.info.get("created", ""),
    }


def counts(sweep: Sweep) -> dict[str, int]:
    """Number of trials by state: complete, pruned, fail, running, or unfinished where no process trains them."""
    running = "running" if written(sweep.path) else "unfinished"
    states = (trial.state.name.lower() for trial, _ in sweep.rows())
    return dict(Counter(running if state == "running" else state for state in states))


def details(path: Path) -> dict[str, Any]:
    """A run's epochs, a sweep's trials or a supernet's front, as a document."""
    folder = open_folder(path)
    if isinstance(folder, Sweep):
        return _sweep_details(folder)
    if isinstance(folder, Supernet):
        return supernet_details(folder)
    run = Run.open(path)
    return {
        "kind": "run",
        "name": run.name,
        "state": run.state,
        "reason": run.reason if run.ended else None,
        "config": run.config.model_dump(mode="json"),
        "epochs": run.metrics(),
        "evaluation": (run.path / "evaluation.json").is_file(),
    }


def _sweep_details(sweep: Sweep) -> dict[str, Any]:
    """Its trials; `values` are the objectives at the best epoch so far, and `value` is the first of them."""
    trials = SweepTrials.read(sweep)
    rows = []
    for row in trials.rows:
        values = {o.name: row.value(i, o) for i, o in enumerate(trials.objectives)}
        rows.append(
            {
                "trial": row.number,
                "point": row.point,
                "epochs": len(row.epochs),
                "value": values[trials.objectives[0].name],
                "values": values,
                "state": row.state,
                "reason": row.reason,
            }
        )
    return {
        "kind": "sweep",
        "name": sweep.name,
        "metric": trials.objectives[0].name,
        "best": [row.number for row in trials.front],
        "planned": sweep.trials,
        "trials": rows,
    }


def details_table(document: dict[str, Any], most: int | None = None) -> Table:
    """The document of `details` as a table; of more than `most` rows those that are running and the newest."""
    if document["kind"] == "sweep":
        return _sweep_table(document, most)
    if document["kind"] == "supernet":
        return supernet_table(document, most)
    cells = [
        [int(r["epoch"]), *(form.format(r[name]) if name in r else "-" for name, form in EPOCH),
         duration(r["seconds"]) if "seconds" in r else "-"]
        for r in document["epochs"][-(most or 0) :]
    ]  # fmt: skip
    columns = ["epoch", "train loss", "val loss", "val top-1", "val top-5", "lr", "samples/s", "time"]
    reason = f" ({document['reason']})" if document["reason"] else ""
    return table(f"run {document['name']}: {state_word(document['state'])}{reason}", columns, cells, right=range(8))


def _sweep_table(document: dict[str, Any], most: int | None) -> Table:
    trials, best = document["trials"], set(document["best"])
    states = Counter(STATES[t["state"]] for t in trials)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    title = f"sweep {document['name']}: {len(trials)} of {document['planned']} trials" + (f" ({counted})" if counted else "")
    if most is not None and len(trials) > most:
        keep = {t["trial"] for t in trials if t["state"] in ("running", "unfinished") or t["trial"] in best}
        others = [t["trial"] for t in trials if t["trial"] not in keep]
        keep |= set(others[len(others) - max(0, most - len(keep)) :])
        trials = [t for t in trials if t["trial"] in keep][-most:]
        title += f", of which {len(trials)} are shown"
    metrics = list(trials[0]["values"]) if trials else [document["metric"]]
    cells = [
        [f"{t['trial']}{'*' if t['trial'] in best else ''}", describe(t["point"]), t["epochs"],
         *[numeral(t["values"][m]) for m in metrics], STATES[t["state"]], escape(t["reason"] or "")]
        for t in trials
    ]  # fmt: skip
    columns = ["trial", "point", "epochs", *metrics, "state", "reason"]
    made = table(title, columns, cells, right=(0, 2, *range(3, 3 + len(metrics))))
    if most is not None:  # a line for each trial, or they would not fit the screen
        for column in made.columns:
            column.no_wrap, column.overflow = True, "ellipsis"
        made.expand, made.columns[-1].ratio = True, 1  # reasons take what the others leave
    return made


def awaited(find: Callable[[], Path], seconds: float = 1.0) -> Path:
    """The folder that `find` finds, as soon as there is one that a process writes.

    Args:
        find: raises UserError while there is none.
        seconds: between looks; what is there and is not written for ten of them is over already.
    """
    told = False
    while True:
        try:
            path = find()
            break
        except UserError as error:
            if not told:
                console.print(f"{str(error).partition(';')[0]}; waiting for it", markup=False)
            told = True
            time.sleep(seconds)
    for _ in range(10 if told else 0):  # it was made this moment, and its writer is about to begin
        if written(path):
            break
        time.sleep(seconds)
    return path


def watch(path: Path, seconds: float = 1.0) -> None:
    """Draw a run or a sweep on the terminal anew every second, until no process writes it any more; it is only read."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            began, over = time.monotonic(), not written(path)
            live.update(details_table(details(path), max(4, console.size.height - 4)), refresh=True)
            if over:
                return
            # A sweep of thousands of trials takes its time to be read: leave the machine to the training.
            time.sleep(max(seconds, 4 * (time.monotonic() - began)))


def sweep_summary(sweep: Sweep, began: float) -> None:
    """The end of a sweep: what was found, where it lies, what to type next."""
    found = counts(sweep)
    states = ", ".join(f"{number} {state_word(state)}" for state, number in sorted(found.items()))
    console.print(f"\n[bold]{sweep.name}[/]: {sum(found.values())} trials ({states}) in {duration(time.monotonic() - began)}")
    if common := common_reason((trial.state.name.lower(), trial.user_attrs.get("reason")) for trial, _ in sweep.rows()):
        console.print(f"  most stops  {escape(common)}")
    best = sweep.best()
    console.print(
        f"  best trial  {best['trial']}: {describe(best['point'])}, validation top-1 {best['metrics']['val/top1']:.2f} %"
    )
    if len(best["values"]) > 1:
        console.print(
            f"  the front   trials {', '.join(str(t['trial']) for t in best['front'])}; see: statten best {sweep.typed}"
        )
    if certain := sentence(sweep):
        console.print(f"  how sure    {certain}")
    console.print(f"  folder      {sweep.where}")
    console.print(f"  train on    statten promote {sweep.typed} --set train.epochs=20")
    console.print(f"  see it all  statten report {sweep.typed}")
    console.print(f"  compare     tensorboard --logdir {in_shell(sweep.path)}")
