"""A page that opens from disk: plotly.js inside once, text escaped, nothing fetched."""

import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from statten.display.html import Markup, figure_html, link, page, place, table_html
from statten.display.plots import INK, figure, heat_map, svg_html
from statten.display.units import EnergyUnit, si


class Reader(HTMLParser):
    """Collects tags, the addresses they name, and the text of headings and cells."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("h1", "h2", "td", "th", "title"):
            self.words.append(data.strip())


def test_plotly_is_inside_once_and_nothing_is_fetched():
    figure = figure_html(go.Figure(go.Bar(x=[1, 2], y=["a", "</script><b>"])))
    text = page("Two figures", [("One", figure), ("Two", figure_html(go.Figure()))])
    found = Reader(text)
    assert text.count("plotly.js v") == 1 and text.count("Plotly.newPlot(") >= 2
    assert found.addresses == [] and "b" not in found.tags
    assert [word for word in found.words if word] == ["Two figures", "Two figures", "One", "Two"]


def test_a_page_without_figures_is_small_and_its_text_is_escaped():
    text = page("<T>", [("a & b", table_html(["<x>", "n"], [["<i>1</i>", 2.5], ["b", 3]], right=[1])), ("", "<p>end</p>")])
    found = Reader(text)
    assert len(text) < 5000 and "i" not in found.tags
    assert [word for word in found.words if word] == ["<T>", "<T>", "a & b", "<x>", "n", "<i>1</i>", "2.5", "b", "3"]
    assert text.count('<td class="right">') == 2 and found.tags.count("h2") == 1


def test_links_are_kept_and_their_texts_escaped():
    text = table_html(["", ""], [[link("<a>", 'x" y.html'), Markup("<b>1</b>")], ["<b>", 2]], kind="facts")
    assert '<a href="x&quot; y.html">&lt;a&gt;</a>' in text and "<td><b>1</b></td>" in text and "&lt;b&gt;" in text
    assert "<thead>" not in text and '<div class="wide facts">' in text
    assert f'<section id="{place("Learning curves")}">' in page("t", [("Learning curves", "")])


def test_a_picture_takes_the_colours_of_the_page():
    cells = heat_map([[0.0, 1.0], [0.5, 0.2]], ["a", "<b>"], ["1", "2"], "title", "{:.2f}")
    text = svg_html(cells, 1)
    found = Reader(text)
    assert {"svg", "text", "image"} <= set(found.tags) and "font-family" not in text and "#ffffff" in text
    assert f"fill: {INK}" in text, "a label on a light cell stays dark in the dark"
    assert "&lt;b&gt;" in text and "stroke: #000000" in text and "metadata" not in found.tags
    style = page("t", [("", text)])
    assert 'svg.picture [style*="stroke: #000000"] { stroke: currentColor' in style and "prefers-color-scheme: dark" in style

    def names(number):
        made = figure(3, 2)
        made.add_subplot().plot([1, 2], [3, 4])
        return set(re.findall(r'id="([^"]+)"', svg_html(made, number)))

    assert names(1) == names(1) and not names(1) & names(2), "pictures of a page do not share what they refer to"


def test_a_plot_has_the_ground_of_the_page():
    made = go.Figure(layout={"paper_bgcolor": "white", "plot_bgcolor": "white"})
    assert figure_html(made).count('"rgba(0,0,0,0)"') == 3


@pytest.mark.parametrize(
    ("pj", "text"),
    [(0.0, "0 pJ"), (999.0, "999 pJ"), (1e3, "1 nJ"), (68840.1, "68.84 nJ"), (4.4e6, "4.4 µJ"), (2.5e13, "25 J")],
)
def test_an_energy_has_the_prefix_that_suits_the_largest(pj, text):
    assert EnergyUnit.of([pj, pj / 7]).text(pj) == text
    assert EnergyUnit.of([]).name == "pJ" and EnergyUnit.of([1e3]).text(2e7) == "20,000 nJ"
    assert [si(n) for n in (12, 18430, 1.217e6, 3e9)] == ["12", "18.43 k", "1.217 M", "3 G"]
