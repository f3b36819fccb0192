"""What a person sees on the terminal: progress while waiting, tables. Programs read `--json` instead."""

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

COMMANDS = re.compile(r"\b(statten|tensorboard) ")
"""A line with a command for the shell is left whole, to be copied."""
STATES = {
    "complete": "finished", "pruned": "stopped early", "stopped": "stopped early", "fail": "failed", "training": "running",
}  # fmt: skip
"""What a person reads for a state of Optuna's, of a run's or of Ray's."""


def state_word(state: str) -> str:
    """A run's, sweep's or trial's state, in the one word that people read everywhere."""
    return STATES.get(state, state)


class _Console(Console):
    """Lines that are longer than the terminal are wrapped at words, below their own beginning; nothing is changed in a pipe."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's."""
        if self.is_terminal and len(objects) == 1 and isinstance(objects[0], str):
            objects = (fitted(objects[0], self.width),)
        super().print(*objects, **options)


def fitted(text: str, width: int) -> str:
    """Text in lines of at most so many columns; further lines begin where the text of a line `label   text` does."""
    lines = []
    for line in text.split("\n"):
        if len(re.sub(r"\[/?[a-z ]*\]", "", line)) > width and not COMMANDS.search(line):
            label = re.match(r"\s*\S+( \S+)?\s{2,}", line)
            below = " " * (len(label[0]) if label and len(label[0]) < width // 3 else 2)
            line = textwrap.fill(line, width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


console = _Console(highlight=False, soft_wrap=True)


def use_stderr() -> None:
    """Keep stdout for one JSON document."""
    console.stderr = True


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def numeral(value: float | None) -> str:
    """Four digits of a value near 1, two decimals of a larger one, thousands set apart above 10,000; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1e4 else f"{value:,.0f}"


def wrapped(text: str, indent: str = "") -> str:
    """Text in lines that fit the terminal, each indented."""
    return textwrap.fill(text, console.width - 1, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def progress_bar(unit: str) -> Progress:
    """A bar with rate and remaining time; on a terminal only, and gone when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[rate]}}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, how many are done, of how many) that moves a bar for each `what`."""
    with progress_bar(unit) as bar:
        tasks: dict[str, TaskID] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, rate="")
            bar.update(tasks[what], completed=done)

        yield move


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Table:
    """A plain table; columns whose index is in `right` are aligned to the right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*[str(cell) for cell in row])
    return made
