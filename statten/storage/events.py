"""The event file of a run for TensorBoard: loss and accuracy first, each curve with its unit and what it means.

It lies in the run's folder itself, so that TensorBoard calls the run by its name. Each attempt writes a file of its own, which
begins with all epochs so far and takes the place of those before it: `metrics.jsonl` knows them all, wherever the run goes on.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from statten.config import Config
from statten.metrics.labels import LABELS, RATE, label, meaning
from statten.storage.loggers import hyperparameters
from statten.storage.run import best_row

PREFIX = "events.out.tfevents."
"""How the names of event files begin."""
GROUPS = {
    "accuracy": ("best/top1", "train/top1", "val/top1", "val/top5"),
    "loss": ("train/loss", "val/loss"),
    "model": ("energy_uj", "latency_ms", "parameters", "peak_memory_mib"),
    "neurons": (),
    "training": ("corrupt", "lr", "samples_per_second", "seconds", "steps"),
}
"""Groups of TensorBoard's cards, which it sorts by their names and opens the first two of; and metrics of each."""
BEST, LOSS = "best/top1", "val/loss"
UNSHOWN = ("epoch", "time")
"""Of a row: where its values lie, and when they were written."""


def tag(metric: str) -> str:
    """What a metric's curve is called."""
    if metric.startswith(RATE):
        return f"neurons/{label(metric)}"
    group = next((group for group, metrics in GROUPS.items() if metric in metrics), "training")
    if metric not in LABELS and metric.endswith(("/top1", "/loss")):  # of a point that a supernet watches
        group = {"top1": "accuracy", "loss": "loss"}[metric.rpartition("/")[2]]
    return f"{group}/{label(metric)}"


class EventFile:
    """The events of one attempt.

    Args:
        folder: of the run.
        config: of the run.
        point: what its sweep chose, if it is a trial.
    """

    def __init__(self, folder: Path, config: Config, point: dict[str, Any] | None):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import custom_scalars

        self._writer: Any = SummaryWriter(str(folder), purge_step=0)  # what stands in earlier files comes again in this one
        self._best: dict[str, float] = {}
        self._described: set[str] = set()
        for summary in (*_hparams_summaries(config, point), custom_scalars(layout())):
            self._add(summary)

    def _add(self, summary: Any, step: int | None = None, time: float | None = None) -> None:
        self._writer.file_writer.add_summary(summary, step, time)

    def write(self, rows: Sequence[dict[str, float]]) -> None:
        """Add epochs; raises OSError, after which the file is not to be used any more."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            self._best = best_row([found for found in (self._best, row) if found])
            # HParams shows a tag's last value: the best so far needs a tag of its own.
            values = {**row, BEST: self._best["val/top1"]}
            scalars = [point for metric in values if metric not in UNSHOWN for point in self._points(metric, values[metric])]
            self._add(Summary(value=scalars), int(row["epoch"]), row.get("time"))
        self._writer.flush()

    def _points(self, metric: str, value: float) -> list[Any]:
        """A point of a curve; the first one of each says what it is."""
        first = metric not in self._described
        self._described.add(metric)
        return points(tag(metric), value, meaning(metric) if first else "")

    def close(self, failed: bool) -> None:
        """End the HParams session and close the file; raises OSError."""
        from torch.utils.tensorboard.summary import hparams

        end = hparams({}, {})[2]
        if failed:
            from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
            from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

            content = HParamsPluginData.FromString(end.value[0].metadata.plugin_data.content)
            content.session_end_info.status = STATUS_FAILURE
            end.value[0].metadata.plugin_data.content = content.SerializeToString()
        self._add(end)
        self._writer.close()


def points(tag: str, value: float, text: str = "") -> list[Any]:
    """A point of a curve; with a text of the curve it stands there twice.

    TensorBoard's fast loader takes texts from tensors alone, and at one step the later value; what reads scalars for itself,
    such as an EventAccumulator, takes simple values alone.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    described = [*scalar_pb(tag, value, description=text).value] if text else []
    return [*described, Summary.Value(tag=tag, simple_value=value)]


def layout() -> dict[str, dict[str, list[Any]]]:
    """The charts of TensorBoard's page of custom scalars, the same of every run: training beside validation, rates in one."""

    def chart(*metrics: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag(metric))}$" for metric in metrics]]

    return {
        "Loss and accuracy": {
            "validation top-1 (%)": chart("val/top1"),
            "best validation top-1 so far (%)": chart(BEST),
            "loss, training and validation": chart("train/loss", "val/loss"),
            "top-1, training and validation (%)": chart("train/top1", "val/top1"),
        },
        "Cost": {label(metric): chart(metric) for metric in ("energy_uj", "samples_per_second", "seconds", "lr")},
        "Firing rates (spikes per neuron and timestep)": {"all layers": ["Multiline", ["^neurons/"]]},
    }


def _hparams_summaries(config: Config, point: dict[str, Any] | None) -> list[Any]:
    """What TensorBoard's HParams page needs: all hyperparameters, the few that it shows at first marked."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    experiment, start, _ = hparams(hyperparameters(config), {tag(BEST): 0.0, tag(LOSS): 0.0})
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    shown = {*(point or {}), "model.timesteps", "model.block_size", "model.depth", "model.embed_dim", "train.lr"}
    for field in content.experiment.hparam_infos:
        field.differs = field.name in shown
    plugin.content = content.SerializeToString()
    return [experiment, start]
