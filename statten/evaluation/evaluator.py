"""Evaluation on the test part: of runs, sweeps, checkpoints and published weights, on any number of workers."""

import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from statten.cluster.session import ray_cluster
from statten.cluster.trainer import on_workers
from statten.config import build_config
from statten.data import make_test_loader
from statten.display import progress_bar
from statten.errors import UserError
from statten.evaluation.gallery import mistakes, thumbnails
from statten.evaluation.html import classes_html, html, summary_html
from statten.evaluation.measure import Measured, chunk_path, chunks, compact, load, measure_chunks, merge, save
from statten.evaluation.report import build
from statten.evaluation.show import pictures, write
from statten.evaluation.targets import Target, open_target, resolve
from statten.files import write_json, write_text
from statten.metrics.energy import Conventions
from statten.storage.mirror import check_place, publish
from statten.storage.run import default_storage


class Evaluation(dict[str, Any]):
    """What an evaluation found, in plain values; a notebook shows its summary and its classes."""

    def __repr__(self) -> str:
        return f"Evaluation({self['target']} on {self['data']}: top-1 {self['top1']:.2f} %, {self['samples']} samples)"

    def _repr_html_(self) -> str:
        return f"{summary_html(self)}{classes_html(self)}"


def evaluate(
    path: Path | str,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    data: str | None = None,
    ema: bool = True,
    large: bool = False,
    workers: int | None = None,
    rates: bool = True,
    exact: bool = False,
    as_published: bool = False,
    conventions: Conventions | None = None,
    storage: Path | None = None,
    output: Path | None = None,
) -> Evaluation:
    """Evaluate a sweep's best trial, a run's best epoch, a checkpoint or a published checkpoint on the test part of a dataset.

    Args:
        path: folder of the sweep, run or checkpoint, or a published `.pth.tar`.
        overrides: fields to change, such as model.timesteps, which owns no weights.
        data: name of the dataset; empty means the one that it was trained on.
        ema: take averaged weights where there are some.
        large: images at 288 pixels, the centre of 320.
        workers: processes that share the samples; the counts do not depend on their number. Empty means the override
            scale.workers, else 1: that of the training does not count.
        rates: also measure firing rates and energy.
        exact: compute in float64. In float32 the CPU's results were found not to depend on the batch; a GPU's libraries may
            choose another order of summation for another batch, and a membrane within rounding of its threshold may flip.
        as_published: QKFormer as its published code runs it, where samples of a batch mix: in batches of 32, on one worker.
        conventions: what the energy ledger counts how.
        storage: where reports of published checkpoints go; those of a run go to its own folder.
        output: where the folder of this evaluation goes instead, such as for a run that cannot be written.

    Returns:
        top1, top5 (percent), loss (cross-entropy), samples, left_out, firing_rates (spikes per neuron and
        timestep, by layer), layers, calibration, classes, energy, throughput, and where it was written.
    """
    target = open_target(Path(path), overrides, data, ema, large, exact, as_published)
    if workers is None:
        workers = target.config.scale.max_workers if "scale.workers" in target.changed else 1
    if as_published and workers > 1:
        raise UserError(f"--as-published: samples mix in the order of the data, so it takes 1 worker, but got {workers}")
    folder = place(target, storage, output)
    began = time.monotonic()
    found = measure_target(target, folder, workers, rates)
    report = Evaluation(build(target, found, time.monotonic() - began, workers, conventions or Conventions()))
    report["folder"] = str(folder)
    save(compact(found), folder / "samples.safetensors")
    report["mistakes"] = mistakes(found, target.config)
    figures = pictures(report)
    write(report, figures, folder)
    write_text(folder / "report.html", html(report, figures, thumbnails(report["mistakes"], target.config)))
    own = not exact and not as_published
    if target.run and output is None and own and all(name.startswith("scale.") for name in target.changed):
        write_json(target.run.path / "evaluation.json", {k: v for k, v in report.items() if k not in ("energy", "imported")})
        publish(target.run.path / "evaluation.json")
    publish(folder)
    return report


def home(target: Target, storage: Path | None = None, output: Path | None = None) -> Path:
    """The folder that belongs to an evaluation, and to it alone: in `output`, else in its run, or for a published checkpoint in
    the storage."""
    m = target.config.model
    name = f"{target.config.data.name}-T{m.timesteps}-b{m.block_size}-{target.key()}"
    if target.run and output is None:
        return target.run.path / "evaluations" / name
    return (output or (storage or default_storage()) / "evaluations") / f"{target.name.replace('/', '-')}-{name}"


def place(target: Target, storage: Path | None = None, output: Path | None = None) -> Path:
    """`home`; raises UserError before anything is measured where it, or the run that keeps the result, cannot be written."""
    folder = home(target, storage, output)
    for needed in [folder, *([target.run.path] if target.run and output is None else [])]:
        check_place(needed)
    return folder


def measure_target(target: Target, folder: Path, workers: int = 1, rates: bool = True) -> Measured:
    """Measure a target's test part, on so many workers, going on with what an earlier attempt left in `folder`."""
    config = target.evaluated_on(workers)
    with ray_cluster(config.scale.address) if workers > 1 else nullcontext() as capacity:
        plan = target.preflight(config, capacity)
        model, total = target.model(), make_test_loader(config).total  # what does not fit is said before any folder is made
        if workers > total:
            raise UserError(f"--workers: there are {total} test samples for {workers} workers; the most is --workers {total}")
        of = 1 if target.as_published else chunks(total, workers)  # a chunk is every n-th sample, and order matters there
        scratch = folder / f"chunks-{target.key(rates=rates)}"
        scratch.mkdir(parents=True, exist_ok=True)
        if workers == 1:
            with progress_bar("samples") as bar:
                task = bar.add_task("test part", total=total, rate="")
                mine = list(range(of))
                measure_chunks(model, config, scratch, mine, of, rates, lambda samples: bar.advance(task, samples))
        else:
            settings = {"source": str(target.source.resolve()), "averaged": target.averaged, "exact": target.exact}
            settings |= {"config": config.model_dump(mode="json"), "folder": str(scratch.resolve()), "of": of, "rates": rates}
            with progress_bar("chunks") as bar:
                bar.add_task(f"test part on {workers} workers", total=None, rate="")
                on_workers(_worker, settings, plan, config, scratch / "ray")
    found = merge([load(chunk_path(scratch, chunk, of)) for chunk in range(of)])
    shutil.rmtree(scratch)
    return found


def _worker(settings: dict[str, Any], rank: int, world_size: int) -> None:
    """What each Ray Train worker runs: its share of the chunks."""
    of = settings["of"]
    torch.set_num_threads(settings["threads"])
    source, folder = Path(settings["source"]), Path(settings["folder"])
    config = build_config(settings["config"])
    run, _ = resolve(source)
    target = Target(source, config, settings["averaged"], run, exact=settings["exact"])
    mine = list(range(rank, of, world_size))
    measure_chunks(target.model(), config, folder, mine, of, settings["rates"])
