"""The run folder: everything a run is, readable without this package.

    <storage>/<name>/
        run.json          kind, creation, origin (the checkpoint that it started from)
        config.yaml       the whole validated config
        environment.json  versions, commit, hardware
        splits.json       indices of the train, validation and test parts (split.py: bits, where there are many)
        initial.safetensors  weights that it started from, if not from the seed
        metrics.jsonl     one line per finished epoch
        train.log         warnings and choices of the workers
        progress.json     where the current epoch is
        checkpoints/      see checkpoint.py
        tensorboard/      one event folder
        result.json       how it ended: finished, failed (with the reason) or stopped
        evaluation.json   what `evaluate` found on the test part
        evaluations/      its whole reports, one folder for each dataset, T and b; see evaluation/

A trial of a sweep is such a folder too, under `<storage>/<sweep>/trials/`.
"""

import errno
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from statten.config import Config, dump_config, load_config
from statten.errors import Superseded, UserError, nearest
from statten.files import FULL, append_line, exclusive, new_folder, read_json, write_json, write_text
from statten.remote import Mirror, Sender, at, is_uri, look, mirror_of, refresh, split_uri, taken_names, working_copy

log = logging.getLogger("statten")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_storage() -> Path:
    """`$STATTEN_STORAGE`, else ./runs."""
    return working_copy(os.environ.get("STATTEN_STORAGE") or "runs")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RunFolder:
    """What runs, trials and sweeps have in common: a marker file that names their kind, a config, one writer at a time."""

    marker = "run.json"
    noun = "run"

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def config(self) -> Config:
        """The config that it was started with; read once."""
        return load_config(self.path / "config.yaml")

    @property
    def info(self) -> dict[str, Any]:
        """Content of the marker file."""
        return read_json(self.path / self.marker) or {}

    @classmethod
    def open(cls, path: Path):
        """Open an existing folder of this kind; raises UserError when it is none."""
        if not path.is_dir():
            raise UserError(f"{path}: no such {cls.noun}; {_neighbours(path)}")
        if not (path / cls.marker).is_file():
            raise UserError(f"{path}: is not a {cls.noun} folder, for it holds no {cls.marker}")
        return cls(path)

    @classmethod
    def at(cls, address: str, attempt: str, writes: bool = False):
        """The folder that an `address` means on this machine; see `remote.at`."""
        return cls(at(address, attempt, writes))

    @property
    def address(self) -> str:
        """What a worker on any machine finds it by."""
        mirror = mirror_of(self.path)
        return mirror.address if mirror else str(self.path.resolve())

    @property
    def where(self) -> str:
        """What a person calls it: its URI or its path."""
        mirror = mirror_of(self.path)
        return mirror.uri if mirror else str(self.path)

    @property
    def typed(self) -> str:
        """The same as it is typed in a shell, to which a URI's `?` and `&` mean something else."""
        return shlex.quote(self.where)

    def refresh(self, wait: bool = True) -> None:
        """See what workers elsewhere have written; nothing in a plain folder. Without `wait`, not while a worker here sends."""
        refresh(self.path, wait)

    def publish(self, attempt: str) -> None:
        """Show workers elsewhere what was written here; nothing in a plain folder."""
        if mirror_of(self.path) and (mirror := mirror_of(self.path, self.config.scale.storage_seconds)):
            mirror.claim(attempt)
            mirror.push(attempt)

    def hand_over(self, attempt: str) -> str:
        """Let workers of an attempt, on any machine, write this run, and return the address that they find it by."""
        write_text(self.path / "attempt", attempt)
        self.publish(attempt)
        return self.address

    @contextmanager
    def writing(self) -> Iterator[str]:
        """Be the only writer while this is open, and yield the name of this attempt.

        The lock goes with the process, however it ends. Workers of an earlier attempt that outlive it find a new name in
        the file `attempt` (in a store, in the object), and stop.
        """
        attempt, mirror = uuid.uuid4().hex, mirror_of(self.path)
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.path, f"this {self.noun}"))
            if mirror:
                stack.enter_context(mirror.leased(attempt, f"this {self.noun}"))
                self._meet(mirror, attempt)
            write_text(self.path / "attempt", attempt)
            try:
                yield attempt
            finally:
                if mirror and (patient := mirror_of(self.path, self.config.scale.storage_seconds)):
                    with suppress(Superseded):
                        patient.send(attempt)

    def _meet(self, mirror: Mirror, attempt: str) -> None:
        """Make copy and store agree before anything is written; raises UserError where the name is another run's."""
        with mirror.store.speaking():
            if mirror.known:
                mirror.pull(look)
            elif self.marker in mirror.store.listing(mirror.name):
                raise exists(self.path)
            self.publish(attempt)


class Run(RunFolder):
    """A training run (or a trial of a sweep) on disk."""

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        origin: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        weights: Path | None = None,
    ) -> "Run":
        """Make the folder, whole or not at all; raises UserError when the name is taken.

        `extra` maps file names to further JSON content, such as splits.json; `weights` is copied to initial.safetensors.
        """
        check_name(path.name)
        refresh(path)
        try:
            with new_folder(path) as aside:
                write_json(aside / cls.marker, {"kind": "run", "created": now(), "origin": origin}, durable=False)
                write_text(aside / "config.yaml", dump_config(config), durable=False)
                for name, content in (extra or {}).items():
                    write_json(aside / name, content, durable=False)
                if weights:
                    shutil.copyfile(weights, aside / "initial.safetensors")
                (aside / "checkpoints").mkdir()
        except FileExistsError:
            raise exists(path) from None
        return cls(path)

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """How the run ended; None while it has not."""
        return read_json(self.path / "result.json")

    @property
    def state(self) -> str:
        """finished, failed, stopped (early, by a sweep) or unfinished."""
        return (self.result or {}).get("state", "unfinished")

    def metrics(self) -> list[dict[str, float]]:
        """One row per finished epoch; a line that was cut off by a crash is left out."""
        rows = []
        path = self.path / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def best_checkpoint(self) -> Path:
        """The checkpoint of the best epoch, else the newest; raises UserError when no epoch is finished."""
        from statten.checkpoint import checkpoints

        rows = self.metrics()
        name = f"epoch-{best_row(rows)['epoch'] if rows else 0:04d}"
        if not (self.checkpoint_folder / name).is_dir() and (mirror := mirror_of(self.path)):
            mirror.fetch(name)
        paths = checkpoints(self.checkpoint_folder)
        for path in paths:
            if path.name == name:
                return path
        if not paths:
            raise UserError(f"{self.path}: holds no checkpoint yet; finish an epoch with: statten resume {self.name}")
        return paths[-1]

    @property
    def attempt(self) -> str:
        """Name of the newest attempt to write this run."""
        return (self.path / "attempt").read_text(encoding="utf-8")

    def note(self, text: str) -> None:
        """Add a line to train.log from another process than the workers; the person at the screen sees it too."""
        with suppress(OSError), (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def fail(self, reason: str, state: str = "failed", cause: str | None = None) -> None:
        """Record that the run ended without a result, and why; `cause` is one of faults.py's kinds."""
        causes = {"cause": cause} if cause else {}
        write_json(self.path / "result.json", {"state": state, "reason": reason, **causes, "ended": now()})

    def stop(self, reason: str) -> None:
        """Record that a sweep stopped this trial early, and why."""
        self.fail(reason, "stopped")


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """The epoch that a run is judged by: highest validation top-1, then lowest validation loss."""
    return max(rows, key=lambda row: (row["val/top1"], -row["val/loss"]))


class RunReport:
    """What `fit` reports, written to the run folder by rank 0: checkpoint, then metrics, then TensorBoard.

    Where the storage is away, every write but that of the progress waits for it, at most `scale.storage_seconds`.

    Args:
        then: called on every rank after each epoch with the metrics: Ray's own report.
        leave: called on every rank after each step; true asks for a checkpoint, and to leave.
    """

    PROGRESS_SECONDS = 0.5

    def __init__(
        self,
        run: Run,
        config: Config,
        attempt: str,
        rank: int = 0,
        then: Callable[[dict[str, float]], object] | None = None,
        leave: Callable[[], bool] = lambda: False,
    ):
        self.run, self.config, self.attempt, self.rank, self.then, self.leave = run, config, attempt, rank, then, leave
        mirror = mirror_of(run.path, config.scale.storage_seconds) if rank == 0 else None
        self._sender = Sender(mirror, attempt) if mirror else None
        self._events: Any = None
        self._purge: int | None = None
        self._progress_at = 0.0

    def begin(self, state: Any) -> None:
        """Make the folder agree with the state that training starts from."""
        if self.rank == 0:
            self._patiently(self._begin, state)

    def _begin(self, state: Any) -> None:
        self._check_attempt()
        for aside in self.run.checkpoint_folder.glob(".epoch-*"):  # a killed process did not finish it
            shutil.rmtree(aside, ignore_errors=True)
        (self.run.path / "result.json").unlink(missing_ok=True)
        rows = [row for row in self.run.metrics() if row["epoch"] < state.epoch]
        stale = (self.run.path / "metrics.jsonl").exists()
        if state.metrics:
            # The last finished epoch comes from the checkpoint: a crash may have struck between the two.
            rows.append(state.metrics)
        if stale or rows:
            write_text(self.run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            self._purge = state.epoch
            if state.metrics:
                self._write_events(state)

    def step(self, state: Any, steps: int) -> bool:
        """Tell where the epoch is, a few times a second."""
        if self.rank == 0 and time.monotonic() - self._progress_at >= self.PROGRESS_SECONDS:
            self._progress_at = time.monotonic()
            progress = {"epoch": state.epoch, "epochs": self.config.train.total_epochs, "step": state.step, "steps": steps}
            with suppress(OSError):  # nobody needs it to go on
                write_json(self.run.path / "progress.json", {**progress, "time": time.time()}, durable=False)
        return self.leave()

    def checkpoint(self, state: Any) -> None:
        """Write a checkpoint inside an epoch."""
        if self.rank == 0:
            self._await_store()
            self._patiently(self._save, state)
            self._send()

    def epoch(self, state: Any) -> None:
        """Keep a finished epoch."""
        if self.rank == 0:
            self._await_store()
            self._patiently(self._save, state)
            self._patiently(append_line, self.run.path / "metrics.jsonl", json.dumps(state.metrics))
            self._patiently(self._write_events, state)
            self._send()
        if self.then:
            self._await_store()  # who hears of the epoch may look for it there
            self.then(dict(state.metrics))

    def end(self, state: Any) -> None:
        """Keep the result of the whole run."""
        if self.rank == 0:
            self._patiently(self._end, state)

    def _end(self, state: Any) -> None:
        self._check_attempt()
        best = {**state.best, "checkpoint": str(self.run.best_checkpoint().relative_to(self.run.path))}
        seconds = sum(row["seconds"] for row in self.run.metrics())
        result = {"state": "finished", "epochs": state.epoch, "seconds": seconds, "best": best, "last": state.metrics}
        write_json(self.run.path / "result.json", {**result, "ended": now()})
        (self.run.path / "progress.json").unlink(missing_ok=True)

    def close(self, failed: bool) -> None:
        """Close the event file, mark the HParams session as ended and see that a store has everything."""
        if self._events is not None:
            from torch.utils.tensorboard.summary import hparams

            end = hparams({}, {})[2]
            if failed:
                from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
                from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

                content = HParamsPluginData.FromString(end.value[0].metadata.plugin_data.content)
                content.session_end_info.status = STATUS_FAILURE
                end.value[0].metadata.plugin_data.content = content.SerializeToString()
            with suppress(OSError):  # storage that is away or full has been told of
                self._events.file_writer.add_summary(end)
                self._events.close()
            self._events = None
        if self._sender:
            with suppress(*[RuntimeError] if failed else []):  # there is a better reason already
                self._sender.close()

    def _await_store(self) -> None:
        """Files of this run change again: what is on its way to a store must have arrived."""
        if self._sender:
            self._sender.wait()

    def _send(self) -> None:
        if self._sender:
            self._sender.start()

    def _patiently(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write to the run's folder, which must be there: an empty mount point, or a folder made anew, is not it."""
        began, pause = time.monotonic(), 0.0
        while True:
            try:
                if not (self.run.path / self.run.marker).is_file():
                    raise FileNotFoundError(errno.ENOENT, "the run's folder is not there", str(self.run.path))
                write(*arguments)
                if pause:
                    log.warning("the storage is back after %.0f s", time.monotonic() - began)
                return
            except OSError as error:
                seconds = self.config.scale.storage_seconds
                if error.errno in FULL or time.monotonic() - began >= seconds:
                    raise
                if not pause:
                    log.warning("waiting for the storage, up to %g s (scale.storage_seconds): %s", seconds, error)
            pause = min(max(0.5, 2 * pause), 15.0)
            time.sleep(pause)

    def _check_attempt(self) -> None:
        if self.run.attempt != self.attempt:
            raise Superseded(f"{self.run.path}: a newer attempt writes this run; this one stops")

    def _save(self, state: Any) -> None:
        from statten import checkpoint

        self._check_attempt()
        checkpoint.save(state, self.run.checkpoint_folder)
        checkpoint.prune(self.run.checkpoint_folder, self.config.train.keep_checkpoints, state.best.get("epoch"))

    def _write_events(self, state: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._events is None:  # made with the first row, so that no event file is empty
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self._purge)
            for summary in _hparams_summaries(self.config, (self.run.info.get("origin") or {}).get("point")):
                self._events.file_writer.add_summary(summary)
        try:
            # HParams shows a tag's last value: the best so far needs a tag of its own.
            values = {**state.metrics, "best/top1": state.best["val/top1"]}
            scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if tag != "epoch"]
            self._events.file_writer.add_summary(Summary(value=scalars), state.epoch)
            self._events.flush()
        except OSError:
            self._events, self._purge = None, state.epoch  # the writer's thread ended with it
            raise


class _LogFile(logging.FileHandler):
    """A log file whose storage may be away when a line is written: that line is then on the screen alone."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)


@contextmanager
def logging_to(path: Path, rank: int) -> Iterator[None]:
    """Also write rank 0's log lines of this package to a file of the run folder."""
    logger = logging.getLogger("statten")
    if rank:
        yield
        return
    handler = _LogFile(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _hparams_summaries(config: Config, point: dict[str, Any] | None) -> list[Any]:
    """What TensorBoard's HParams page needs: all hyperparameters, the few that it shows at first marked."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    flat = {}
    for part in ("data", "model", "train"):
        for name, value in getattr(config, part).model_dump(mode="json").items():
            if value is not None:
                flat[f"{part}.{name}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    experiment, start, _ = hparams(flat, {"best/top1": 0.0, "val/loss": 0.0})
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    shown = {*(point or {}), "model.timesteps", "model.block_size", "model.depth", "model.embed_dim", "train.lr"}
    for field in content.experiment.hparam_infos:
        field.differs = field.name in shown
    plugin.content = content.SerializeToString()
    return [experiment, start]


# ---------------------------------------------------------------------------------------------------------------------
# Names and places.


def check_name(name: str) -> None:
    """Raise UserError unless a folder's name is one that every file system and TensorBoard can show."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"--name: must be letters, digits, '.', '_' or '-', at most 100 and starting with a letter or digit, "
            f"but got {name!r}; the nearest is {re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-_')[:100] or 'run'!r}"
        )


def exists(path: Path) -> UserError:
    """The error for a name that is taken."""
    return UserError(f"{path}: exists already; choose another --name, or continue it with: statten resume {path.name}")


def free_name(storage: Path, stem: str) -> str:
    """The first of stem-001, stem-002, ... that is not taken."""
    taken = {path.name for path in storage.iterdir()} if storage.is_dir() else set()
    taken |= taken_names(storage)
    number = 1
    while f"{stem}-{number:03d}" in taken:
        number += 1
    return f"{stem}-{number:03d}"


def locate(target: str | Path, storage: Path) -> Path:
    """The folder that a name, path or URI means, up to date; names are looked up in the storage first."""
    if is_uri(str(target)):
        uri, target = split_uri(str(target))
        storage = working_copy(uri)
    path = storage / target
    refresh(path)
    if path.exists():
        return path
    if Path(target).exists():
        refresh(Path(target))
        return Path(target)
    raise UserError(f"{target}: no such run or sweep in {storage}; {_neighbours(path)}")


def _neighbours(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*/") if not p.name.startswith(".")) if path.parent.is_dir() else []
    return nearest(path.name, names) if names else f"{path.parent} holds none"


def environment() -> dict[str, Any]:
    """Versions, commit and hardware: what a reviewer needs to rerun a number."""
    import torch

    packages = ("statten", "torch", "torchvision", "timm", "ray", "optuna", "spikingjelly", "numpy", "scikit-learn")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    commit: str | None = None
    with suppress(OSError, subprocess.SubprocessError):  # installed without its repository
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": commit,
        "command": sys.argv,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return match.group(1) if match else platform.processor()
