"""A sweep while it runs: a live table on a terminal, a line per finished trial elsewhere."""

import time
from pathlib import Path
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from rich.live import Live
from rich.table import Table

from statten.display import console, duration, numeral, state_word, table
from statten.errors import UserError
from statten.search.sweep import Sweep, describe, short
from statten.storage.run import Run, best_row
from statten.training.faults import classify

COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "training": "default"}


class LiveTable(TrialProgressCallback):
    """Ray Tune's callback that draws the sweep, in the place of Ray's own; a context manager around it."""

    ROWS = 24

    def __init__(self, sweep: Sweep, trials: int):
        config = sweep.config
        self.sweep, self.trials, self.metrics = sweep, trials, list(config.search.directions)
        self.metric = self.metrics[0]
        self.sign = 1 if config.search.directions[self.metric] == "max" else -1
        self.epochs, self.paths = config.train.total_epochs, sweep.space.paths
        self.rows: dict[int | str, dict[str, Any]] = {}  # of trials by number, of repeats by name
        self.began = time.monotonic()
        for trial, point in sweep.rows():
            if trial.state.is_finished() and "source" not in trial.user_attrs:
                try:
                    self._finish(trial.number, sweep.trial(trial.number), point, show=False)
                except UserError as error:  # one folder that cannot be read stops no sweep
                    row = {"point": point, "epoch": 0, "values": [None] * len(self.metrics), "seconds": 0.0}
                    self.rows[trial.number] = {**row, "state": "damaged", "reason": str(error)}
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
        run = Run(Path(trial.config["run"]))
        point = run.origin.get("point", {})
        rows = run.metrics()
        row = self.rows.setdefault(trial.config["number"], {"point": point, "began": time.monotonic()})
        row.update(state="training", epoch=len(rows), values=self._values(rows))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **_: Any) -> None:
        if "epoch" not in result:  # a trial that ended without training an epoch
            return
        row = self.rows[trial.config["number"]]
        row.update(epoch=int(result["epoch"]), values=self._values(Run(Path(trial.config["run"])).metrics()))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        row = self.rows[trial.config["number"]]
        self._finish(trial.config["number"], Run(Path(trial.config["run"])), row["point"], time.monotonic() - row["began"])

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        """A process was lost, and Ray starts the trial again: one that would fail again, for want of memory, ends at once."""
        error = trial.get_pickled_error()
        fault = classify(error) if error is not None else None
        if fault is not None and not fault.retry:
            Run(Path(trial.config["run"])).fail(fault.reason, cause=fault.kind)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)

    # What is shown.

    def _values(self, rows: list[dict[str, float]]) -> list[float | None]:
        """The objectives at the epoch that a run is judged by."""
        best = best_row(rows) if rows else {}
        return [best.get(metric) for metric in self.metrics]

    def _finish(
        self, number: int | str, run: Run, point: dict[str, Any], seconds: float | None = None, show: bool = True
    ) -> None:
        rows, reason = run.metrics(), run.reason
        seconds = seconds if seconds is not None else sum(r.get("seconds", 0.0) for r in rows)
        values = self._values(rows)
        row = {"point": point, "epoch": len(rows), "values": values, "seconds": seconds}
        state = run.state if run.ended else "failed"
        self.rows[number] = {**row, "state": state, "reason": reason}
        if show and not console.is_terminal:
            shown = "  ".join(f"{m} {numeral(v):>6}" for m, v in zip(self.metrics, values, strict=True))
            if isinstance(number, int):
                left = f", {duration(self._left())} left" if self._done() < self.trials and self._left() else ""
                name, of = f"trial {number:>{len(str(self.trials))}}", f"({self._done()} of {self.trials} done{left})"
            else:
                name, of = f"again {number}", ""
            why = f"  {reason}" if reason and state != "finished" else ""
            console.print(
                f"{name}  {describe(point):<28}  {shown}  {state_word(state)} "
                f"at epoch {len(rows)}/{self.epochs} in {duration(seconds)}  {of}{why}"
            )

    def _done(self) -> int:
        return sum(row["state"] != "training" for number, row in self.rows.items() if isinstance(number, int))

    def _left(self) -> float:
        fresh = self._done() - self.already
        return (time.monotonic() - self.began) / fresh * (self.trials - self._done()) if fresh else 0.0

    def _best(self) -> int | str | None:
        done = {
            n: r["values"][0] for n, r in self.rows.items()
            if r["state"] == "finished" and r["values"][0] is not None and isinstance(n, int)
        }  # fmt: skip
        return max(done, key=lambda n: self.sign * done[n]) if done else None

    def _table(self) -> Table:
        best = self._best()
        numbers = list(self.rows)
        if len(numbers) > self.ROWS:  # those that train, the best, and the newest of the others
            keep = {n for n in numbers if self.rows[n]["state"] == "training"} | ({best} if best is not None else set())
            newest = [n for n in numbers if n not in keep][-(self.ROWS - len(keep)) :]
            numbers = [n for n in numbers if n in keep or n in newest]
        rows = []
        for n in numbers:
            row = self.rows[n]
            seconds = row.get("seconds", time.monotonic() - row.get("began", 0.0))
            point = [row["point"].get(path, "") for path in self.paths]
            point = [f"{v:.2g}" if isinstance(v, float) else v for v in point]
            state = f"[{COLOURS[row['state']]}]{state_word(row['state'])}[/]"
            mark = "[bold]*[/]" if n == best else ""
            epoch = f"{row['epoch']}/{self.epochs}"
            rows.append([f"{n}{mark}", *point, epoch, *map(numeral, row["values"]), state, duration(seconds)])
        left = f", {duration(self._left())} left" if self._left() and self._done() < self.trials else ""
        title = f"{self.sweep.name}: {self._done()} of {self.trials} trials{left}"
        columns = ["trial", *[short(path) for path in self.paths], "epoch", *self.metrics, "state", "time"]
        return table(title, columns, rows, right=range(len(self.paths) + 2 + len(self.metrics)))
