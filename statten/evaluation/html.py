"""A report as one HTML page that opens from disk: the tables and pictures of its folder, and the worst mistakes."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from statten.display.html import page, table_html
from statten.display.plots import svg_html
from statten.display.units import si
from statten.evaluation.gallery import Thumbnail, gallery_html
from statten.evaluation.report import CLASS_COLUMNS, LAYER_COLUMNS, class_rows, energy_unit, layer_rows, shows_top5, warnings
from statten.evaluation.show import conventions, energy_table

CONFUSIONS = 12
"""Pairs of classes in the table of what is taken for what, at most."""


def html(report: dict[str, Any], pictures: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    """The page of an evaluation's report.

    Args:
        report: the document.
        pictures: figures by name, those of `show.pictures`.
        thumbnails: of its `mistakes`.
    """
    drawn = {name: svg_html(made, i) for i, (name, made) in enumerate(pictures.items())}
    sections = [("", summary_html(report)), ("The worst mistakes", gallery_html(report, thumbnails))]
    if confused := confusions(report):
        columns = ["label", "predicted class", "samples", "% of the label's"]
        sections.append(("What is taken for what", drawn.get("confusion", "") + table_html(columns, confused, right=(2, 3))))
    sections.append(("Classes", table_html(CLASS_COLUMNS, class_rows(report), range(1, len(CLASS_COLUMNS)), "long")))
    sections.append(("Reliability", drawn["calibration"]))
    if "layers" in report:
        layers = table_html(LAYER_COLUMNS, layer_rows(report), right=(1, 3, 4))
        sections.append(("Firing rate by layer and timestep", drawn["rates"] + layers))
        ledger = report["energy"]
        about = f"<p>{escape(conventions(ledger))} Recompute it with <code>statten energy check energy.json</code>.</p>"
        columns, rows = energy_table(ledger)
        sections.append(("Energy of a sample", drawn["energy"] + table_html(columns, rows, right=(2, 3, 4, 5, 7)) + about))
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
        ["expected calibration error", f"{report['calibration']['ece']:.4f}"],
        ["samples", f"{report['samples']:,}{left_out}"],
        ["timesteps, block size", f"T={report['timesteps']}, b={report['block_size']}"],
    ]
    if "energy" in report:
        total, dense, unit = report["energy"]["total"], report["energy"]["non_spiking"]["total"], energy_unit(report["energy"])
        rows.append(["energy of a sample", f"{unit.text(total['pj'])} ({si(total['macs'])} MACs, {si(total['sops'])} SOPs)"])
        rows.append(["non-spiking, same size", f"{unit.text(dense['pj'])} ({si(dense['macs'])} MACs)"])
    rows += [
        ["throughput", f"{report['samples_per_second']:,.0f} samples/s, workers: {report['workers']}"],
        ["peak memory", f"{report['peak_memory_bytes'] / 2**20:,.0f} MiB"],
        ["weights", report["weights"]],
        ["checkpoint", report["checkpoint"]],
        ["evaluated", f"{report['evaluated']}, {report['precision']}"],
    ]
    found = "".join(f"<li>{escape(line)}</li>" for line in warnings(report))
    return table_html(["", ""], rows, kind="facts") + (f"<ul>{found}</ul>" if found else "")


def confusions(report: dict[str, Any]) -> list[list[Any]]:
    """Pairs of label and another class that is predicted, the most frequent first; none where the matrix is not kept."""
    counts, names = report.get("confusion", []), report["class_names"]
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    most = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:CONFUSIONS]
    return [[names[i], names[j], n, f"{100 * n / sum(counts[i]):.1f}"] for n, i, j in most]


def classes_html(report: dict[str, Any]) -> str:
    """Scores of every class, as a table."""
    return table_html(CLASS_COLUMNS, class_rows(report), right=range(1, len(CLASS_COLUMNS)))
