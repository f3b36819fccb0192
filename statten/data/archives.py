"""What is inside an archive or an array file that anybody may have made: checked before it is read or written.

Nothing lands outside its folder, no link is made or followed, and no size is believed before memory is taken for it.
"""

import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from statten.data.dataset import Damaged
from statten.errors import UserError, first_line

BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, RuntimeError, ValueError,
    OverflowError,
)  # fmt: skip
"""What readers raise at archives that are damaged, encrypted (RuntimeError) or packed in an unknown way."""
MEMBERS = 2_000_000
"""Members of an archive at most."""
NAME, PATH = 255, 1024
"""Bytes of a name and of a path at most; beyond them systems cut, refuse or loop."""
WORDS = 200
"""Characters of what a library says of a damaged file, at most."""
RAW, FILE, TOTAL = 2**28, 2**30, 2**38
"""Bytes of a raw event file, of any file in memory, and of a whole archive at most, unpacked: 256 MiB, 1 GiB, 256 GiB."""


def member_path(name: str) -> PurePosixPath:
    """The path of a member; raises Damaged where it is none inside its archive."""
    path, data = PurePosixPath(name), os.fsencode(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise Damaged(f"its member {_short(name)} has a path that leads elsewhere")
    if len(data) > PATH or any(len(os.fsencode(part)) > NAME for part in path.parts):
        raise Damaged(f"its member {_short(name)} has a path of {len(data):,} bytes, but {PATH:,} ({NAME} a part) are the most")
    return path


def _short(name: str) -> str:
    return ascii(name if len(name) <= 60 else f"{name[:57]}...")


def zip_members(path: Path) -> list[tuple[PurePosixPath, str, Callable[[], bytes]]]:
    """Path, name and reader of every file in a zip archive, sorted by name; raises UserError, and the readers BROKEN."""
    try:
        archive = zipfile.ZipFile(path)
        _limit(len(archive.infolist()), sum(info.file_size for info in archive.infolist()), TOTAL)
        found: list[tuple[PurePosixPath, str, Callable[[], bytes]]] = []
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            inside = member_path(info.filename)
            if info.file_size > RAW or stat.S_ISLNK(info.external_attr >> 16):
                raise Damaged(f"its member {_short(info.filename)} is a link or has more than {RAW:,} bytes")
            if not info.is_dir():
                found.append((inside, info.filename, partial(archive.read, info)))
        return found
    except (Damaged, *BROKEN) as error:
        raise UserError(f"{path}: is no whole zip file of plain files ({error})") from None


def extract(path: Path, folder: Path) -> None:
    """Unpack a tar archive of plain files into a new folder, whole or not at all; raises UserError."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an extraction that was killed
    try:
        aside.mkdir()
        room, total, inside = min(TOTAL, shutil.disk_usage(aside).free), 0, os.path.realpath(aside)
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive, 1):
                target = aside / member_path(member.name) if member.name != "." else aside
                if os.path.commonpath([inside, os.path.realpath(target)]) != inside or not (member.isreg() or member.isdir()):
                    raise Damaged(f"its member {_short(member.name)} is a link or a device, not a file or folder")
                total += member.size
                _limit(count, total, room)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file, 2**20)  # type: ignore[arg-type]
        aside.replace(folder)
    except (Damaged, *BROKEN) as error:
        raise UserError(f"{path}: cannot be extracted: {reason(error)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def reason(error: BaseException) -> str:
    """Why an archive cannot be read; of a file that is none, tarfile tells what each of its readers says."""
    none = isinstance(error, tarfile.ReadError) and "opened successfully" in str(error)
    return "it is no tar archive" if none else first_line(error)


def _limit(members: int, size: int, room: int) -> None:
    if members > MEMBERS or size > room:
        raise Damaged(f"holds more than {MEMBERS:,} members or than the {room:,} bytes that there is room for")


# ---------------------------------------------------------------------------------------------------------------------
# Arrays.


def read_arrays(path: Path | str, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz file by their names, or the one of an .npy file; raises Damaged or OSError."""
    with open(path, "rb") as file:
        try:
            packed = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
            file.seek(0)
            if not packed:
                return [_array(file, os.fstat(file.fileno()).st_size)]
            with zipfile.ZipFile(file) as archive:
                members = [archive.getinfo(f"{name}.npy") for name in names]
                return [_array(archive.open(member), member.file_size) for member in members]
        # The bytes of a header lead Python's parser, and those of a member zipfile, to errors of any kind.
        except Exception as error:
            holding, words = f"with {', '.join(f'`{name}`' for name in names)}", str(error) or type(error).__name__
            short = words if len(words) <= WORDS else f"{words[:WORDS]}..."  # zipfile quotes the file as far as a name goes
            raise Damaged(f"is no .npz file {holding} or .npy file: {short}") from None


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array that an .npy file of so many bytes holds, if its header says the same; raises anything."""
    form: Any = np.lib.format
    header = form.read_array_header_1_0 if form.read_magic(file) == (1, 0) else form.read_array_header_2_0
    shape, fortran, kind = header(file)
    if kind.hasobject or any(type(n) is not int or n < 0 for n in shape):
        raise Damaged(f"its header says {kind} {list(shape)}, which is no array of numbers")
    wanted, there = prod(shape) * kind.itemsize, size - file.tell()
    if wanted > min(there, FILE):
        raise Damaged(f"its header says {kind} {list(shape)}, {wanted:,} bytes, but {there:,} follow and {FILE:,} are the most")
    content = np.empty(shape, kind, order="F" if fortran else "C")
    if wanted and file.readinto(content.T if fortran else content) < wanted:  # type: ignore[attr-defined]
        raise Damaged("ends early")
    return content
