"""Runs in object stores: a working copy of each, and its mirror in the store.

A store can neither rename nor append, and a program that writes there waits for a network. So all work goes on in a working
copy, a folder like any other, and the store is its mirror:

    $STATTEN_CACHE, else ~/.cache/statten
        <digest of the URI>/      the working copy of one storage
            .storage.json         its URI
            <run>/.mirror.json    how files were, here and in the store, when both agreed
            <run>/...             as in run.py; a sweep's trials too, each with a .mirror.json of its own

    s3://bucket/prefix
            <run>/...             the same files: a run in a store is readable without this package too
            <run>/attempt         who writes it; renewed while it is written
            <run>/.copy           the working copy that training goes on in

A checkpoint is sent file by file, state.json last: it holds the digests of the others, and without it there is no checkpoint.
Files that speak of a checkpoint (metrics.jsonl, then result.json) follow it. So whatever moment a sender dies at, a reader
finds a run as it was after some epoch, and the next sender overwrites what was left lying.
"""

import fcntl
import functools
import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statten.errors import Failed, Superseded, UserError
from statten.files import (
    RENEW,
    alive,
    check_writable,
    open_lock,
    read_record,
    repeating,
    sha256,
    taken,
    write_json,
    write_text,
    writer,
)
from statten.records.reading import read
from statten.records.runs import Seal
from statten.records.stores import Agreed, Storage, Writer
from statten.storage.store import STORAGE, Stamp, Store, explain, is_uri, join_uri, working_copy

log = logging.getLogger("statten")
Check = Callable[[], None]
"""Raises Superseded where somebody else is the writer now."""
MIRROR, COPY, ATTEMPT, LOCK = ".mirror.json", ".copy", "attempt", ".mirror.lock"
CHECKPOINT = re.compile(r"(checkpoints/[^/]+)/.+")
HIDDEN = re.compile(r"(^|/)\.|^(ray|trials|repeats)/|^attempt$")
STATE = "state.json"
MARKERS = ("run.json", "sweep.json")
"""The file that says what a folder is, a run or a sweep. Sent last when it is new: without one of them it is not there yet."""
RUNS = ("trials", "repeats")
"""Folders of a sweep that hold runs."""
PATIENCE = 300.0
"""Seconds for which a worker that begins waits for a store that does not answer; later scale.storage_seconds counts."""
SETTLE = 1.0
"""Seconds after which a writer that put its name into the store looks whether it is still there."""


SHOWN = ("events.out.tfevents.", "tensorboard/", "evaluations/")
"""How files begin that are made for people alone: events (in a folder of older versions), and evaluations."""

# What is brought: a file's path inside its run decides.


def look(file: str) -> bool:
    """The small files that tables are made of."""
    return not file.startswith(("checkpoints/", *SHOWN)) and not file.endswith(".safetensors")


def work(file: str) -> bool:
    """All that training goes on from."""
    return not file.startswith(SHOWN)


def everything(file: str) -> bool:
    """All that there is."""
    return True


# The mirror of one run or sweep.


@dataclass
class Mirror:
    """A run's (trial's, sweep's) working copy and its place in the store; of a sweep, what is outside its trials."""

    store: Store
    name: str
    path: Path

    @property
    def address(self) -> str:
        """What a worker on another machine finds it by."""
        return f"{self.store.uri}#{self.name}"

    @property
    def uri(self) -> str:
        """What a person calls it."""
        return join_uri(self.store.uri, self.name)

    # From the store.

    def pull(self, wanted: Callable[[str], bool], there: dict[str, Stamp] | None = None, wait: bool = True) -> None:
        """Bring what the store has and this copy has not.

        In the copy that training goes on in, what has changed here is newer, and stays. Any other copy is made to agree with
        the store: checkpoints that differ, or are only here, are those of an attempt that another one overtook. Without
        `wait`, a copy that another process is mirroring now is left to it.
        """
        there = _visible(self.store.listing(self.name) if there is None else there)
        if not there:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked(wait) as mine:
            if not mine:
                return
            copy, agreed = self._index()
            ours = self._owner() == copy
            for file, stamp in there.items():
                if CHECKPOINT.fullmatch(file) or not wanted(file):
                    continue
                here, known = _stamp(self.path / file), agreed.get(file, [None, None])
                if (ours and here != known[1]) or (here == known[1] and stamp == known[0]):
                    continue
                self._bring(file)
                agreed[file] = [stamp, _stamp(self.path / file)]
            for file in [f for f in agreed if f not in there and wanted(f)]:
                if not CHECKPOINT.fullmatch(file) and (not ours or _stamp(self.path / file) == agreed[file][1]):
                    (self.path / file).unlink(missing_ok=True)
                    del agreed[file]
            self._pull_checkpoints(wanted, there, agreed, ours)
            self._keep_index(copy, agreed)

    def _bring(self, file: str) -> None:
        with suppress(FileNotFoundError):  # deleted since it was listed
            self.store.get(f"{self.name}/{file}", self.path / file)

    def _pull_checkpoints(self, wanted: Callable[[str], bool], there: dict, agreed: dict, ours: bool) -> None:
        folders = _checkpoints(there)
        here = {f"checkpoints/{path.name}" for path in (self.path / "checkpoints").glob("epoch-*")}
        if not ours:
            same = {f for f, files in folders.items() if all(agreed.get(file, [None])[0] == there[file] for file in files)}
            for folder in here - same:
                log.warning("%s: training went on elsewhere, without this %s", self.uri, folder)
                shutil.rmtree(self.path / folder)
            here &= same
        for folder, files in folders.items():
            marker = f"{folder}/{STATE}"
            deleted = ours and marker in agreed and folder not in here
            if marker in files and folder not in here and not deleted and wanted(marker):
                self._bring_checkpoint(folder, files)
                agreed |= {f: [there[f], _stamp(self.path / f)] for f in files if (self.path / f).exists()}

    def _bring_checkpoint(self, folder: str, files: Iterable[str]) -> None:
        """A whole and sound checkpoint, or none."""
        final = self.path / folder
        final.parent.mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}-"))
        try:
            for file in files:
                self.store.get(f"{self.name}/{file}", aside / file.rpartition("/")[2])
            digests = _digests(aside / STATE)
            if not digests or any(not (aside / f).is_file() or sha256(aside / f) != digest for f, digest in digests.items()):
                log.warning("%s/%s is damaged in the store; the checkpoint before it counts", self.uri, folder)
                return
            aside.chmod(0o755)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(aside, final)
        except FileNotFoundError:
            return  # deleted since it was listed
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def fetch(self, checkpoint: str) -> None:
        """Bring one checkpoint, and where it is not there the newest."""
        with self.store.speaking():
            there = self.store.listing(self.name)
            folders = [f for f, files in _checkpoints(there).items() if f"{f}/{STATE}" in files]
            if folders:
                wanted = f"checkpoints/{checkpoint}" if f"checkpoints/{checkpoint}" in folders else folders[-1]
                self.pull(lambda file: file.startswith(f"{wanted}/"), there)

    # To the store.

    def claim(self, attempt: str) -> None:
        """Make this the copy that training goes on in."""
        with self._locked():
            copy, agreed = self._index()
            if self._owner() != copy:
                self._keep_index(copy, agreed)
                self.check_attempt(attempt)
                self.store.write(f"{self.name}/{COPY}", copy.encode())

    def push(self, attempt: str | None = None, whole: bool = False, only: Callable[[str], bool] = everything) -> None:
        """Send what has changed here since copy and store agreed; what was deleted here is deleted there.

        Args:
            attempt: looked for in the store before every object; raises Superseded where there is another.
            whole: this is the copy that training goes on in, with all checkpoints; those that are only in the store are
                deleted. Raises Superseded where training goes on in another one.
            only: which files.
        """
        self.check_attempt(attempt)
        with self._locked():
            copy, agreed = self._index()
            check = functools.partial(self._check_writer, attempt, copy if whole else None)
            check()
            there = _visible(self.store.listing(self.name))
            here = {file: stamp for file, stamp in self._files().items() if only(file)}
            changed = [file for file, stamp in here.items() if file not in agreed or agreed[file][1] != stamp]
            for folder, files in _checkpoints(changed).items():
                self._send_checkpoint(folder, [f for f in here if f.startswith(f"{folder}/")], there, check)
                agreed |= {file: [[], here[file]] for file in files}
                self._keep_index(copy, agreed)
            for file in sorted([f for f in changed if not CHECKPOINT.fullmatch(f)], key=_turn):
                with suppress(FileNotFoundError):  # replaced or removed by a trainer that goes on
                    self._put(file, check)
                    agreed[file] = [[], here[file]]
            for file in [f for f in agreed if f not in here and only(f) and not CHECKPOINT.fullmatch(f)]:
                self._delete(file, check)
                del agreed[file]
            kept = _checkpoints(here)
            for folder, files in _checkpoints({*agreed, *there}).items() if whole else ():
                if folder not in kept:
                    for file in sorted(files, key=lambda f: not f.endswith(STATE)):
                        self._delete(file, check)
                        agreed.pop(file, None)
            now = self.store.listing(self.name)
            for file, stamps in agreed.items():
                if not stamps[0] and file in now:
                    stamps[0] = now[file]
            self._keep_index(copy, agreed)

    def send(self, attempt: str, whole: bool = False) -> None:
        """`push` everything; raises Failed where the store cannot be reached."""
        try:
            self.push(attempt, whole)
        except OSError as error:
            raise Failed(
                f"{self.uri}: could not be written: {explain(error)}; what is not there yet lies in {self.path}, and goes "
                f"there when the run is resumed on this machine"
            ) from error

    def _send_checkpoint(self, folder: str, files: list[str], there: dict[str, Stamp], check: Check) -> None:
        marker = f"{folder}/{STATE}"
        # One of the same name but another content ends where its files are overwritten; sent again, the same stays whole.
        if marker in there and self.store.read(f"{self.name}/{marker}") != (self.path / marker).read_bytes():
            self._delete(marker, check)
        for file in sorted(files, key=lambda f: f == marker):
            self._put(file, check)

    def _put(self, file: str, check: Check) -> None:
        check()
        self.store.put(self.path / file, f"{self.name}/{file}")

    def _delete(self, file: str, check: Check) -> None:
        check()
        self.store.delete(f"{self.name}/{file}")

    def _files(self) -> dict[str, Stamp]:
        """What is mirrored of this copy."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            file = path.relative_to(self.path).as_posix()
            if (stamp := _stamp(path)) is not None:
                found[file] = stamp
        return _visible(found)

    # One writer.

    @property
    def _attempt(self) -> str:
        # A trial belongs to its sweep's writer.
        return f"{self.name.partition('/')[0]}/{ATTEMPT}"

    def check_attempt(self, attempt: str | None) -> None:
        """Raise Superseded where the store names another attempt; None belongs to none."""
        if attempt is not None and self._attempt_there() != attempt:
            raise Superseded(f"{self.uri}: a newer attempt writes this run; this one stops")

    def _check_writer(self, attempt: str | None, copy: str | None) -> None:
        """The same, and raise Superseded where training goes on in another copy than this one."""
        self.check_attempt(attempt)
        if copy is not None and (owner := self._owner()) and owner != copy:
            raise Superseded(f"{self.uri}: a worker on another machine writes this run; this one stops")

    @contextmanager
    def leased(self, attempt: str, what: str) -> Iterator[None]:
        """Be the only writer on any machine; raises UserError where another is at work.

        pyarrow has no conditional write: the name is written, and looked for again after a pause. Two who begin in the same
        moment may both find their own, but only one of them from then on, and the other one's workers stop.
        """
        with self.store.speaking():
            record, age = self._lease(), 0.0
            if record is not None and not record.get("ended"):
                age = self.store.seconds_since(self._attempt)
                if alive(record, age, self._lease):
                    raise taken(self.uri, what, record, age)
            self.store.write(self._attempt, _record(attempt))
            time.sleep(SETTLE)
            if (record := self._lease()) is None or record.get("attempt") != attempt:
                raise taken(self.uri, what, record)

        def renew(**further: Any) -> None:
            with suppress(Superseded):
                self.check_attempt(attempt)
                self.store.write(self._attempt, _record(attempt, **further))

        try:
            with repeating(renew):
                yield
        finally:
            with suppress(OSError):
                renew(ended=True)

    def written(self) -> bool:
        """Whether a process on any machine has lately said in the store that it writes here."""
        try:
            record = self._lease()
            return record is not None and not record.get("ended") and self.store.seconds_since(self._attempt) < 3 * RENEW
        except OSError:  # the store is away, and nothing is known
            return False

    def _lease(self) -> Writer | None:
        return read_record(self.store.read(self._attempt))

    def _attempt_there(self) -> str | None:
        record = self._lease()
        return record.get("attempt") if record else None

    # What is known of both sides.

    @contextmanager
    def _locked(self, wait: bool = True) -> Iterator[bool]:
        with os.fdopen(open_lock(self.path / LOCK), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def _index(self) -> tuple[str, dict[str, Any]]:
        path = self.path / MIRROR
        # Of a damaged one it is not known any more which file is the newer one.
        found = read(path, Agreed, advice=f"move {self.path} away, with what is not in {self.uri} yet, and it is made anew")
        return (found["copy"], dict(found["files"])) if found else (uuid.uuid4().hex, {})

    def _keep_index(self, copy: str, agreed: dict[str, Any]) -> None:
        write_json(self.path / MIRROR, {"copy": copy, "files": agreed}, durable=False)

    def _owner(self) -> str:
        return (self.store.read(f"{self.name}/{COPY}") or b"").decode(errors="replace")

    @property
    def known(self) -> bool:
        """Whether copy and store ever met."""
        return (self.path / MIRROR).is_file()


def _record(attempt: str, **further: Any) -> bytes:
    # Always of one length: a reader of S3 asks for the length first, and would find a longer record that came since cut off.
    return json.dumps(writer(attempt=attempt, **further)).ljust(400).encode()


def _visible(files: dict[str, Stamp]) -> dict[str, Stamp]:
    """What of a run's files is mirrored: no scratch, nothing hidden, not who writes it, of a sweep not its trials."""
    return {file: stamp for file, stamp in files.items() if not HIDDEN.search(file)}


def _checkpoints(files: Iterable[str]) -> dict[str, list[str]]:
    """Files of each checkpoint folder, oldest first."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if match := CHECKPOINT.fullmatch(file):
            found.setdefault(match[1], []).append(file)
    return found


def _turn(file: str) -> int:
    """What speaks of other files is sent after them."""
    return {"metrics.jsonl": 1, "result.json": 2, **dict.fromkeys(MARKERS, 3)}.get(file, 0)


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return None if path.is_dir() else [found.st_size, found.st_mtime_ns]


class Sender:
    """Sends a run in the background while its training goes on: one push at a time, the next waits for it."""

    def __init__(self, mirror: Mirror, attempt: str):
        self.mirror, self.attempt = mirror, attempt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="push")
        self._push: Future[None] | None = None
        self._lost = False

    def start(self) -> None:
        """Send what is there now; `wait` before the run's files change again."""
        self.wait()
        self._push = self._pool.submit(self.mirror.send, self.attempt, True)

    def wait(self) -> None:
        """Until all is sent; raises Failed where the store cannot be reached, Superseded where another writes the run."""
        push, self._push = self._push, None
        if push is not None:
            try:
                push.result()
            except Failed:
                self._lost = True  # who closes does not wait for it a second time
                raise

    def close(self) -> None:
        """Send the rest."""
        try:
            if not self._lost:
                self.start()
                self.wait()
        finally:
            self._pool.shutdown()


# From paths to mirrors.


def _digests(path: Path) -> dict[str, str]:
    """What a checkpoint's state says of its files; nothing where it is damaged."""
    try:
        seal = read(path, Seal)
    except UserError:
        seal = None
    return dict(seal["sha256"]) if seal else {}


def _storage(path: Path) -> tuple[Path, str] | None:
    """The working copy that a path lies in, and its URI; None for a plain folder."""
    for folder in (path.absolute(), *path.absolute().parents):
        if (folder / STORAGE).is_file():
            found = read(folder / STORAGE, Storage, advice='it holds the storage\'s URI, as {"uri": "s3://..."}')
            if found is not None:
                return folder, found["uri"]
    return None


def _unit(parts: tuple[str, ...]) -> str:
    """The run, sweep or trial that a file belongs to."""
    return "/".join(parts[:3] if len(parts) > 2 and parts[1] in RUNS else parts[:1])


def mirror_of(path: Path, patience: float = 0.0) -> Mirror | None:
    """The mirror of the run (trial, sweep) at a path, or that a path is inside of; None in a plain folder."""
    if (found := _storage(path)) is None:
        return None
    root, uri = found
    name = _unit(path.absolute().relative_to(root).parts)
    return Mirror(Store(uri, patience), name, root / name)


def at(address: str, attempt: str, writes: bool = False) -> Path:
    """The working copy of a run on this machine, up to date, for a worker of an attempt.

    Args:
        address: `Mirror.address`, or a folder that all machines see.
        attempt: raises Superseded where another one has the run.
        writes: whether it is this worker that writes the run.
    """
    if not is_uri(address):
        return Path(address)
    uri, _, name = address.rpartition("#")
    root = working_copy(uri)
    mirror = Mirror(Store(uri, PATIENCE), name, root / name)
    mirror.check_attempt(attempt)
    mirror.pull(work)
    if writes:
        mirror.claim(attempt)
    write_text(mirror.path / ATTEMPT, attempt)
    return mirror.path


def refresh(path: Path, wait: bool = True) -> None:
    """Bring a storage, run, sweep (with its trials) or trial up to date with the store; nothing in a plain folder.

    Of a path inside a run (a checkpoint, an evaluation), what is below it comes too.
    """
    if (found := _storage(path)) is None:
        return
    root, uri = found
    store, inside = Store(uri), path.absolute().relative_to(root).parts
    top = _unit(inside)
    below = path.absolute().relative_to(root / top).as_posix()

    def wanted(file: str) -> bool:
        return look(file) or f"{file}/".startswith(f"{below}/")

    with store.speaking():
        units: dict[str, dict[str, Stamp]] = {}
        for file, stamp in store.listing(top).items():
            parts = tuple(f"{top}/{file}".strip("/").split("/"))
            if len(parts) > 1 and not parts[0].startswith("."):
                unit = _unit(parts)
                units.setdefault(unit, {})["/".join(parts)[len(unit) + 1 :]] = stamp
        whole = [unit for unit, there in units.items() if "config.yaml" not in there or there.keys() & set(MARKERS)]
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda unit: Mirror(store, unit, root / unit).pull(wanted, units[unit], wait), whole):
                pass


def publish(path: Path) -> None:
    """Send what was written at a path inside a run (such as an evaluation's folder); nothing in a plain folder."""
    if mirror := mirror_of(path):
        inside = path.absolute().relative_to(mirror.path).as_posix()
        with mirror.store.speaking():
            mirror.push(only=lambda file: file == inside or file.startswith(f"{inside}/"))


def check_place(folder: Path) -> None:
    """Raise UserError where results cannot be written to a folder, which need not be there yet, or sent from there."""
    check_writable(folder, "name a folder for the results with --output DIR")
    if mirror := mirror_of(folder):
        mirror.store.check_writable()


def taken_names(storage: Path) -> set[str]:
    """Names of runs and sweeps in the storage that are not in its working copy."""
    if (found := _storage(storage)) is None:
        return set()
    store = Store(found[1])
    with store.speaking():
        return set(store.names())


def check_store(storage: Path, writable: bool = False) -> None:
    """Raise UserError where the store behind a working copy cannot be read (written)."""
    if found := _storage(storage):
        store = Store(found[1])
        store.check()
        if writable:
            store.check_writable()
