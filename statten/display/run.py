"""A run while it trains, read from its folder, and its summary."""

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress, TaskID

from statten.display.terminal import console, duration, progress_bar
from statten.errors import UserError, in_shell
from statten.records.reading import read
from statten.records.runs import Progress as Record
from statten.storage.run import Run

REFRESH = 5.0
"""Seconds between looks into a store, where the workers may be on other machines."""


@contextlib.contextmanager
def following(run: Run) -> Iterator[None]:
    """Show a run's epochs, its progress inside the epoch and its warnings while the body runs.

    All is read from the run folder, so it does not matter where the workers are.
    """
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(run, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(run: Run, done: threading.Event) -> None:
    epochs, shown, log_at = run.config.train.total_epochs, len(run.metrics()), _size(run.path / "train.log")
    with progress_bar("epochs") as bar:
        task = bar.add_task("starting workers", total=epochs, completed=shown, rate="")
        refreshed = time.monotonic()
        while True:
            last = done.wait(0.25)
            if time.monotonic() - refreshed > REFRESH:
                with contextlib.suppress(UserError):  # a store that is away may come back
                    run.refresh(wait=False)
                refreshed = time.monotonic()
            rows = run.metrics()
            for row in rows[shown:]:
                console.print(epoch_line(row, epochs, console.width if console.is_terminal else None))
            if len(rows) > shown:
                shown = len(rows)
            log_at = _print_log(run.path / "train.log", log_at)
            _advance(bar, task, run, len(rows), epochs)
            if last:
                return


def _advance(bar: Progress, task: TaskID, run: Run, finished: int, epochs: int) -> None:
    with contextlib.suppress(Exception):  # a file that is being replaced must not end the display
        progress = read(run.path / "progress.json", Record)
        if progress:
            part = progress["step"] / max(progress["steps"], 1) if progress["epoch"] >= finished else 0.0
            text = f"epoch {progress['epoch'] + 1} step {progress['step']}/{progress['steps']}"
            bar.update(task, description=text, completed=min(finished + part, epochs))


def _print_log(path: Path, start: int) -> int:
    if _size(path) > start:
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(start)
            for line in file.read().splitlines():
                console.print(line, style="dim", markup=False)
            return file.tell()
    return start


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def epoch_line(row: dict[str, float], epochs: int, width: int | None = None) -> str:
    """One finished epoch in a line; where it would be longer than `width`, in a shorter form without the learning rate."""
    row = defaultdict(lambda: math.nan, row)  # an older version had fewer metrics
    left = (epochs - row["epoch"]) * row["seconds"] if row["seconds"] > 0 else 0.0
    begin = f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}  loss {row['train/loss']:.3f}  "
    rate, end = f"{row['samples_per_second']:,.0f}", f"  {duration(left)} left" if left else ""
    line = (
        f"{begin}val loss {row['val/loss']:.3f}  val top-1 {row['val/top1']:6.2f} %  lr {row['lr']:.1e}  {rate} samples/s{end}"
    )
    if width is None or len(line) <= width:
        return line
    return f"{begin}val {row['val/loss']:.3f}  top-1 {row['val/top1']:6.2f} %  {rate}/s{end}"


def run_summary(run: Run, began: float) -> None:
    """The end of a training run: what was found, where it lies, what to type next."""
    rows, best = run.metrics(), run.judged()
    console.print(
        f"\n[bold]{run.name}[/]: best validation top-1 {best['val/top1']:.2f} % at epoch {int(best['epoch'])} of {len(rows)}, "
        f"in {duration(time.monotonic() - began)}"
    )
    console.print(f"  folder    {run.where}")
    console.print(f"  test it   statten evaluate {run.typed}")
    console.print(f"  watch it  tensorboard --logdir {in_shell(run.path.parent)}")
