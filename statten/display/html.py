"""One HTML page that opens from disk: titled sections of tables, static pictures and plotly figures, in light and dark.

Nothing is fetched: a page can be mailed, kept beside a run and opened without a network. Only a page with plotly figures holds
plotly.js, once, which makes it 5 MB; static pictures (see plots.py) take some 30 kB each.
"""

import re
from collections.abc import Collection, Sequence
from html import escape
from typing import Any

_PLOT = 'class="plotly-graph-div"'
_STYLE = """
:root { color-scheme: light dark;
  --text: #222; --muted: #666; --ground: #fff; --line: #999; --faint: #e4e4e4; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --muted: #9a9a9a; --ground: #17191d; --line: #777; --faint: #353940; --link: #7db3ee; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground);
  max-width: 1100px; margin: 2em auto; padding: 0 16px; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; }
h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--faint); }
a { color: var(--link); } code { font-size: 13px; } .muted { color: var(--muted); }
.wide { overflow-x: auto; } .long { overflow: auto; max-height: 32em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th { border-bottom: 1px solid var(--line); position: sticky; top: 0; background: var(--ground); }
tr > :first-child { padding-left: 0; } .facts td:last-child { white-space: normal; overflow-wrap: anywhere; }
.right { text-align: right; }
.gallery { display: flex; flex-wrap: wrap; gap: 14px; padding: 0; list-style: none; font-size: 12px; line-height: 1.35; }
.gallery li { width: 112px; overflow-wrap: anywhere; } .gallery .strip { width: 238px; }
.gallery img { display: block; width: 100%; height: 112px; object-fit: contain; image-rendering: pixelated; background: #000; }
.gallery .strip img { height: auto; }
svg.picture { display: block; height: auto; stroke-linejoin: round; }
svg.picture text { fill: currentColor; font-family: inherit; }
svg.picture [style*="stroke: #000000"] { stroke: currentColor !important; }
svg.picture use[style*="stroke: #000000"] { fill: currentColor !important; }
@media (max-width: 600px) { .js-plotly-plot .modebar { display: none; } }
.js-plotly-plot text:not(.heatmap-label *, .hoverlayer *) { fill: var(--text) !important; }
.js-plotly-plot :is(.gridlayer, .zerolinelayer) path { stroke: var(--faint) !important; }
.js-plotly-plot :is(.xlines-above, .ylines-above, .zl) { stroke: var(--line) !important; }
.js-plotly-plot .annotation rect.bg { fill: var(--ground) !important; }
.js-plotly-plot .modebar-btn path { fill: var(--muted) !important; }
"""


def page(title: str, sections: list[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: plain text, of the window and the page.
        sections: heading in plain text, empty for none, and HTML that is taken as it is: `escape` what comes from elsewhere.
            `#place(heading)` leads to a section.
    """
    body = "\n".join(
        f'<section id="{place(heading)}">\n<h2>{escape(heading)}</h2>\n{html}\n</section>' if heading else html
        for heading, html in sections
    )
    script = ""
    if _PLOT in body:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>\n"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n{script}</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def place(heading: str) -> str:
    """The id of a section."""
    return re.sub(r"\W+", "-", heading.lower())


def figure_html(figure: Any, least: int = 0) -> str:
    """A plotly figure as a div, without plotly.js, which `page` adds; as wide as the page, as high as its layout says.

    Its ground is the page's, and the page's style gives its text and lines their colours, which are others in the dark.

    Args:
        figure: the figure; its layout changes.
        least: pixels of its width at least; on a narrower screen it scrolls.
    """
    import plotly.io

    clear = "rgba(0,0,0,0)"
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, modebar={"bgcolor": clear})
    config = {"displaylogo": False, "responsive": True}
    html = plotly.io.to_html(figure, config=config, include_plotlyjs=False, full_html=False, default_width="100%")
    return f'<div class="wide"><div style="min-width: {least}px">{html}</div></div>'


class Markup(str):
    """HTML for a cell of a table, taken as it is."""


def link(text: str, address: str) -> Markup:
    """A link, for a cell of a table."""
    return Markup(f'<a href="{escape(address)}">{escape(text)}</a>')


def table_html(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Collection[int] = (), kind: str = "") -> str:
    """A table of plain text and Markup.

    Args:
        columns: titles; all of them empty for a table without a head.
        rows: cells.
        right: columns that are aligned to the right, by index.
        kind: class of the box around it: `long` scrolls inside itself, `facts` wraps its last column.
    """

    def line(tag: str, cells: Sequence[Any]) -> str:
        marks = ['class="right"' if i in right else "" for i in range(len(cells))]
        texts = [cell if isinstance(cell, Markup) else escape(str(cell)) for cell in cells]
        parts = [f"<{f'{tag} {mark}'.strip()}>{text}</{tag}>" for text, mark in zip(texts, marks, strict=True)]
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    head = f"<thead>{line('th', columns)}</thead>\n" if any(columns) else ""
    return f'<div class="{f"wide {kind}".strip()}"><table>\n{head}<tbody>\n{body}\n</tbody>\n</table></div>'
