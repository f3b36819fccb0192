"""Files that are never half written: everything is written aside, flushed to disk and renamed into place."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from statten.errors import UserError, user_path
from statten.records.reading import parse
from statten.records.stores import Writer

log = logging.getLogger("statten")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file size limit that is used up: waiting does not help."""


ROOM = 8 << 20
"""Bytes that must fit where results will be written: a page holds plotly.js, about 5 MB."""


def cache_folder() -> Path:
    """Where things lie that can be made again: $STATTEN_CACHE, else statten in the user's cache folder."""
    named = os.environ.get("STATTEN_CACHE")
    path = user_path(named) if named else user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "statten"
    return temporary_folder() if path.parts[:1] == ("~",) else path  # a user without a home


def temporary_folder() -> Path:
    """This user's own place where the cache folder cannot be used."""
    return Path(tempfile.gettempdir()) / f"statten-{os.getuid()}"


def cache_folders() -> tuple[Path, ...]:
    """Where what was made may lie, in the order of choice."""
    return cache_folder(), temporary_folder()


def own_cache() -> Path:
    """The first of the cache folders, made where it is missing, that can be written, and by this user or root alone.

    Raises:
        UserError: there is none.
    """
    reasons = []
    for folder in cache_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if private(folder):
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            reason = "others can write there, or it is another user's"
        except OSError as error:
            reason = os.strerror(error.errno or 0)
        log.warning("%s is not used as cache: %s; name another folder in $STATTEN_CACHE", folder, reason)
        reasons.append(f"{folder}: {reason}")
    raise UserError(f"no folder can be used as cache: {'; '.join(reasons)}; name another in $STATTEN_CACHE")


def private(path: Path) -> bool:
    """Whether nobody but this user and root can write a file, or put one into a folder."""
    found = path.stat()
    return found.st_uid in (0, os.getuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def check_writable(path: Path, instead: str) -> None:
    """Raise UserError unless files can be made in a folder, which need not be there yet: by making one.

    Permission bits do not tell: a mount may be read-only, a disk full. `instead` is what the user can do.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(ROOM))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {there}: {os.strerror(error.errno or 0)}; {instead}") from None


def describe_file(path: Path) -> str | None:
    """What a file is that was taken for one with weights, as far as its first bytes tell."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "zeros: its content never arrived"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"
    if b"annex/objects/" in start[:200]:
        return "a git-annex pointer, not the file itself; fetch it with: git annex get"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, such as one that says why a download failed"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "a zip archive without its end: half a file"
    for kind, *marks in _KINDS:
        if head.startswith(tuple(marks)):
            return str(kind)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20:
        return "a safetensors file"
    try:
        text = head[:-4].decode() if len(head) == 4096 else head.decode()  # a character may be cut
    except UnicodeDecodeError:
        return None
    line = text.strip().splitlines()[0][:40] if text.strip() else ""
    return None if any(c < " " and c not in "\t\r\n\f" for c in text) else f"text: {line!r}"


_KINDS: list[tuple[Any, ...]] = [
    ("a gzip archive", b"\x1f\x8b"),
    ("an HDF5 file, as Keras writes it", b"\x89HDF\r\n\x1a\n"),
    ("a picture", b"\x89PNG", b"\xff\xd8\xff", b"GIF8"),
    ("a PDF", b"%PDF"),
    ("a NumPy array", b"\x93NUMPY"),
    ("a 7z, bzip2, xz or zstd archive", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
    ("XML", b"<?xml"),
]


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


def cut_torn_line(path: Path) -> None:
    """Cut off a last line that a crash or a full disk left without its end; a file that is not there is whole."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """Replace a JSON file."""
    write_text(path, json.dumps(value, indent=1) + "\n", durable)


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
WATCH = 1.2
"""For so many of them a record is watched whose time says nothing."""
DAY = 86_400.0
"""Seconds by which the clocks of two machines may differ."""


def writer(**further: Any) -> dict[str, Any]:
    """The record by which others know a writer: host, process and time."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), **further}


def read_record(content: bytes | None) -> Writer | None:
    """A writer's record; None where there is none, or what is there is damaged."""
    try:
        return parse(content or b"", Writer, "record")
    except UserError:
        return None


def alive(record: Writer, seconds: float, again: Callable[[], Writer | None]) -> bool:
    """Whether the writer of a record may still be at work.

    Args:
        record: as it was read.
        seconds: since it was renewed, by this machine's clock. Clocks of machines differ: a record that looks old, or comes
            from the future, but by less than a day, is watched for longer than a renewal takes.
        again: reads it anew.
    """
    if record["host"] == socket.gethostname():
        try:
            os.kill(record["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    if abs(seconds) < 3 * RENEW or abs(seconds) > DAY:
        return abs(seconds) < 3 * RENEW
    when = f"was last seen {seconds:.0f} s ago" if seconds > 0 else f"has a clock that is {-seconds:.0f} s ahead"
    log.warning("a writer on %s %s; looking for %.0f s whether it is at work", record["host"], when, WATCH * RENEW)
    time.sleep(WATCH * RENEW)
    return again() != record


def taken(folder: Path | str, what: str, record: Writer | None = None, seconds: float = 0.0) -> UserError:
    """The error for a folder that another process writes."""
    who = f": process {record['pid']} on {record['host']}, last seen {max(0, seconds):.0f} s ago" if record else ""
    return UserError(f"{folder}: another process is writing {what}; wait for it or stop it{who}")


def open_lock(path: Path) -> int:
    """Open the file of a lock, made where there is none, and leave its content alone.

    Raises:
        UserError: it cannot be written, or a link leads elsewhere: what is there is somebody's own.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if not os.path.lexists(path) or error.errno in (errno.EROFS, errno.EACCES):
            raise UserError(f"{path.parent}: cannot be written: {os.strerror(error.errno or 0)}") from None
        raise UserError(f"{path}: must be a plain file, for it is a lock; remove it") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise UserError(f"{path}: must be a plain file without further links, for it is a lock; remove it")
    return handle


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, and wait for whoever holds it."""
    handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(folder: Path, what: str = "it") -> Iterator[None]:
    """Be the only process that writes a folder while this is open; the lock goes with the process, however it ends.

    Where machines share the folder, but not its locks (some mounts of NFS), the record in the lock's file keeps others out.
    """
    handle = open_lock(folder / ".lock")

    def read() -> Writer | None:
        return read_record(os.pread(handle, 200, 0))

    def renew() -> None:
        os.pwrite(handle, json.dumps(writer()).ljust(200).encode(), 0)
        os.fsync(handle)

    try:
        record = read()
        seconds = time.time() - record["time"] if record else 0.0
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken(folder, what, record, seconds) from None
        if record and record["host"] != socket.gethostname() and alive(record, seconds, read):
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
