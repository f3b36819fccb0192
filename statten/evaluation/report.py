"""What was measured, as one document, and as a person reads it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from statten.config import ModelConfig
from statten.data import open_source
from statten.display import console, table
from statten.display.units import EnergyUnit
from statten.evaluation.measure import Measured
from statten.evaluation.targets import Target
from statten.machine import environment
from statten.metrics.energy import Conventions, ledger
from statten.models import layer_names
from statten.storage.run import now

BINS = 15
"""Bins of the expected calibration error."""
SMALL = 100
"""Up to so many classes the confusion matrix is kept."""
_LINES = 30
"""Layers that the screen shows; of more, those of each block are averaged."""


def build(target: Target, found: Measured, seconds: float, workers: int, conventions: Conventions) -> dict[str, Any]:
    """The report of an evaluation: plain values only."""
    m, names = target.config.model, target.classes()
    report: dict[str, Any] = {
        "target": target.name,
        "run": str(target.run.path) if target.run else None,
        "checkpoint": str(target.source),
        "weights": "averaged (EMA)" if target.averaged else "trained",
        "data": target.config.data.name,
        "part": "test",
        "samples": found.samples,
        "left_out": found.left_out,
        **accuracy(found),
        "timesteps": m.timesteps,
        "block_size": m.block_size,
        "calibration": calibration(found),
        "class_names": names,
        "classes": (rows := classes(found, m.num_classes, names)),
        "macro": macro(rows),
    }
    if m.num_classes <= SMALL:
        report["confusion"] = confusion(found, m.num_classes).tolist()
    if found.sums:
        report["layers"] = layers(found, m)
        report["firing_rates"] = {row["layer"]: row["rate"] for row in report["layers"]}
        report["points"] = points(found)
        report["energy"] = ledger(m, m.timesteps, found.sums, found.samples, conventions)
    return report | {
        "workers": workers,
        "precision": target.precision,
        "seconds": seconds,
        "samples_per_second": found.samples / found.seconds * workers,
        "peak_memory_bytes": found.peak_bytes,
        "imported": target.imported,
        "notes": [*target.notes, *_renamed(target, names)],
        "changed": target.changed,
        "evaluated": now(),
        "environment": environment(),
    }


def accuracy(found: Measured) -> dict[str, float]:
    """Top-1 and top-5 in percent, and the mean cross-entropy."""
    rank, n = found.column("rank"), max(found.samples, 1)
    return {
        "top1": 100 * int((rank < 1).sum()) / n,
        "top5": 100 * int((rank < 5).sum()) / n,
        "loss": found.column("loss").sum().item() / n,
    }


def calibration(found: Measured) -> dict[str, Any]:
    """Expected calibration error (Naeini et al., AAAI 2015): mean gap of confidence and accuracy over equal bins."""
    confidence, right = found.column("confidence"), (found.column("rank") < 1).double()
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    number, right, sure = (
        torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, x) for x in (right * 0 + 1, right, confidence)
    )
    rows = [
        {"from": i / BINS, "samples": int(n), "accuracy": (r / n).item(), "confidence": (s / n).item()}
        for i, (n, r, s) in enumerate(zip(number, right, sure, strict=True))
        if n
    ]
    return {"ece": ((right - sure).abs().sum() / number.sum()).item(), "bins": rows}


def _renamed(target: Target, names: list[str]) -> list[str]:
    """A line where the data call a class by another name than the model, which knows it by its number."""
    for ours, theirs in zip(names, open_source(target.config).classes, strict=False):
        if ours != theirs:
            data = target.config.data.name
            return [f"{data} has class {theirs} where the model was trained on {ours}; labels are compared by their numbers"]
    return []


def classes(found: Measured, number: int, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Samples, top-1, precision, recall and F1 in percent of every class that the part has.

    Precision is the share of the samples predicted as a class that are of it (0 where none is), recall the share of its samples
    that are predicted as it, F1 their harmonic mean. A tie is no hit to top-1, while a prediction takes the first of a tie.
    """
    label, predicted = found.column("label").long(), found.column("prediction").long()
    samples = torch.bincount(label, minlength=number).tolist()
    first = torch.bincount(label[found.column("rank") < 1], minlength=number).tolist()
    hits = torch.bincount(label[label == predicted], minlength=number).tolist()
    taken = torch.bincount(predicted, minlength=number).tolist()
    return [
        {
            "class": i,
            "name": names[i] if names else str(i),
            "samples": n,
            "top1": 100 * first[i] / n,
            "precision": 100 * hits[i] / max(taken[i], 1),
            "recall": 100 * hits[i] / n,
            "f1": 200 * hits[i] / (n + taken[i]),
        }
        for i, n in enumerate(samples)
        if n
    ]


SCORES = ("precision", "recall", "f1")


def macro(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each score over classes, whatever their sizes."""
    return {score: sum(row[score] for row in rows) / max(len(rows), 1) for score in SCORES}


def confusion(found: Measured, number: int) -> Tensor:
    """Samples by label (rows) and predicted class (columns)."""
    pairs = found.column("label").long() * number + found.column("prediction").long()
    return torch.bincount(pairs, minlength=number * number).view(number, number)


def layers(found: Measured, config: ModelConfig) -> list[dict[str, Any]]:
    """Every spiking layer: mean spikes and share of values that are not 0, by timestep; neurons that never or always fire.

    A neuron gives 0 or 1, so the two rates are one here; they differ where attention is masked (see `points`).
    """
    rows = []
    for name in layer_names(config):
        sums = found.sums[name]
        T, neurons = len(sums), sums[0].numel()
        by_timestep = (sums.double().flatten(1).sum(1) / (neurons * found.samples)).tolist()
        fired = sums.sum(0)
        never, always = (fired == n for n in (0, T * found.samples))
        dead, saturated = int(never.sum()), int(always.sum())
        rate = sum(by_timestep) / T
        rows.append(
            {
                "layer": name, "rate": rate, "nonzero": rate, "by_timestep": by_timestep, "neurons": neurons, "dead": dead,
                "saturated": saturated,
                "dead_channels": _channels(never),
                "saturated_channels": _channels(always),
                "state": "dead" if dead == neurons else "saturated" if saturated == neurons else "alive",
            }
        )  # fmt: skip
    return rows


def _channels(marked: Tensor) -> list[int]:
    """Channels whose neurons are marked at every position, of [C, H, W] or [C]."""
    return marked.reshape(len(marked), -1).all(1).nonzero()[:, 0].tolist()


def points(found: Measured) -> list[dict[str, Any]]:
    """Mean input, and share of values that are not 0, of what reads something else than a layer's own spikes."""
    rows = []
    for name, sums in found.sums.items():
        if name.endswith((".pooled", ".query", ".mixed")):
            values = sums[0].numel() * found.samples
            by_timestep = (sums.double().flatten(1).sum(1) / values).tolist()
            mean = sum(by_timestep) / len(by_timestep)
            counted = found.sums.get(f"{name}_nonzero")
            nonzero = mean if counted is None else counted.sum().item() / (values * len(by_timestep))
            rows.append({"point": name, "mean": mean, "nonzero": nonzero, "by_timestep": by_timestep})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# As a person reads it.


def headline(report: dict[str, Any]) -> list[str]:
    """The numbers that are asked for first."""
    left_out = f", {report['left_out']} more could not be read" if report["left_out"] else ""
    top5 = f"  top-5 {report['top5']:.2f} %" if shows_top5(report) else ""
    lines = [
        f"top-1 {report['top1']:.2f} %{top5}  loss {report['loss']:.4f}  "
        f"ECE {report['calibration']['ece']:.3f}  ({report['samples']} samples of {report['data']}{left_out}, "
        f"T={report['timesteps']}, b={report['block_size']}, {report['weights']} weights)"
    ]
    if "energy" in report:
        total, dense = report["energy"]["total"], report["energy"]["non_spiking"]["total"]["pj"]
        unit = energy_unit(report["energy"])
        lines.append(
            f"energy {unit.text(total['pj'])} a sample ({total['macs'] / 1e6:.3f} M MACs, {total['sops'] / 1e6:.3f} M SOPs); "
            f"a non-spiking transformer of this size {unit.text(dense)}, {dense / max(total['pj'], 1e-9):.1f} times as much"
        )
    workers = "1 worker" if report["workers"] == 1 else f"{report['workers']} workers"
    lines.append(
        f"{report['samples_per_second']:,.0f} samples/s on {workers}, "
        f"peak memory {report['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    return lines


def energy_unit(ledger: dict[str, Any]) -> EnergyUnit:
    """What all energies of a report are written in."""
    return EnergyUnit.of([ledger["total"]["pj"], ledger["non_spiking"]["total"]["pj"]])


def shows_top5(report: dict[str, Any]) -> bool:
    """Whether top-5 says anything: of five classes it is always 100 %."""
    return len(report["class_names"]) > 5


CLASS_COLUMNS = ["class", "samples", "top-1 %", "precision %", "recall %", "F1 %"]


def class_rows(report: dict[str, Any]) -> list[list[Any]]:
    """Cells of the table of classes, the mean over them last."""
    rows = [[row["name"], row["samples"], *[f"{row[score]:.2f}" for score in ("top1", *SCORES)]] for row in report["classes"]]
    return [*rows, ["mean over classes", "", "", *[f"{report['macro'][score]:.2f}" for score in SCORES]]]


def warnings(report: dict[str, Any]) -> list[str]:
    """What was taken by default, layers that are dead or saturated, and channels that are at every position."""
    lines = list(report.get("notes", []))
    for row in report.get("layers", []):
        if row["state"] != "alive":
            lines.append(f"{row['layer']} is {row['state']}: all of its {row['neurons']} neurons, at every sample")
        else:
            for what in ("dead", "saturated"):
                channels = row[f"{what}_channels"]
                if channels:
                    shown = ", ".join(map(str, channels[:12])) + (", ..." if len(channels) > 12 else "")
                    lines.append(f"{row['layer']}: channels {what} at every position ({len(channels)}): {shown}")
    return lines


def layer_rows(report: dict[str, Any]) -> list[list[str]]:
    """Cells of the table of layers: name, rate, its course over timesteps, shares of dead and saturated neurons."""
    rows = report["layers"]
    if len(rows) > _LINES:
        rows = _by_block(rows)
    return [
        [
            row["layer"],
            f"{row['rate']:.4f}",
            spark(row["by_timestep"]),
            f"{100 * row['dead'] / row['neurons']:.1f} %",
            f"{100 * row['saturated'] / row['neurons']:.1f} %",
        ]
        for row in rows
    ]


def _by_block(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["layer"]
        groups.setdefault(".".join(name.split(".")[:3]) if name.startswith("blocks.") else name, []).append(row)
    merged = []
    for name, members in groups.items():
        neurons = sum(r["neurons"] for r in members)
        mean = [
            sum(r["by_timestep"][t] * r["neurons"] for r in members) / neurons for t in range(len(members[0]["by_timestep"]))
        ]
        counts = {what: sum(r[what] for r in members) for what in ("dead", "saturated")}
        merged.append({"layer": name, "rate": sum(mean) / len(mean), "by_timestep": mean, "neurons": neurons, **counts})
    return merged


def spark(values: list[float]) -> str:
    """Values from 0 to their largest as a line of blocks."""
    top = max(values) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * v / top))] for v in values)


LAYER_COLUMNS = ["layer", "rate", "by timestep", "dead", "saturated"]


def summary(report: dict[str, Any]) -> None:
    """Print a report: accuracy first, then energy, then the layers."""
    dropped = [row for row in report["imported"] if row["field"] is None]
    for row in report["imported"]:
        if row["field"]:
            console.print(f"  {row['argument']} = {row['value']}  ->  {row['field']}", style="dim")
    for row in dropped:
        console.print(f"  {row['argument']} = {row['value']}  dropped: {row['reason']}", style="dim")
    first, *rest = headline(report)
    console.print(f"[bold]test[/] {first}")
    for line in rest:
        console.print(line)
    if len(report["classes"]) <= 20:
        shown = "  ".join(f"{row['name']}: {row['top1']:.1f}" for row in report["classes"])
        console.print(f"top-1 by class  {shown}", markup=False)
    mean = report["macro"]
    console.print(
        f"mean over classes  precision {mean['precision']:.2f} %  recall {mean['recall']:.2f} %  F1 {mean['f1']:.2f} %"
    )
    if "layers" in report:
        console.print("\nfiring rate (spikes per neuron and timestep)")
        console.print(table("", LAYER_COLUMNS, layer_rows(report), right=(1, 3, 4)))
    for line in warnings(report):
        console.print(f"[yellow]{line}[/]")
    console.print(f"\n  checkpoint  {report['checkpoint']}\n  report      {report['folder']}")
