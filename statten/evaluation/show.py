"""A report as files: JSON, Markdown, TensorBoard, pictures (the HTML page is html.py's)."""

import shutil
from pathlib import Path
from typing import Any

from statten.display.plots import figure, heat_map, md_table, save_figure
from statten.evaluation.report import (
    CLASS_COLUMNS,
    LAYER_COLUMNS,
    class_rows,
    energy_unit,
    headline,
    layer_rows,
    shows_top5,
    warnings,
)
from statten.files import write_json, write_text
from statten.metrics.labels import label, meaning
from statten.storage.events import PREFIX, points


def write(report: dict[str, Any], figures: dict[str, Any], folder: Path) -> None:
    """Write or replace what a report's folder holds, but for the page; `figures` are its `pictures`."""
    write_json(folder / "report.json", report)
    if "energy" in report:
        write_json(folder / "energy.json", report["energy"])
    write_text(folder / "report.md", markdown(report))
    for name, made in figures.items():
        save_figure(made, folder / f"{name}.png")
    _tensorboard(report, figures, folder)


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: headline, layers, energy ledger, classes."""
    parts = [f"# {report['target']} on {report['data']} ({report['part']} part)", *headline(report), *warnings(report)]
    parts.append(f"Checkpoint `{report['checkpoint']}`, evaluated {report['evaluated']}.")
    if report["imported"]:
        cells = [[r["argument"], r["value"], r["field"] or f"dropped: {r['reason']}"] for r in report["imported"]]
        parts += ["## Imported arguments", md_table(["argument", "value", "becomes"], cells)]
    if "layers" in report:
        parts += ["## Firing rates", md_table(LAYER_COLUMNS, layer_rows(report))]
        parts += [
            "## Energy of a sample",
            md_table(*energy_table(report["energy"])),
            conventions(report["energy"]),
        ]
    parts += ["## Classes", md_table(CLASS_COLUMNS, class_rows(report))]
    return "\n\n".join(parts) + "\n"


def energy_table(ledger: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells of the ledger's table, its total and the non-spiking one last."""
    unit = energy_unit(ledger)
    columns = ["layer", "kind", "input rate", "FLOPs of a timestep", "timesteps", "operations", "unit", unit.name, "formula"]
    rows: list[list[Any]] = [
        [r["layer"], r["kind"], f"{r['rate']:.4f}", f"{r['flops']:,}", r["timesteps"], f"{r['operations']:,.0f}", r["unit"],
         unit.number(r["pj"]), r["formula"]]
        for r in ledger["rows"]
    ]  # fmt: skip
    total, dense = ledger["total"], ledger["non_spiking"]["total"]
    operations = f"{total['macs']:,.0f} + {total['sops']:,.0f}"
    rows.append(["total", "", "", "", "", operations, "MACs + SOPs", unit.number(total["pj"]), ""])
    rows.append(["non-spiking, same size", "", "", "", "", f"{dense['macs']:,.0f}", "MACs", unit.number(dense["pj"]), ""])
    return columns, rows


def conventions(ledger: dict[str, Any]) -> str:
    """What the ledger counts how, in a line."""
    return f"Conventions: {', '.join(f'{name}: {value}' for name, value in ledger['conventions'].items())}."


def pictures(report: dict[str, Any]) -> dict[str, Any]:
    """Figures by name: rates by layer and timestep, energy by layer, confusion, calibration."""
    made = {"calibration": _calibration(report)}
    if "confusion" in report:
        made["confusion"] = _confusion(report)
    if "layers" in report:
        made |= {"rates": _rates(report), "energy": _energy(report["energy"])}
    return made


def _rates(report: dict[str, Any]) -> Any:
    cells = [row["by_timestep"] for row in report["layers"]]
    names = [row["layer"] for row in report["layers"]]
    steps = [str(t + 1) for t in range(len(cells[0]))]
    return heat_map(cells, names, steps, "Firing rate by timestep (spikes per neuron)", "{:.3f}")


def _energy(ledger: dict[str, Any]) -> Any:
    unit, rows = energy_unit(ledger), ledger["rows"]
    made = figure(7, 1.5 + 0.22 * len(rows))
    axes = made.add_subplot()
    places = range(len(rows))
    for kind, colour in (("MACs", "#d0525f"), ("SOPs", "#3a7fc8")):
        mine = [i for i in places if rows[i]["unit"] == kind]
        axes.barh(mine, [rows[i]["pj"] / unit.pj for i in mine], color=colour, label=kind)
    axes.set_yticks(places, [row["layer"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{unit.name} a sample")
    axes.legend(fontsize=8, frameon=False)
    dense = ledger["non_spiking"]["total"]["pj"]
    axes.set_title(f"Energy {unit.text(ledger['total']['pj'])}; non-spiking, same size {unit.text(dense)}", fontsize=10)
    return made


def _confusion(report: dict[str, Any]) -> Any:
    names = [name.replace("$", r"\$") for name in report["class_names"]]  # to matplotlib it would begin a formula
    if len(names) <= 20:
        made = heat_map(report["confusion"], names, names, f"Confusion, top-1 {report['top1']:.2f} %", "{:.0f}")
    else:
        made = figure(7, 6)
        image = made.add_subplot().imshow(report["confusion"], cmap="viridis")
        made.colorbar(image)
    axes = made.axes[0]
    if any(len(name) > 4 for name in names):
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    return made


def _calibration(report: dict[str, Any]) -> Any:
    bins = report["calibration"]["bins"]
    made = figure(5, 4)
    axes = made.add_subplot()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    sure, right = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axes.plot(sure, right, color="#3a7fc8")
    largest = max(b["samples"] for b in bins)
    sizes = [10 + 90 * b["samples"] / largest for b in bins]
    axes.scatter(sure, right, sizes, color="#3a7fc8", label="found (larger: more samples)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(f"Expected calibration error {report['calibration']['ece']:.4f}", fontsize=10)
    return made


def _tensorboard(report: dict[str, Any], figures: dict[str, Any], folder: Path) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob(f"{PREFIX}*"):  # of the same evaluation, which would be shown beside these
        earlier.unlink()
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # where older versions had them
    with SummaryWriter(str(folder)) as events:
        for (group, name, text), value in _scalars(report).items():
            events.file_writer.add_summary(Summary(value=points(f"{group}/{name}", value, text)), 0)
        for row in report.get("layers", []):
            name = f"firing rate of {row['layer']}"
            for t, rate in enumerate(row["by_timestep"]):
                text = "" if t else "Spikes per neuron at each timestep, the first is 1."
                events.file_writer.add_summary(Summary(value=points(f"neurons by timestep/{name}", rate, text)), t + 1)
        for name, made in figures.items():
            events.add_figure(f"pictures/{name}", made, close=False)
        events.add_text("report", markdown(report))


def _scalars(report: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Curves of one point, in the groups of a run's: group, name and meaning of each."""
    of = "over the test part"
    scalars = {
        ("accuracy", "test top-1 (%)", f"Share of samples whose class scores highest, in percent, {of}."): report["top1"],
        ("accuracy", "test F1 (%)", f"Mean over classes of each class's F1, in percent, {of}."): report["macro"]["f1"],
        ("loss", "test loss", f"Cross-entropy of the mean logits in nats, {of}."): report["loss"],
        ("loss", "calibration error", f"Mean gap of confidence and accuracy over equal bins, {of}."): report["calibration"][
            "ece"
        ],
    }
    if shows_top5(report):
        scalars["accuracy", "test top-5 (%)", f"Share of samples whose class is among the five highest, {of}."] = report["top5"]
    if "energy" in report:
        scalars["model", f"test {label('energy_uj')}", meaning("energy_uj")] = report["energy"]["total"]["pj"] / 1e6
    return scalars
