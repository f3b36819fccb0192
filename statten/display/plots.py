"""Pictures without a window system, and tables in Markdown."""

import io
import re
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


def svg_html(made: Any, number: int) -> str:
    """The same picture as SVG inside a page: its ground is the page's, and so are the colours of text and axes.

    Args:
        made: what `figure` made; what it draws in black gets the colour of the page's text, so that a label which lies on a
            colour of its own must be of another, such as `INK`.
        number: of the picture on its page, which keeps the names inside it apart from those of others.
    """
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"picture {number}"}):
        made.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    width, height = (float(value) for value in re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
    inside = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # A style for the whole page, which has its own; fonts of no machine; names that nothing refers to.
    for needless in (
        r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*",
        r"font-family: [^;\"]*; ?",
        r' id="(?![mp][0-9a-f]{10}")[^"]*"',
    ):
        inside = re.sub(needless, "", inside, flags=re.S)
    pixels = round(width / 72 * 96)
    size = f"width: {pixels}px; min-width: {min(pixels, 560)}px; max-width: 100%"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<div class="wide"><svg class="picture" {names} viewBox="0 0 {width:g} {height:g}" style="{size}">{inside}</div>'


INK = "#111111"
"""Black on a colour of its own."""


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
                colour = INK if value > (low + high) / 2 else "white"
                axes.text(j, i, form.format(value), ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(title, fontsize=10)
    return made
