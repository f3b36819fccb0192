"""Files that are never half written: everything is written aside, flushed to disk and renamed into place."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from statten.errors import UserError, user_path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file size limit that is used up: waiting does not help."""


def cache_folder() -> Path:
    """Where things lie that can be made again: $STATTEN_CACHE, else statten in the user's cache folder."""
    named = os.environ.get("STATTEN_CACHE")
    return user_path(named) if named else user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "statten"


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replace a file's content; a reader, or (if `durable`) a machine that loses power, sees the old or the new."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, whole or not at all where the disk is full or goes away."""
    data = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=1) + "\n", durable)


def read_json(path: Path) -> Any:
    """Read a JSON file; None when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder aside that becomes `path` at the end, whole or not at all.

    Raises FileExistsError if `path` holds something by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                sync(file)
        aside.chmod(0o755)
        try:
            os.rename(aside, path)  # replaces an empty folder only
        except OSError as error:
            raise FileExistsError(f"{path} exists") from error
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# One writer.

RENEW = 10.0
"""Seconds between the renewals of a writer's record; after three that did not come, another may take its place."""


def writer(**further: Any) -> dict[str, Any]:
    """The record by which others know a writer: host, process and time."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **further}


def alive(record: dict[str, Any], seconds: float) -> bool:
    """Whether the writer of a record that was renewed so many seconds ago may still be at work."""
    if record["host"] == socket.gethostname():
        try:
            os.kill(record["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return seconds < 3 * RENEW


def taken(folder: Path | str, what: str, record: dict[str, Any] | None = None, seconds: float = 0.0) -> UserError:
    """The error for a folder that another process writes."""
    who = f": process {record['pid']} on {record['host']}, last seen {max(0, seconds):.0f} s ago" if record else ""
    return UserError(f"{folder}: another process is writing {what}; wait for it or stop it{who}")


@contextlib.contextmanager
def exclusive(folder: Path, what: str = "it") -> Iterator[None]:
    """Be the only process that writes a folder while this is open; the lock goes with the process, however it ends.

    Where machines share the folder, but not its locks (some mounts of NFS), the record in the lock's file keeps others out.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)

    def renew() -> None:
        os.pwrite(handle, json.dumps(writer()).ljust(200).encode(), 0)
        os.fsync(handle)

    try:
        text = os.pread(handle, 200, 0)
        try:
            record = json.loads(text) if text.strip() else None
        except ValueError:
            record = None
        seconds = time.time() - record["time"] if record else 0.0
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken(folder, what, record, seconds) from None
        if record and record["host"] != socket.gethostname() and alive(record, seconds):
            raise taken(folder, what, record, seconds)
        renew()
        try:
            with repeating(renew):
                yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@contextlib.contextmanager
def repeating(action: Callable[[], object], seconds: float | None = None) -> Iterator[None]:
    """Call something every so many seconds (`RENEW`), in a thread, while this is open."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(RENEW if seconds is None else seconds):
            with contextlib.suppress(OSError):  # a disk or a store that is away may come back
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
