"""A page that opens from disk: plotly.js inside once, text escaped, nothing fetched."""

from html.parser import HTMLParser

import plotly.graph_objects as go

from statten.display.html import figure_html, page, table_html


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
