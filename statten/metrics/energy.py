"""The energy ledger: one row per operation of the network, whose energies add up to the total.

    operations = rate * timesteps * FLOPs of one timestep
    E = 4.6 pJ per multiply-accumulate (MAC) of a layer that reads numbers, 0.9 pJ per accumulate (SOP) of one that reads spikes

The two costs are of 32-bit arithmetic in 45 nm (Horowitz: Computing's energy problem, ISSCC 2014).
`rate` is the mean of the row's input over timesteps, samples and positions; 1 for a layer that reads numbers. Attention's two
products are rows of their own: K^T V adds where k and v both spike, Q (K^T V) where q spikes. Masks, pooling, BatchNorm (which
folds into the convolution), biases, residual additions and the neurons' own updates are not counted, as in the literature.

A ledger is a plain document that names its network: `check` recomputes it from that, and from what was measured of each row.
T timesteps, N tokens, D embedding, d = D/h, b block size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from statten.config import ModelConfig, load_config, validate_part, with_overrides
from statten.errors import UserError, shown
from statten.models.operations import Operation
from statten.records import reading
from statten.records.measurements import Ledger, Report
from statten.registry import BACKBONES

MAC_PJ, AC_PJ = 4.6, 0.9
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Conventions:
    """What is counted how; part of every ledger."""

    first_layer: Literal["every_timestep", "once"] = "every_timestep"
    """Whether the first convolution of a repeated image counts T times (the published way) or once (as it is computed here)."""
    padding: Literal["counted", "skipped"] = "counted"
    """Whether additions into the zero padding of a 3 x 3 convolution count (the published formula) or not (SpikingJelly's)."""
    memory_pj_per_byte: float | None = None
    """Energy of a byte read or written; empty leaves memory out. Horowitz: 160 to 320 for DRAM, 1.25 for an 8 KB cache."""
    mac_pj: float = MAC_PJ
    """Energy of a multiply-accumulate."""
    ac_pj: float = AC_PJ
    """Energy of an accumulate."""


def operations(c: ModelConfig) -> Iterator[Operation]:
    """The network's convolutions and products in the order of the forward pass."""
    return BACKBONES[c.backbone].operations(c)


def ledger(
    config: ModelConfig, timesteps: int, counts: Mapping[str, Tensor], samples: int, conventions: Conventions | None = None
) -> dict[str, Any]:
    """The ledger of one sample, on average over those that were measured.

    Args:
        config: the network.
        timesteps: T that it ran.
        counts: sums over samples of each point's input, [T, C, H, W] or [T] (meter.py), or [] (SpikeTotals.inputs),
            which tell nothing of padding.
        samples: their number.
        conventions: what is counted how.
    """
    conventions = conventions or Conventions()
    rows = [_row(op, timesteps, counts, samples, config, conventions, first=i == 0) for i, op in enumerate(operations(config))]
    return {
        "unit": "pJ per sample",
        "samples": samples,
        "timesteps": timesteps,
        "block_size": config.block_size,
        "conventions": vars(conventions).copy(),
        "model": config.model_dump(mode="json"),
        "rows": rows,
        "total": _total(rows),
        "non_spiking": non_spiking(config, timesteps, conventions),
    }


def ledger_at(config: ModelConfig, rate: float, conventions: Conventions | None = None) -> dict[str, Any]:
    """The ledger of a network whose neurons all fire at a rate and independently of each other; needs no data.

    Args:
        config: the network.
        rate: spikes per neuron and timestep; k and v then spike together at its square.
        conventions: what is counted how.
    """
    T, counts = config.timesteps, {}
    for op in operations(config):
        if op.point is not None:
            together = rate**2 if op.point.endswith(".pairs") else rate
            counts[op.point] = torch.tensor(together * _values(op) * T, dtype=torch.float64)
    return ledger(config, T, counts, 1, conventions)


def _values(op: Operation) -> int:
    """The values of one timestep over which a row's rate is the mean."""
    if op.point is not None and op.point.endswith(".pairs"):
        return op.flops
    return op.inputs if op.kind != "product" else op.outputs


def _row(
    op: Operation, timesteps: int, counts: Mapping[str, Tensor], samples: int, config: ModelConfig, conventions: Conventions,
    first: bool,
) -> dict[str, Any]:  # fmt: skip
    rate = inside = 1.0
    if op.point is not None:
        found = counts[op.point].double()
        rate = found.sum().item() / (_values(op) * timesteps * samples)
        if _padded(op) and found.ndim:
            inside = _inside(found, op)
    return _row_at(op, rate, inside, timesteps, config, conventions, first)


def _row_at(
    op: Operation, rate: float, inside: float, timesteps: int, config: ModelConfig, conventions: Conventions, first: bool
) -> dict[str, Any]:
    """The row of an operation whose input has this rate, and this share of its additions inside the map."""
    reads_numbers = op.point is None
    row: dict[str, Any] = {"layer": op.layer, "kind": op.kind, "unit": "MACs" if reads_numbers else "SOPs"}
    row |= {"rate": rate, "inside": inside, "flops": op.flops, "timesteps": timesteps}
    if op.once or (first and conventions.first_layer == "once" and not config.events):
        row["timesteps"] = 1
    if op.levels > 2:
        row["levels"] = op.levels
    bits = 32 if reads_numbers else math.ceil(math.log2(op.levels + 1))
    row["bytes"] = 4 * op.weights + math.ceil(op.inputs * bits / 8) + 4 * op.outputs
    return row | _costs(row, conventions)


def _padded(op: Operation) -> bool:
    """Whether some additions of a convolution may fall outside its map, or some positions be left out."""
    return (op.kernel, op.stride) != (1, 1)


def _inside(counts_TCHW: Tensor, op: Operation) -> float:
    """Additions of a convolution that fall inside the map, over rate * flops, which counts those on its padding too.

    A stride leaves positions out, which rate * flops knows by their average alone.
    """
    outer = -(-op.side // op.stride)
    first = torch.arange(outer)[:, None] * op.stride - op.kernel // 2
    position = torch.arange(op.side)
    reach = ((position >= first) & (position < first + op.kernel)).sum(0).to(counts_TCHW)  # windows that read a row
    total = counts_TCHW.sum().item() * (op.kernel * outer) ** 2
    return op.side**2 * (counts_TCHW * reach[:, None] * reach).sum().item() / total if total else 1.0


def _costs(row: Mapping[str, Any], conventions: Conventions) -> dict[str, Any]:
    """What follows from a row's other fields: its operations and energies, and the formula in words."""
    factors, formula = row["rate"] * row["timesteps"] * row["flops"], "rate * timesteps * flops"
    if conventions.padding == "skipped" and row["unit"] == "SOPs":
        factors, formula = factors * row["inside"], formula + " * inside"
    each = conventions.mac_pj if row["unit"] == "MACs" else conventions.ac_pj
    memory = (conventions.memory_pj_per_byte or 0.0) * row["bytes"] * row["timesteps"]
    return {
        "operations": factors,
        "formula": f"{formula}; {each:g} pJ each",
        "pj": factors * each + memory,
        "memory_pj": memory,
    }


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    total = {unit.lower(): math.fsum(r["operations"] for r in rows if r["unit"] == unit) for unit in ("MACs", "SOPs")}
    return total | {name: math.fsum(r[name] for r in rows) for name in ("memory_pj", "pj")}


def non_spiking(config: ModelConfig, timesteps: int, conventions: Conventions) -> dict[str, Any]:
    """A transformer of the same layers and widths that computes with numbers: softmax(Q K^T) V instead of counts.

    An image passes once; a clip passes frame by frame.
    """
    passes = timesteps if config.events else 1
    rows: list[dict[str, Any]] = [
        {"layer": op.layer, "flops": op.flops, "bytes": 4 * (op.weights + op.inputs + op.outputs)}
        for op in BACKBONES[config.backbone].dense_operations(config)
    ]
    common = {"kind": "dense", "unit": "MACs", "rate": 1.0, "inside": 1.0, "timesteps": passes}
    rows = [{**row, **common} for row in rows]
    rows = [row | _costs(row, conventions) for row in rows]
    return {"rows": rows, "total": _total(rows)}


def check(document: Any, source: str = "ledger", network: ModelConfig | None = None) -> Ledger:
    """Recompute a ledger from its network and from what was measured of each row, and return it.

    Args:
        document: what `ledger` returned, or what a file holds.
        source: how sentences name it.
        network: of a ledger that does not name its own, as those of versions before; else it is not looked at.

    Raises:
        UserError: it is none, or with a sentence for every row that is missing, or too many, or does not add up.
    """
    found = reading.check(document, Ledger, source, "is not an energy ledger")
    config = _network(found, source) or network
    if config is None:
        raise UserError(
            f"{source}: does not say which network it is of, so a row that is missing would not be seen; "
            f"evaluate again, or check the file where it was written, inside its run"
        )
    conventions = Conventions(**found["conventions"])
    problems = _differences(source, found, {"timesteps": config.timesteps, "block_size": config.block_size}, "the network has")
    written, network_rows = {row["layer"]: row for row in found["rows"]}, {}
    for i, op in enumerate(operations(config)):
        row = written.get(op.layer)
        rate, inside = (1.0, 1.0) if row is None or op.point is None else (row["rate"], row["inside"])
        if rate > op.levels:
            problems.append(f"{source}: {op.layer}: rate must be between 0 and {op.levels}, but is {rate:g}")
        network_rows[op.layer] = _row_at(
            op, rate, inside if _padded(op) else 1.0, config.timesteps, config, conventions, first=i == 0
        )
    dense = non_spiking(config, config.timesteps, conventions)["rows"]
    problems += _unlike(source, found, network_rows, conventions)
    problems += _unlike(f"{source}: non_spiking", found["non_spiking"], {row["layer"]: row for row in dense}, conventions)
    if problems:
        raise UserError(problems)
    return found


def _network(found: Ledger, source: str) -> ModelConfig | None:
    if "model" not in found:
        return None
    config, problems, _ = validate_part(ModelConfig, found["model"], "model")
    if config is None or problems:
        raise UserError(f"{source}: is not an energy ledger: {problem}" for problem in problems)
    return config


def _unlike(
    where: str, part: Mapping[str, Any], network: Mapping[str, Mapping[str, Any]], conventions: Conventions
) -> Iterator[str]:
    """A sentence for everything in which the rows and the total of a ledger are not those of the network.

    Args:
        network: its rows by name, with the rates that the ledger says.
    """
    seen = set[str]()
    for row in part["rows"]:
        name = f"{where}: {row['layer']}"
        if row["layer"] in seen:
            yield f"{name}: is there twice"
        seen.add(row["layer"])
        costs = _costs(row, conventions)
        yield from _differences(name, row, costs, "its row gives")
        if (wanted := network.get(row["layer"])) is None:
            yield f"{name}: is there, but the network has no such operation"
        else:
            fixed = {field: value for field, value in wanted.items() if field not in costs}
            yield from _differences(name, row, fixed, "the network has")
    for layer in network:
        if layer not in seen:
            yield f"{where}: {layer}: is missing, but the network has it"
    yield from _differences(f"{where}: total", part["total"], _total(part["rows"]), "its rows give")


def _differences(where: str, written: Mapping[str, Any], wanted: Mapping[str, Any], who: str) -> list[str]:
    """A sentence for every value that is not as wanted: numbers with a point to 1e-9 of them, everything else exactly."""
    problems = []
    for name, value in wanted.items():
        there = written.get(name)
        if isinstance(value, float):
            same = isinstance(there, int | float) and abs(there - value) <= _TOLERANCE * max(abs(value), 1e-12)
        else:
            same = there == value
        if not same:
            problems.append(f"{where}: {name} is written as {there}, but {who} {value}")
    return problems


def check_file(path: Path) -> Ledger:
    """Read a ledger, or a report that holds one, and recompute it; returns the ledger."""
    document = reading.read(path, dict[str, Any], "is not an energy ledger")
    if document is None:
        raise UserError(f"{path}: no such file")
    if "energy" not in document:
        return check(document, str(path), _network_of_run(path))
    found = check(document["energy"], str(path), _network_of_run(path))
    for name in ("timesteps", "block_size", "samples"):
        if document.get(name) != (there := found[name]):
            raise UserError(f"{path}: {name} is {shown(document.get(name))}, but that of its energy ledger is {there}")
    return found


def _network_of_run(path: Path) -> ModelConfig | None:
    """The network of the run in whose folder an evaluation lies; None where it lies elsewhere.

    Args:
        path: `<run>/evaluations/<evaluation>/energy.json`, or report.json there, which holds the fields that were changed.
    """
    parents = path.absolute().parents
    if len(parents) < 3 or parents[1].name != "evaluations" or not (parents[2] / "config.yaml").is_file():
        return None
    report = reading.read(parents[0] / "report.json", Report) or {}
    changed = {field: value for field, value in report.get("changed", {}).items() if field.startswith("model.")}
    return with_overrides(load_config(parents[2] / "config.yaml"), changed).model
