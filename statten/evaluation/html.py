"""A report as one HTML page that opens from disk: the tables of report.md, and figures that show their values."""

from html import escape
from typing import Any

from statten.display.html import figure_html, page, table_html
from statten.evaluation.report import CLASS_COLUMNS, LAYER_COLUMNS, class_rows, layer_rows, shows_top5, warnings
from statten.evaluation.show import ENERGY_COLUMNS, conventions, energy_rows

_MARGIN = {"l": 10, "r": 10, "t": 30, "b": 10}
_RED, _BLUE = "#c0392b", "#2471a3"


def html(report: dict[str, Any]) -> str:
    """The page of an evaluation's report."""
    sections = [("", summary_html(report))]
    if "layers" in report:
        layers = table_html(LAYER_COLUMNS, layer_rows(report), right=(1, 3, 4))
        sections.append(("Firing rate by layer and timestep", figure_html(_rates(report["layers"])) + layers))
        ledger = report["energy"]
        about = f"<p>{escape(conventions(ledger))} Recompute it with <code>statten energy check energy.json</code>.</p>"
        table = table_html(ENERGY_COLUMNS, energy_rows(ledger), right=(2, 3, 4, 5, 7))
        sections.append(("Energy of a sample", figure_html(_energy(ledger)) + table + about))
    if "confusion" in report:
        sections.append(("Confusion", figure_html(_confusion(report["confusion"], report["class_names"]))))
    ece = report["calibration"]["ece"]
    sections.append((f"Reliability, expected calibration error {ece:.4f}", figure_html(_reliability(report["calibration"]))))
    sections.append(("Classes", figure_html(_classes(report["classes"])) + classes_html(report)))
    if report["imported"]:
        rows = [[r["argument"], r["value"], r["field"] or f"dropped: {r['reason']}"] for r in report["imported"]]
        sections.append(("Imported arguments", table_html(["argument", "value", "becomes"], rows)))
    return page(f"{report['target']} on {report['data']} ({report['part']} part)", sections)


def summary_html(report: dict[str, Any]) -> str:
    """The numbers that are asked for first, as a table."""
    left_out = f", {report['left_out']} more could not be read" if report["left_out"] else ""
    rows = [
        ["top-1", f"{report['top1']:.2f} %"],
        *([["top-5", f"{report['top5']:.2f} %"]] if shows_top5(report) else []),
        ["loss", f"{report['loss']:.4f}"],
        ["samples", f"{report['samples']:,}{left_out}"],
        ["timesteps, block size", f"T={report['timesteps']}, b={report['block_size']}"],
    ]
    if "energy" in report:
        total, dense = report["energy"]["total"], report["energy"]["non_spiking"]["total"]
        rows.append(
            ["energy of a sample", f"{total['pj'] / 1e6:.4f} uJ ({total['macs']:,.0f} MACs, {total['sops']:,.0f} SOPs)"]
        )
        rows.append(["non-spiking, same size", f"{dense['pj'] / 1e6:.4f} uJ ({dense['macs']:,.0f} MACs)"])
    rows += [
        ["throughput", f"{report['samples_per_second']:,.0f} samples/s, workers: {report['workers']}"],
        ["peak memory", f"{report['peak_memory_bytes'] / 2**20:,.0f} MiB"],
        ["weights", report["weights"]],
        ["checkpoint", report["checkpoint"]],
        ["evaluated", f"{report['evaluated']}, {report['precision']}"],
    ]
    found = "".join(f"<li>{escape(line)}</li>" for line in warnings(report))
    return table_html(["", ""], rows) + (f"<ul>{found}</ul>" if found else "")


def classes_html(report: dict[str, Any]) -> str:
    """Scores of every class, as a table."""
    return table_html(CLASS_COLUMNS, class_rows(report), right=range(1, len(CLASS_COLUMNS)))


def _rates(layers: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    cells = [row["by_timestep"] for row in layers]
    steps = [f"t={t + 1}" for t in range(len(cells[0]))]
    names = [row["layer"] for row in layers]
    shown = "%{y}, %{x}: %{z:.4f} spikes per neuron<extra></extra>"
    heat = go.Heatmap(z=cells, x=steps, y=names, colorscale="Viridis", texttemplate="%{z:.3f}", hovertemplate=shown)
    made = go.Figure(heat, {"height": 80 + 22 * len(names), "margin": _MARGIN})
    return made.update_yaxes(autorange="reversed")


def _energy(ledger: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    made = go.Figure(layout={"height": 120 + 20 * len(ledger["rows"]), "margin": _MARGIN})
    for unit, colour in (("MACs", _RED), ("SOPs", _BLUE)):
        rows = [row for row in ledger["rows"] if row["unit"] == unit]
        names, values = [row["layer"] for row in rows], [row["pj"] / 1e3 for row in rows]
        shown = "%{y}: %{x:.3f} nJ<extra></extra>"
        made.add_bar(x=values, y=names, orientation="h", name=unit, marker_color=colour, hovertemplate=shown)
    order = [row["layer"] for row in ledger["rows"]]
    made.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=order)
    return made.update_xaxes(title="nJ per sample")


def _confusion(counts: list[list[int]], names: list[str]) -> Any:
    import plotly.graph_objects as go

    n = len(counts)
    shown = "label %{y}, predicted %{x}: %{z} samples<extra></extra>"
    text = "%{z}" if n <= 20 else None
    heat = go.Heatmap(z=counts, x=names, y=names, colorscale="Viridis", texttemplate=text, hovertemplate=shown)
    made = go.Figure(heat, {"height": max(420, 110 + 9 * n), "width": max(560, 200 + 9 * n), "margin": _MARGIN})
    made.update_xaxes(title="predicted class", type="category")
    return made.update_yaxes(title="label", type="category", autorange="reversed")


def _reliability(calibration: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    bins = calibration["bins"]
    sure, right = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    made = go.Figure(layout={"height": 420, "width": 560, "margin": _MARGIN})
    made.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "grey"}, name="calibrated")
    sizes = [6 + 24 * (b["samples"] / max(b["samples"] for b in bins)) ** 0.5 for b in bins]
    shown = "confidence %{x:.3f}, accuracy %{y:.3f}, %{customdata} samples<extra></extra>"
    made.add_scatter(
        x=sure, y=right, mode="lines+markers", marker={"size": sizes, "color": _BLUE}, customdata=[b["samples"] for b in bins],
        hovertemplate=shown, name="found (larger: more samples)",
    )  # fmt: skip
    made.update_xaxes(title="confidence", range=[0, 1.03])
    return made.update_yaxes(title="accuracy", range=[0, 1.03])


def _classes(classes: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    shown = "class %{x}: %{y:.2f} % of %{customdata} samples<extra></extra>"
    names, values = [row["name"] for row in classes], [row["top1"] for row in classes]
    bars = go.Bar(x=names, y=values, customdata=[row["samples"] for row in classes], hovertemplate=shown, marker_color=_BLUE)
    made = go.Figure(bars, {"height": 320, "margin": _MARGIN})
    made.update_xaxes(title="class", type="category", dtick=1 if len(names) <= 30 else None)
    return made.update_yaxes(title="top-1 (%)", range=[0, 100])
