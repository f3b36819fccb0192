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
        events.out.tfevents.*  what TensorBoard shows; see events.py
        loggers.json      ids of the run in MLflow and W&B, where it is logged there; wandb/ holds what waits for `wandb sync`
        result.json       how it ended: finished, failed (with the reason) or stopped
        evaluation.json   what `evaluate` found on the test part
        evaluations/      its whole reports, one folder for each dataset, T and b; see evaluation/

A trial of a sweep is such a folder too, under `<storage>/<sweep>/trials/`.
"""

import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from statten.config import Config, dump_config, load_config
from statten.errors import Superseded, UserError, in_shell, nearest, user_path
from statten.files import exclusive, new_folder, write_json, write_text
from statten.records.reading import parse, read, read_bytes
from statten.records.runs import Marker, Origin, Result, Row, State
from statten.storage.mirror import Mirror, at, check_store, look, mirror_of, refresh, taken_names
from statten.storage.store import is_uri, split_uri, working_copy

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
    def info(self) -> Marker:
        """Content of the marker file."""
        return read(self.path / self.marker, Marker) or {}

    @classmethod
    def open(cls, path: Path):
        """Open an existing folder of this kind; raises UserError when it is none."""
        if not path.is_dir():
            raise UserError(f"{path}: no such {cls.noun}; {_neighbours(path)}")
        if not (path / cls.marker).is_file():
            raise UserError(f"{path}: is not a {cls.noun} folder, for it holds no {cls.marker}{_instead(path)}")
        return cls(path)

    @classmethod
    def _make(
        cls, path: Path, config: Config, about: dict[str, Any], extra: dict[str, Any] | None, add: Callable[[Path], object]
    ):
        """Make a folder of this kind, whole or not at all; raises UserError when the name is taken.

        Args:
            path: where; its last part is the name.
            config: what config.yaml holds.
            about: further content of the marker file.
            extra: file names to further JSON content, such as splits.json.
            add: puts in what this kind alone has.
        """
        check_name(path.name)
        refresh(path)
        try:
            with new_folder(path) as aside:
                write_json(aside / cls.marker, {"kind": cls.noun, "created": now(), **about}, durable=False)
                write_text(aside / "config.yaml", dump_config(config), durable=False)
                for name, content in (extra or {}).items():
                    write_json(aside / name, content, durable=False)
                add(aside)
        except FileExistsError:
            raise exists(path) from None
        return cls(path)

    @classmethod
    def at(cls, address: str, attempt: str, writes: bool = False):
        """The folder that an `address` means on this machine; see `mirror.at`."""
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
        return in_shell(self.where)

    def facts(self) -> list[tuple[str, object]]:
        """What a notebook shows of it."""
        return [("name", self.name), ("folder", self.where)]

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in self.facts())
        return f"<table>{rows}</table>"

    @property
    def resume_command(self) -> str:
        """What goes on with it, as it is typed in a shell."""
        if mirror_of(self.path):
            return f"statten resume {self.typed}"
        storage = self.path.absolute().parent
        elsewhere = "" if storage == default_storage().absolute() else f" --storage {in_shell(storage)}"
        return f"statten resume {in_shell(self.name)}{elsewhere}"

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Whoever is stopped by a signal meanwhile is told how to go on; see cli/stopping.py."""
        try:
            yield
        except KeyboardInterrupt as error:
            error.add_note(self.resume_command)
            raise

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
            stack.enter_context(self.resumable())
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

        def add(aside: Path) -> None:
            if weights:
                shutil.copyfile(weights, aside / "initial.safetensors")
            (aside / "checkpoints").mkdir()

        return cls._make(path, config, {"origin": origin}, extra, add)

    @property
    def checkpoint_folder(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def origin(self) -> Origin:
        """Where it comes from; empty for a run of its own."""
        return self.info.get("origin") or {}

    @property
    def result(self) -> Result | None:
        """How the run ended; None while it has not."""
        return read(self.path / "result.json", Result)

    @property
    def best(self) -> dict[str, Any]:
        """Metrics of its best epoch, and `checkpoint`, as its result says; empty before it is finished."""
        result = self.result
        return result.get("best", {}) if result else {}

    @property
    def reason(self) -> str | None:
        """Why it ended without a result, where its result says so."""
        return result.get("reason") if (result := self.result) else None

    @property
    def state(self) -> str:
        """finished, failed, stopped (early, by a sweep), unfinished, or damaged where result.json cannot be read."""
        try:
            return result.get("state", "unfinished") if (result := self.result) else "unfinished"
        except UserError:
            return "damaged"

    def facts(self) -> list[tuple[str, object]]:
        """What a notebook shows of it."""
        rows, epochs = self.metrics(), self.config.train.total_epochs
        best = best_row(rows) if rows else None
        found = [("best validation top-1", f"{best['val/top1']:.2f} % at epoch {int(best['epoch'])}")] if best else []
        return [*super().facts(), ("state", self.state), ("epochs", f"{len(rows)} of {epochs}"), *found]

    @property
    def ended(self) -> bool:
        """Whether it is known how it ended; else it goes on from its newest checkpoint."""
        return self.state not in ("unfinished", "damaged")

    def metrics(self) -> list[dict[str, float]]:
        """One row per finished epoch; lines that are damaged, or were cut off by a crash, are left out."""
        return [row for row in self._lines() if row is not None]

    @property
    def damaged_lines(self) -> int:
        """Lines of metrics.jsonl that cannot be read, but for a last one that was cut off: that epoch is trained again."""
        return self._lines()[:-1].count(None)

    def _lines(self) -> list[dict[str, float] | None]:
        """The lines of metrics.jsonl, None for one that is no row of an epoch."""
        try:
            lines = read_bytes(self.path / "metrics.jsonl").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.path / 'metrics.jsonl'}: cannot be read: {error.strerror}") from None
        return [_row(line) for line in lines]

    def judged(self) -> dict[str, float]:
        """The row of the epoch that it is judged by; raises UserError where there is none."""
        if rows := self.metrics():
            return best_row(rows)
        raise UserError(f"{self.path}: metrics.jsonl holds no epoch that can be read; finish one with: {self.resume_command}")

    def best_checkpoint(self) -> Path:
        """The checkpoint of the best epoch; raises UserError where there is none."""
        epoch = self._best_epoch()
        name = f"epoch-{epoch or 0:04d}"
        path = self.checkpoint_folder / name
        if not path.is_dir() and (mirror := mirror_of(self.path)):
            mirror.fetch(name)
        if path.is_dir():
            return path
        paths = checkpoints(self.checkpoint_folder)
        if not paths:
            raise UserError(f"{self.path}: holds no checkpoint yet; finish an epoch with: statten resume {in_shell(self.name)}")
        if epoch is not None:
            raise UserError(
                f"{self.path}: the checkpoint of its best epoch, {name}, is not there; the newest is {paths[-1].name}"
            )
        return paths[-1]  # the first epoch is not finished

    def keeps_best(self) -> bool:
        """Whether the checkpoint that its result names is there; a copy that was taken while it was written may not have it."""
        name = self.best.get("checkpoint")
        return name is None or mirror_of(self.path) is not None or (self.path / name).is_dir()

    def _best_epoch(self) -> int | None:
        """The epoch that the run is judged by; None before the first."""
        epoch = self.best.get("epoch")
        if epoch is None and self.damaged_lines and (found := checkpoints(self.checkpoint_folder)):
            state = read(found[-1] / "state.json", State)
            epoch = state["best"].get("epoch") if state else None
        rows = self.metrics()
        return int(best_row(rows)["epoch"]) if epoch is None and rows else epoch if epoch is None else int(epoch)

    @property
    def attempt(self) -> str:
        """Name of the newest attempt to write this run."""
        return (self.path / "attempt").read_text(encoding="utf-8", errors="replace")

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


def _row(line: bytes) -> dict[str, float] | None:
    """A line of metrics.jsonl; None where it is damaged."""
    try:
        return parse(line, Row, "metrics.jsonl")
    except UserError:
        return None


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """The epoch that a run is judged by: highest validation top-1, then lowest validation loss."""
    return max(rows, key=lambda row: (row["val/top1"], -row["val/loss"]))


def written(path: Path) -> bool:
    """Whether a process is writing a run or a sweep: it holds the folder's lock, or its lease in a store."""
    try:
        handle = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no lock, or none of ours
        handle = None
    if handle is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return (mirror := mirror_of(path)) is not None and mirror.written()


def _instead(path: Path) -> str:
    """The end of a sentence about a folder of another kind: what to do with a supernet."""
    if not (path / "supernet.json").is_file():
        return ""
    name = in_shell(path.name)
    return f"; it is a supernet: see its points with statten show {name}, train one with statten promote {name} --trial N"


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


def storage_folder(storage: str | Path | None = None) -> Path:
    """The folder of all runs that a folder, a URI or None (the default) means; raises UserError where it cannot be one."""
    folder = default_storage() if storage is None else working_copy(str(storage))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--storage: must be a folder, but {folder} is a file")
    check_store(folder)
    return folder


def folder_for(storage: Path, name: str | None, stem: str) -> Path:
    """The new folder of a run or sweep: of its name, or of the first free one that begins with `stem`."""
    if name is not None:
        check_name(name)
    path = storage / (name or free_name(storage, stem))
    parent = next(p for p in [storage, *storage.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--storage: {storage} cannot be written")
    check_store(storage, writable=True)
    refresh(path)
    return path


def locate(target: str | Path, storage: Path) -> Path:
    """The folder that a name, path or URI means, up to date; names are looked up in the storage first."""
    if is_uri(str(target)):
        uri, target = split_uri(str(target))
        storage = working_copy(uri)
    target = user_path(target)
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


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    names = re.compile(r"epoch-\d{4,}(-step-\d{6,})?")
    return sorted(path for path in folder.glob("epoch-*") if names.fullmatch(path.name))
