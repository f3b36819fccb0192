"""A sweep while it runs: a live table on a terminal, a line per finished trial elsewhere."""

import time
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from rich.live import Live
from rich.table import Table

from statten.display import console, duration, table
from statten.runs import Run
from statten.search.sweep import Sweep, describe, short

STATES = {"finished": "[green]complete[/]", "stopped": "[yellow]stopped[/]", "failed": "[red]failed[/]"}


class LiveTable(TrialProgressCallback):
    """Ray Tune's callback that draws the sweep, in the place of Ray's own; a context manager around it."""

    ROWS = 24

    def __init__(self, sweep: Sweep, trials: int):
        self.sweep, self.trials, self.metric = sweep, trials, sweep.config.search.metric
        self.sign = 1 if sweep.config.search.mode == "max" else -1
        self.epochs = sweep.config.train.total_epochs
        self.paths = sweep.space.paths  # read once: a table is drawn four times a second
        self.rows: dict[int, dict[str, Any]] = {}
        self.began = time.monotonic()
        for trial, point in sweep.rows():
            if trial.state.is_finished():
                self._finish(trial.number, point, show=False)
        self.already = len(self.rows)
        self.live = Live(get_renderable=self._table, console=console, refresh_per_second=4, transient=True)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __enter__(self) -> "LiveTable":
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self.live.stop()
            console.print(self._table())

    # Ray Tune's hooks.

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        run = Run(self.sweep.trial(trial.config["number"]).path)
        point = (run.info.get("origin") or {}).get("point", {})
        rows = run.metrics()
        row = self.rows.setdefault(trial.config["number"], {"point": point, "began": time.monotonic()})
        row.update(state="training", epoch=len(rows), value=max((r[self.metric] for r in rows), default=None))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **_: Any) -> None:
        if "epoch" not in result:  # a trial that ended without training an epoch
            return
        row = self.rows[trial.config["number"]]
        row["epoch"] = int(result["epoch"])
        values = [v for v in (row["value"], result[self.metric]) if v is not None]
        row["value"] = max(values, key=lambda v: self.sign * v)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        row = self.rows[trial.config["number"]]
        self._finish(trial.config["number"], row["point"], time.monotonic() - row["began"])

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    # What is shown.

    def _finish(self, number: int, point: dict[str, Any], seconds: float | None = None, show: bool = True) -> None:
        run = self.sweep.trial(number)
        rows, result = run.metrics(), run.result or {}
        value = max((r[self.metric] for r in rows), key=lambda v: self.sign * v, default=None)
        if result.get("state") == "finished":
            value = result["best"][self.metric]
        seconds = seconds if seconds is not None else sum(r["seconds"] for r in rows)
        row = {"point": point, "epoch": len(rows), "value": value, "seconds": seconds}
        self.rows[number] = {**row, "state": result.get("state", "failed"), "reason": result.get("reason")}
        if show and not console.is_terminal:
            left = f", {duration(self._left())} left" if self._done() < self.trials and self._left() else ""
            state = self.rows[number]["state"]
            console.print(
                f"trial {number:>{len(str(self.trials))}}  {describe(point):<28}  {self.metric} {self._shown(value):>6}  "
                f"{'complete' if state == 'finished' else state} at epoch {len(rows)}/{self.epochs} in {duration(seconds)}  "
                f"({self._done()} of {self.trials} done{left})" + (f"  {result['reason']}" if state == "failed" else "")
            )

    def _done(self) -> int:
        return sum(row["state"] != "training" for row in self.rows.values())

    def _left(self) -> float:
        fresh = self._done() - self.already
        return (time.monotonic() - self.began) / fresh * (self.trials - self._done()) if fresh else 0.0

    def _best(self) -> int | None:
        done = {n: r["value"] for n, r in self.rows.items() if r["state"] == "finished" and r["value"] is not None}
        return max(done, key=lambda n: self.sign * done[n]) if done else None

    def _shown(self, value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"

    def _table(self) -> Table:
        best = self._best()
        numbers = sorted(self.rows)
        if len(numbers) > self.ROWS:  # those that train, the best, and the newest of the others
            keep = {n for n in numbers if self.rows[n]["state"] == "training"} | ({best} if best is not None else set())
            numbers = sorted(keep | set([n for n in numbers if n not in keep][-(self.ROWS - len(keep)) :]))
        rows = []
        for n in numbers:
            row = self.rows[n]
            seconds = row.get("seconds", time.monotonic() - row.get("began", 0.0))
            point = [row["point"].get(path, "") for path in self.paths]
            point = [f"{v:.2g}" if isinstance(v, float) else v for v in point]
            state = STATES.get(row["state"], row["state"])
            mark = "[bold]*[/]" if n == best else ""
            epoch = f"{row['epoch']}/{self.epochs}"
            rows.append([f"{n}{mark}", *point, epoch, self._shown(row["value"]), state, duration(seconds)])
        left = f", {duration(self._left())} left" if self._left() and self._done() < self.trials else ""
        title = f"{self.sweep.name}: {self._done()} of {self.trials} trials{left}"
        columns = ["trial", *[short(path) for path in self.paths], "epoch", self.metric, "state", "time"]
        return table(title, columns, rows, right=range(len(self.paths) + 3))
