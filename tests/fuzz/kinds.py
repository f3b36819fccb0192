"""Every kind of file that the program reads: a sound one, and what reads it."""

import contextlib
import functools
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import formats
import numpy as np
import torch
from evaluated import TINY, published_file
from fuzzing import Target
from mutating import changed, damaged, document, lines, yaml_text
from PIL import Image
from rich.console import Console

from statten.cli.show import best
from statten.config import build_config, dump_config, load_config, parse_yaml
from statten.data import check_split, split_document
from statten.data.archives import BROKEN, extract, zip_members
from statten.data.check import check
from statten.data.dataset import Damaged
from statten.data.images import _read_cifar, decode_image, open_images
from statten.data.making import integrate
from statten.data.own_events import read_recording
from statten.data.raw_events import FORMATS, check_events, cut_gestures, read_aedat3
from statten.data.shards import _scan, shard
from statten.errors import UserError
from statten.evaluation.measure import Measured
from statten.evaluation.measure import load as load_measured
from statten.evaluation.measure import save as save_measured
from statten.files import read_record, write_json, writer
from statten.jobs.file import load_job
from statten.metrics.energy import check_file, ledger, operations
from statten.models.published import load_published
from statten.records.measurements import Rates
from statten.records.reading import read
from statten.records.runs import LoggedAs, Progress
from statten.report.overview import details, details_table, overview
from statten.report.summary import summarize
from statten.report.trials import SweepTrials, csv_text, documents
from statten.search import costs
from statten.search.sweep import Sweep
from statten.space.loading import load_space, make_space
from statten.storage.checkpoint import _digest, load_newest, load_weights, save
from statten.storage.loggers import FILE as LOGGERS
from statten.storage.mirror import Mirror, mirror_of
from statten.storage.run import Run
from statten.training.loop import make_state
from statten.training.resuming import check_resumable

FIELDS = {**TINY, "model.num_heads": 2, "train.epochs": 3, "train.warmup_epochs": 0, "scale.device": "cpu"}


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    build: Callable[[Path], Target]
    """Writes a sound file into an empty folder."""
    inputs: int = 2000
    """How many the suite tries: as many as take about a second."""


# ---------------------------------------------------------------------------------------------------------------------
# What users write.


def config(box: Path) -> Target:
    path = box / "config.yaml"
    path.write_text(dump_config(load_config("digits", {"scale.workers": [1, 2], "model.neuron": {"mlp": "plif"}})))

    def load() -> None:
        found = load_config(path)
        assert build_config(parse_yaml(dump_config(found), "its dump")) == found

    return Target(path, yaml_text, [load])


SPACE = """\
model.timesteps: {choices: [2, 4, 8]}
model.block_size: {divisors_of: model.timesteps}
model.depth: {int: [1, 4]}
model.embed_dim: {int: [64, 256], step: 64}
train.lr: {float: [1.0e-4, 3.0e-3], log: true}
constraint: ["model.depth * model.embed_dim <= 512"]
"""


def space(box: Path) -> Target:
    path, base = box / "space.yaml", load_config("digits")
    path.write_text(SPACE)

    def load() -> None:
        found = load_space(path, base)
        found.count()
        assert load_space(path, base).dump() == found.dump()

    return Target(path, yaml_text, [load])


def job(box: Path) -> Target:
    path = box / "job.yaml"
    path.write_text(
        "command: tune\nrecipe: digits\nspace: [space.yaml]\ntrials: 4\nname: a\noverrides: {model.depth: 2, train.epochs: 3}\n"
        "resources: {workers: 2, device: cpu}\nruntime: {packages: ['numpy>=2'], environment: {A: b}}\nretries: 2\n"
    )
    return Target(path, yaml_text, [lambda: load_job(path).arguments()])


# ---------------------------------------------------------------------------------------------------------------------
# Runs and sweeps.


def row(epoch: int, top1: float) -> dict[str, float]:
    return {
        "epoch": epoch, "train/loss": 1.5, "train/top1": top1, "lr": 1e-3, "steps": 9, "val/loss": 1.0, "val/top1": top1,
        "val/top5": 99.0, "energy_uj": 1.5, "firing_rate/head": 0.1, "seconds": 2.0, "samples_per_second": 1e3,
    }  # fmt: skip


@functools.cache
def trained() -> Any:
    return make_state(load_config("digits", FIELDS))


def a_run(box: Path) -> Run:
    run = Run.create(box / "runs" / "r", load_config("digits", FIELDS), {"sweep": "s", "trial": 3, "point": {"model.depth": 1}})
    state, rows = trained(), [row(1, 50.0), row(2, 70.0), row(3, 60.0)]
    state.epoch, state.metrics, state.best = 2, rows[1], rows[1]
    save(state, run.checkpoint_folder, run.config)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    best = {**rows[1], "checkpoint": "checkpoints/epoch-0002"}
    result = {"state": "finished", "epochs": 3, "seconds": 6.0, "best": best, "last": rows[2], "ended": "2026-01-01T00:00:00Z"}
    write_json(run.path / "result.json", result)
    write_json(run.path / "progress.json", {"epoch": 2, "epochs": 3, "step": 1, "steps": 9, "time": 1.7e9})
    return run


def shown(path: Path) -> None:
    """What `show` and `show --json` print."""
    found = details(path)
    Console(file=io.StringIO(), width=200).print(details_table(found))
    json.dumps(found)


def listed(storage: Path) -> None:
    """What `runs` prints: one that cannot be read hides no other, and leads to no sentence of its own."""
    try:
        json.dumps(overview(storage))
    except UserError as error:
        raise AssertionError(str(error)) from error


def of_run(file: str, mutate: Any) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        run = a_run(box)
        again = Run(run.path)
        reads = [
            lambda: listed(run.path.parent), lambda: shown(run.path), again.best_checkpoint, again.keeps_best, again.judged,
            lambda: (again.state, again.ended, again.damaged_lines), lambda: (again.reason, again.best, again.origin),
            lambda: again.origin.get("grid", {}).get("fields", {}).items(),
        ]  # fmt: skip
        if file in ("config.yaml", "checkpoints/epoch-0002/state.json"):
            reads += [lambda: check_resumable(Run(run.path)), lambda: load_newest(trained(), run.checkpoint_folder)]
        return Target(run.path / file, mutate, reads)

    return build


def sealed(content: bytes, rng: random.Random) -> bytes:
    """A state.json that was changed, mostly by someone who computed its digest anew."""
    if rng.random() < 0.3:
        return document(content, rng)
    tree = changed(json.loads(content), rng)
    if isinstance(tree, dict) and "digest" in tree:
        tree["digest"] = _digest({key: value for key, value in tree.items() if key != "digest"})
    return json.dumps(tree).encode()


def progress(box: Path) -> Target:
    path = a_run(box).path / "progress.json"
    return Target(path, document, [lambda: read(path, Progress)])


def logged(box: Path) -> Target:
    path = a_run(box).path / LOGGERS
    write_json(path, {"mlflow": "30f82838dee14394b9fecf887f687cea", "wandb": "dbbd6334810d"})
    return Target(path, document, [lambda: read(path, LoggedAs)])


def a_sweep(box: Path) -> Sweep:
    import optuna

    base = load_config("digits", {**FIELDS, "search.trials": 3, "search.objectives": ["val/top1", "energy_uj"]})
    tree = {"model.timesteps": {"choices": [1, 2]}, "model.block_size": {"divisors_of": "model.timesteps"}}
    about = {"commit": "abc", "versions": {"torch": "2.11.0"}, "command": ["statten", "tune"], "gpus": [], "cpus": 2}
    sweep = Sweep.create(box / "runs" / "s", base, make_space(tree, base), {"environment.json": about})
    study, source = sweep.study(), a_run(box).path
    for number, timesteps in enumerate((1, 2, 2)):
        point = {"model.timesteps": timesteps, "model.block_size": max(1, timesteps - number % 2)}
        run = Run.create(sweep.trial(number).path, sweep.space.config(point), {"sweep": "s", "trial": number, "point": point})
        for file in ("metrics.jsonl", "result.json"):
            shutil.copy(source / file, run.path)
        shutil.copytree(source / "checkpoints", run.checkpoint_folder, dirs_exist_ok=True)
        study.add_trial(optuna.trial.create_trial(
            values=[70.0 + number, 1.5], params=sweep.space.params(point), distributions=sweep.space.distributions(point),
            user_attrs={"point": point}, intermediate_values={1: 50.0, 2: 70.0}, state=optuna.trial.TrialState.COMPLETE,
        ))  # fmt: skip
    shutil.move(sweep.path / "trials" / "0002", box / "runs" / "other")
    write_json(sweep.path / "sources.json", {2: str(box / "runs" / "other")})
    shutil.rmtree(source)
    return sweep


def printed(path: Path) -> None:
    """What `best` and `report --csv` print."""
    with contextlib.redirect_stdout(io.StringIO()):
        best(str(path))
    trials = SweepTrials.read(Sweep(path))
    csv_text(documents(trials))
    json.dumps(summarize(trials))
    for row in trials.in_one_unit().rows:
        row.worked  # noqa: B018 - a property that computes


def of_sweep(file: str, mutate: Any) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        path = a_sweep(box).path
        reads = [
            lambda: listed(path.parent), lambda: shown(path), lambda: json.dumps(Sweep(path).best()),
            lambda: [(n, run.state) for n, run in Sweep(path).folders().items()], lambda: Sweep(path).space.count(),
            lambda: printed(path),
        ]  # fmt: skip
        return Target(path / file, mutate, reads)

    return build


def storage_mark(box: Path) -> Target:
    folder = box / "copy" / "r"
    folder.mkdir(parents=True)
    write_json(box / "copy" / ".storage.json", {"uri": (box / "store").as_uri()})
    (box / "store").mkdir()
    return Target(box / "copy" / ".storage.json", document, [lambda: mirror_of(folder)])


def mirror_index(box: Path) -> Target:
    files = {"config.yaml": [[10, 20], [10, 21]], "checkpoints/epoch-0001/state.json": [[], [5, 6]], "run.json": [[1, 2], None]}
    write_json(box / ".mirror.json", {"copy": "ab12", "files": files})
    mirror = Mirror(SimpleNamespace(uri="s3://bucket/runs"), "r", box)  # type: ignore[arg-type]
    return Target(box / ".mirror.json", document, [mirror._index])


def lock(box: Path) -> Target:
    path = box / ".lock"
    path.write_text(json.dumps(writer(attempt="ab", ended=False)).ljust(200))
    return Target(path, document, [lambda: read_record(path.read_bytes())], never=True)


# ---------------------------------------------------------------------------------------------------------------------
# What was measured.


def energy(of_report: bool) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        model = load_config("digits").model
        counts = {op.point: torch.tensor(100.0 + i) for i, op in enumerate(operations(model)) if op.point}
        found: Any = ledger(model, model.timesteps, counts, 8)
        if of_report:
            about = {name: found[name] for name in ("samples", "timesteps", "block_size")}
            found = {"target": "r", "top1": 50.0, **about, "energy": found, "notes": []}
        path = box / "energy.json"
        write_json(path, found)
        return Target(path, document, [lambda: check_file(path)])

    return build


def cost_cache(box: Path) -> Target:
    path = box / "costs.json"
    write_json(path, {"a1": vars(costs.Cost(10, 0.1, 0.2, 30)), "b2": vars(costs.Cost(10, 0.1, 0.2, 30))})
    return Target(path, document, [lambda: costs._known(path)], never=True)


def rate_cache(box: Path) -> Target:
    path = box / "rates.json"
    layers = [{"layer": "head", "rate": 0.5, "by_timestep": [0.4, 0.6], "state": "alive"}]
    write_json(path, {"a1": {"samples": 10, "top1": 50.0, "layers": layers}})
    return Target(path, document, [lambda: read(path, dict[str, Rates])])


def samples(box: Path) -> Target:
    path = box / "samples.safetensors"
    records = torch.rand(20, 5, dtype=torch.float64)
    save_measured(Measured(torch.arange(20), records, {"head": torch.rand(2, 3)}, 1.5, 2**20, 1), path)

    def load() -> None:
        found = load_measured(path)
        assert found.column("rank").shape == found.index.shape

    return Target(path, damaged, [load])


# ---------------------------------------------------------------------------------------------------------------------
# Weights.


def weights(box: Path) -> Target:
    path = a_run(box).checkpoint_folder / "epoch-0002" / "model.safetensors"
    alone = box / "weights.safetensors"
    shutil.copy(path, alone)
    return Target(alone, headed, [lambda: load_weights(alone)])


def headed(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with damage in its header, as a tree and as bytes, rarely elsewhere."""
    size = struct.unpack("<Q", content[:8])[0]
    header, rest = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.3:
        return damaged(content, rng)
    header = document(header, rng)
    claimed = len(header) if rng.random() < 0.8 else rng.choice((0, 2**40, 2**63 - 1, len(header) + 1))
    return struct.pack("<Q", claimed) + header + rest


def published(box: Path) -> Target:
    path = published_file(box / "published.pth.tar", load_config("digits", FIELDS), trained().model.state_dict())
    return Target(path, damaged, [lambda: load_published(path)])


# ---------------------------------------------------------------------------------------------------------------------
# Data.


def splits(box: Path) -> Target:
    path, run = box / "splits.json", load_config("digits")
    write_json(path, split_document(run))

    def few(content: bytes, rng: random.Random) -> bytes:
        tree = json.loads(content)
        return document(
            json.dumps({**tree, **{part: tree[part][:5] for part in ("train", "validation", "test")}}).encode(), rng
        )

    return Target(path, few, [lambda: check_split(run, path)])


def some_shards(box: Path) -> Path:
    shard("image_folder", formats.write_images(box / "images", {"": 3}, ["cat", "dog"]), box / "shards", 3)
    shutil.rmtree(box / "images")
    return box / "shards"


def index(box: Path) -> Target:
    root = some_shards(box)
    found = load_config("imagenet_8_512", {"data.name": "image_folder", "data.root": str(root)})

    def read_all() -> None:
        source = open_images(found)
        for i in range(len(source.labels)):
            try:
                source.read(i)
            except Damaged:
                assert source.locate(i)

    return Target(root / "index.json", document, [read_all])


def shard_file(box: Path) -> Target:
    root = some_shards(box)
    return Target(
        root / "000000.tar", damaged, [lambda: check("image_folder", root, workers=1), lambda: _scan(root / "000000.tar")]
    )


def clips(suffix: str) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        path = box / "clips" / "a" / f"x{suffix}"
        for i, name in enumerate("ab"):
            (box / "clips" / name).mkdir(parents=True)
            content = np.random.default_rng(i).integers(0, 3, (4, 2, 5, 6), dtype=np.uint8)
            if suffix == ".npy":
                np.save(box / "clips" / name / f"x{suffix}", content)
            else:
                np.savez_compressed(box / "clips" / name / f"x{suffix}", frames=content)
        return Target(path, damaged, [lambda: check("event_folder", box / "clips", 4, workers=1)])

    return build


def raw_events(name: str) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        form, path = FORMATS[name], box / f"x{FORMATS[name].suffix}"
        write = {"cifar10dvs": formats.aedat2, "ncaltech101": formats.atis, "dvs128gesture": formats.aedat3}[name]
        path.write_bytes(write(formats.random_events(0, 60, min(form.width, 128), min(form.height, 128))))
        return Target(path, damaged, [lambda: check_events(form.read(path.read_bytes()), form.height, form.width)], (Damaged,))

    return build


def recording(suffix: str) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        path, events = box / f"x{suffix}", formats.random_events(0, 60, 128, 128)
        if suffix == ".npz":
            np.savez(path, **{name: np.array(column) for name, column in zip("txyp", zip(*events, strict=True), strict=True)})
        else:
            path.write_bytes(formats.aedat2(events))
        return Target(path, damaged, [lambda: integrate(check_events(read_recording(path), 128, 128), 4, 128, 128)], (Damaged,))

    return build


def labels(box: Path) -> Target:
    path, events = box / "labels.csv", read_aedat3(formats.aedat3(formats.random_events(0, 60, 128, 128)))
    path.write_text("class,startTime_usec,endTime_usec\n1,0,300000\n2,300000,500000\n3,400000,600000\n")
    return Target(path, damaged, [lambda: list(cut_gestures(events, path.read_bytes()))], (Damaged,))


def image(form: str) -> Callable[[Path], Target]:
    def build(box: Path) -> Target:
        path, picture = box / f"x.{form.lower()}", Image.open(io.BytesIO(formats.jpeg(0)))
        picture.save(path, form)
        return Target(path, damaged, [lambda: decode_image(path.read_bytes())], (Damaged,))

    return build


def pickled(box: Path) -> Target:
    root = formats.write_cifar(box / "cifar", per_class=1, extracted=True)

    def load() -> None:
        _read_cifar.cache_clear()
        check("cifar10", root, workers=1)

    return Target(root / "cifar-10-batches-py" / "test_batch", damaged, [load])


def zipped(box: Path) -> Target:
    path = formats.write_ncaltech101(box / "root", per_class=1) / "Caltech101.zip"

    def load() -> None:
        for _, _, content in zip_members(path):
            try:
                content()
            except BROKEN as error:
                assert str(error) or error

    return Target(path, damaged, [load])


def tarred(box: Path) -> Target:
    archive = formats.write_gesture(box / "root") / "download" / "DvsGesture.tar.gz"
    import gzip

    path, out = box / "plain.tar", box / "out"
    path.write_bytes(gzip.decompress(archive.read_bytes())[: 64 * 512])
    shutil.rmtree(box / "root")

    def load() -> None:
        extract(path, out)
        shutil.rmtree(out)

    return Target(path, damaged, [load])


KINDS: dict[str, Kind] = {
    "config.yaml": Kind(config, 300), "space.yaml": Kind(space, 200), "job.yaml": Kind(job, 300),
    "run.json": Kind(of_run("run.json", document), 80), "result.json": Kind(of_run("result.json", document), 80),
    "metrics.jsonl": Kind(of_run("metrics.jsonl", lines), 80), "progress.json": Kind(progress),
    "loggers.json": Kind(logged),
    "config.yaml of a run": Kind(of_run("config.yaml", yaml_text), 80),
    "state.json": Kind(of_run("checkpoints/epoch-0002/state.json", sealed), 80),
    "sweep.json": Kind(of_sweep("sweep.json", document), 20), "sources.json": Kind(of_sweep("sources.json", document), 20),
    "environment.json": Kind(of_sweep("environment.json", document), 20),
    "study.journal": Kind(of_sweep("study.journal", lines), 20),
    "space.yaml of a sweep": Kind(of_sweep("space.yaml", yaml_text), 20),
    "result.json of a trial": Kind(of_sweep("trials/0000/result.json", document), 12),
    "metrics.jsonl of a trial": Kind(of_sweep("trials/0000/metrics.jsonl", lines), 12),
    ".storage.json": Kind(storage_mark), ".mirror.json": Kind(mirror_index), ".lock": Kind(lock),
    "energy.json": Kind(energy(False)), "report.json": Kind(energy(True)), "costs.json": Kind(cost_cache),
    "rates.json": Kind(rate_cache), "samples.safetensors": Kind(samples), "model.safetensors": Kind(weights),
    "published .pth.tar": Kind(published, 400), "splits.json": Kind(splits, 1000), "index.json": Kind(index, 1000),
    "shard .tar": Kind(shard_file, 500), "clip .npz": Kind(clips(".npz"), 700), "clip .npy": Kind(clips(".npy"), 700),
    "AEDAT 2": Kind(raw_events("cifar10dvs")), "ATIS .bin": Kind(raw_events("ncaltech101")),
    "AEDAT 3.1": Kind(raw_events("dvs128gesture")), "gesture labels": Kind(labels),
    "recording .npz": Kind(recording(".npz")), "recording .aedat": Kind(recording(".aedat")), "JPEG": Kind(image("JPEG")),
    "PNG": Kind(image("PNG")), "TIFF": Kind(image("TIFF")), "WebP": Kind(image("WebP")), "BMP": Kind(image("BMP")),
    "PPM": Kind(image("PPM")), "CIFAR pickle": Kind(pickled, 500), "archive .zip": Kind(zipped), "archive .tar": Kind(tarred),
}  # fmt: skip
