"""The model card of an export: a README.md as the Hugging Face Hub reads it, with front matter in YAML."""

from pathlib import Path
from typing import Any

import yaml

from statten.display.plots import md_table
from statten.evaluation.targets import Target
from statten.records.measurements import Evaluation, Ledger
from statten.records.reading import read
from statten.records.runs import State
from statten.storage.checkpoint import EMA, STATE

_OPEN = 'import statten, timm\n\nmodel = timm.create_model("local-dir:DIR", pretrained=True).eval()'
_TRANSFORM = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
_PREDICT = 'import statten\n\nmodel = statten.load_model("DIR")\nprint(model.predict("FILE").top(5))'


def card(target: Target, classes: list[str], parameters: int) -> str:
    """The card of a target that is exported.

    Args:
        target: whose run, where it has one, tells what was measured.
        classes: name of each class.
        parameters: their number.
    """
    m, data, found = target.config.model, target.config.data.name, measured(target)
    size = f"{m.image_size} x {m.image_size} pixels"
    reads = f"event clips of {m.timesteps} frames of {size}" if m.events else f"images of {size}"
    lines = _OPEN if m.events else f"{_OPEN}\n{_TRANSFORM}"
    parts = [
        f"---\n{yaml.safe_dump(_front(target, found), sort_keys=False, allow_unicode=True)}---",
        f"# {target.name}",
        f"A spiking vision transformer, trained with statten on {data}. It reads {reads} and tells {len(classes)} classes.",
        f"## How to use it\n\nInstall statten, and write the path of this folder for DIR:\n\n```python\n{lines}\n```",
        f"Or with its transform and the names of its classes:\n\n```python\n{_PREDICT}\n```",
        *_results(found),
        f"## The network\n\n{_network(target, parameters)}\n\n`config.yaml` holds the whole config of the training.",
        f"## Classes\n\n{', '.join(classes)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(target: Target, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What the hub's search and tables know of a model."""
    data, task = target.config.data.name, "video-classification" if target.config.model.events else "image-classification"
    tags = [task, "timm", "statten", "spiking-neural-network"]
    front: dict[str, Any] = {"library_name": "timm", "pipeline_tag": task, "tags": tags, "metrics": ["accuracy"]}
    if found:
        metrics = [
            {"type": "accuracy", "name": f"{part} top-1 (%)", "value": round(row["top1"], 4)} for part, row in found.items()
        ]
        result = {"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": metrics}
        front["model-index"] = [{"name": target.name, "results": [result]}]
    return front


def _results(found: dict[str, dict[str, float]]) -> list[str]:
    if not found:
        return []
    rows = [
        [part, f"{row['top1']:.2f}", f"{row['loss']:.4f}", f"{row['energy_uj']:.4g}" if "energy_uj" in row else "-"]
        for part, row in found.items()
    ]
    return [
        f"## What was measured\n\n{md_table(['part', 'top-1 %', 'loss', 'energy uJ'], rows)}",
        "The energy is that of one sample, estimated: 4.6 pJ for a multiply-accumulate, 0.9 pJ for an addition.",
    ]


def _network(target: Target, parameters: int) -> str:
    m = target.config.model
    fields = ("backbone", "attention", "timesteps", "block_size", "depth", "embed_dim", "num_heads")
    rows: list[list[Any]] = [[f"model.{name}", getattr(m, name)] for name in fields]
    return md_table(["", ""], [*rows, ["parameters", f"{parameters:,}"], ["weights", _weights(target)]])


def _weights(target: Target) -> str:
    return "averaged (EMA)" if target.averaged else "trained"


def measured(target: Target) -> dict[str, dict[str, float]]:
    """`top1` in percent, `loss` and `energy_uj` by part, where these weights were measured as they are, and it is on record."""
    if target.run is None or any(not name.startswith("scale.") for name in target.changed):
        return {}
    found: dict[str, dict[str, float]] = {}
    saved = read(target.source / STATE, State)
    row = saved["metrics"] if saved else {}
    if "val/top1" in row and target.averaged == (target.source / EMA).is_file():
        found["validation"] = {"top1": row["val/top1"], "loss": row["val/loss"]}
        found["validation"] |= {"energy_uj": row["energy_uj"]} if "energy_uj" in row else {}
    report = read(target.run.path / "evaluation.json", Evaluation)
    if report and (Path(report["checkpoint"]).name, report["weights"]) == (target.source.name, _weights(target)):
        found["test"] = {"top1": report["top1"], "loss": report["loss"]}
        ledger = read(target.run.path / "evaluations" / Path(report["folder"]).name / "energy.json", Ledger)
        found["test"] |= {"energy_uj": ledger["total"]["pj"] / 1e6} if ledger else {}
    return found
