"""Pictures without a window system, and tables in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def md_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


# Pictures.


def figure(width: float, height: float) -> Any:
    """An empty figure; matplotlib's Agg canvas alone, so that no window system is asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save_figure(made: Any, path: Path) -> None:
    """Write or replace a PNG; a link at its place goes, and what it leads to stays."""
    path.unlink(missing_ok=True)
    made.savefig(path, dpi=120)


def heat_map(cells: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], title: str, form: str) -> Any:
    """A table as a heat map with its values written in; a cell that is not a number stays white."""
    made = figure(2.5 + 0.8 * len(columns), 1.4 + 0.3 * max(len(rows), 3))
    axes = made.add_subplot()
    image = axes.imshow(cells, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    low, high = image.get_clim()
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            if value == value:  # not a NaN
                colour = "black" if value > (low + high) / 2 else "white"
                axes.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(title, fontsize=10)
    return made
