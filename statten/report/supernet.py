"""What a supernet's points were found to be, where a person reads it."""

import time
from typing import Any

from rich.table import Table

from statten.display import console, duration, numeral, state_word, table
from statten.metrics.labels import label
from statten.records.reading import read
from statten.records.runs import Front
from statten.search.sweep import describe
from statten.storage.supernet import FRONT, Supernet

COLUMNS = {"val/top1": "top-1 (%)", "val/loss": "loss", "energy_uj": "energy (µJ)", "latency_ms": "latency (ms)"}
"""Metrics of a point in a table of validation, and what their columns are called."""


def supernet_row(supernet: Supernet) -> dict[str, Any]:
    """The row of a supernet in the list of what is there."""
    epochs, trained = supernet.metrics(), supernet.state == "finished"
    rows = supernet.evaluated() if trained else []
    return {
        "name": supernet.name,
        "kind": "supernet",
        "state": "finished" if supernet.complete else "unfinished" if trained else supernet.state,
        "progress": f"{len(rows)}/{supernet.points} points" if trained
        else f"{len(epochs)}/{supernet.config.train.total_epochs} epochs",
        "best": f"{max(row['metrics']['val/top1'] for row in rows):.2f} %" if rows else "-",
        "created": supernet.info.get("created", ""),
    }  # fmt: skip


def supernet_details(supernet: Supernet) -> dict[str, Any]:
    """Its epochs, its front beside the proxy's, and every point that was evaluated, as a document."""
    row = supernet_row(supernet)
    rows = supernet.evaluated() if supernet.state == "finished" else []
    found = read(supernet.path / FRONT, Front) if rows else None
    return {
        "kind": "supernet",
        "name": supernet.name,
        "path": str(supernet.path),
        "state": row["state"],
        "progress": row["progress"],
        "epochs": supernet.metrics(),
        "points": rows,
        **(found or {"objectives": {}, "front": [], "hypervolume": None, "proxy": None}),
    }


def supernet_table(document: dict[str, Any], most: int | None = None) -> Table:
    """The front of the document of `supernet_details`, at most so many of its points; before there is one, the last epochs."""
    title = f"supernet {document['name']}: {state_word(document['state'])}, {document['progress']}"
    if document["front"]:
        rows = document["front"][: most or None]
        cells = [
            [row["number"], describe(row["point"]), *(numeral(row["metrics"].get(name)) for name in COLUMNS)] for row in rows
        ]
        title += f"; the front of {' and '.join(map(label, document['objectives']))}, with inherited weights"
        return table(title, ["point", "", *COLUMNS.values()], cells, right=(0, *range(2, 2 + len(COLUMNS))))
    names = [name for name in (document["epochs"] or [{}])[-1] if name.endswith(("/loss", "/top1"))]
    epochs = document["epochs"][-(most or 0) :]
    cells = [[int(row["epoch"]), *(numeral(row.get(name)) for name in names)] for row in epochs]
    return table(title, ["epoch", *names], cells, right=range(len(names) + 1))


def sentences(document: dict[str, Any]) -> list[str]:
    """What a reader of the front should know: what a proxy without training says of the same points."""
    proxy, volume = document["proxy"], document["hypervolume"]
    if proxy is None:
        return []
    lines = [
        "inherited weights order points, and are no result: compare them with each other, and never with trained trials",
    ]
    if proxy["tau"] is not None:
        lines.append(
            f"{proxy['formula']}, which costs nothing, orders these points by {label(next(iter(document['objectives'])))} with "
            f"Kendall's tau {proxy['tau']:.2f}"
        )
    if volume is not None:
        lines.append(
            f"the {len(proxy['front'])} points that it would choose beside FLOPs dominate {proxy['hypervolume']:.3f} of the "
            f"box around all points, and the front {volume:.3f}"
        )
    return lines


def supernet_summary(supernet: Supernet, began: float) -> None:
    """The end of a supernet: what was found, where it lies, what to type next."""
    document = supernet_details(supernet)
    console.print(supernet_table(document))
    for line in sentences(document):
        console.print(f"  {line}", markup=False)
    console.print(f"\n[bold]{supernet.name}[/]: {len(document['points'])} points in {duration(time.monotonic() - began)}")
    console.print(f"  folder      {supernet.where}")
    console.print(f"  train one   statten promote {supernet.typed} --trial {document['front'][0]['number']}")
    console.print(f"  train all   statten promote {supernet.typed} --front")
