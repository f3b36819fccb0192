"""One HTML page that opens from disk: tables and plotly figures in titled sections, with plotly.js inside, once.

Nothing is fetched: a page can be mailed, kept beside a run and opened without a network. plotly.js makes it 5 MB.
"""

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

_PLOT = 'class="plotly-graph-div"'
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; margin: 2em auto; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid #eee; white-space: nowrap; }
th { border-bottom: 1px solid #999; } .right { text-align: right; } code { font-size: 13px; }
"""


def page(title: str, sections: list[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: plain text, of the window and the page.
        sections: heading in plain text, empty for none, and HTML that is taken as it is: `escape` what comes from elsewhere.
    """
    body = "\n".join((f"<h2>{escape(heading)}</h2>\n" if heading else "") + html for heading, html in sections)
    script = ""
    if _PLOT in body:
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>\n"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n{script}</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def figure_html(figure: Any) -> str:
    """A plotly figure as a div, without plotly.js, which `page` adds; as wide as the page, as high as its layout says."""
    import plotly.io

    config = {"displaylogo": False, "responsive": True}
    return plotly.io.to_html(figure, config=config, include_plotlyjs=False, full_html=False, default_width="100%")


def table_html(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Collection[int] = ()) -> str:
    """A table of plain text; columns whose index is in `right` are aligned to the right."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        marks = ['class="right"' if i in right else "" for i in range(len(cells))]
        parts = [f"<{f'{tag} {mark}'.strip()}>{escape(str(c))}</{tag}>" for c, mark in zip(cells, marks, strict=True)]
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>{line("th", columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
