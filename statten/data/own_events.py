"""The user's own recordings of an event camera, in class folders, to clips in class folders: the dataset `event_folder`.

    <root>/<class>/<recording>, or <root>/{train,val,test}/<class>/<recording>
    <output>/frames_number_T_split_by_number/, with the same paths, .npz

T frames, H height, W width.
"""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from statten.data.archives import FILE, read_arrays
from statten.data.dataset import Damaged
from statten.data.events import frames_folder, read_frames
from statten.data.folders import Listing, existing_folder, list_parts
from statten.data.making import Making, finished, integrate, whole, write_npz
from statten.data.raw_events import Events, aedat2_words, check_events, read_aedat2, read_aedat3, read_atis
from statten.data.work import sole_writer
from statten.errors import Failed, UserError

LARGEST = 4096
"""Pixels of a side of a sensor at most."""


def prepare_recordings(
    root: Path, output: Path, timesteps: list[int], size: tuple[int, int], downsample: int, making: Making
) -> dict[str, Any]:
    """Make clips of the recordings in class folders.

    What is there already is kept, so recordings that came since the last time are added.

    Args:
        root: holds the class folders, or train/, val/ and test/ with them; only read.
        output: gets a folder of clips for each T.
        timesteps: every T.
        size: (W, H) of the sensor in pixels.
        downsample: events of so many x so many pixels are counted as one pixel.
        making: how.

    Returns:
        {"name", "root", "output", "classes", "recordings", "samples", "frames": {T: folder}, "corrupt": [{"file", "reason"}],
        "left_out": {what is no recording: how many}}.

    Raises:
        UserError: the folders do not fit, or `output` holds clips of another kind.
        Failed: recordings are corrupt and are not to be left out, or a class has no clip.
    """
    width, height = size
    listing = list_parts(existing_folder(root, "--root"), tuple(READERS), "recording")
    names = [listing.names[i] for i in range(len(listing.names))]
    outputs = _outputs(root, names)
    folders = {frames: frames_folder(output, frames) for frames in sorted(set(timesteps))}
    shape = -(-height // downsample), -(-width // downsample)
    for frames, folder in folders.items():
        _check_there(folder, (frames, 2, *shape), set(outputs), root)

    def convert(i: int) -> list[tuple[str, str]]:
        targets = {frames: folder / outputs[i] for frames, folder in folders.items()}
        if all(map(whole, targets.values())):
            return []
        try:
            events = check_events(read_recording(root / names[i]), height, width)
            if downsample > 1:
                events |= {axis: events[axis] // downsample for axis in "xy"}
            clips = {frames: integrate(events, frames, *shape) for frames in folders}
        except (Damaged, OSError) as error:
            return [(str(root / names[i]), getattr(error, "strerror", None) or str(error))]
        for frames, target in targets.items():
            write_npz(target, frames=clips[frames])
        return []

    corrupt: dict[str, str] = {}
    if not all(finished(folder) and all(whole(folder / path) for path in outputs) for folder in folders.values()):
        with sole_writer(output, "clips"):
            corrupt = making.run("recordings", list(folders.values()), outputs, convert, len(names))
    there = next(iter(folders.values()))
    kept = np.array([(there / path).is_file() for path in outputs])
    _check_classes(listing, kept, there)
    return {
        "name": "event_folder", "root": str(root), "output": str(output), "classes": len(listing.classes),
        "recordings": len(names), "samples": int(kept.sum()),
        "frames": {str(frames): str(folder) for frames, folder in folders.items()},
        "corrupt": [{"file": file, "reason": reason} for file, reason in corrupt.items()],
        "left_out": dict(listing.left_out),
    }  # fmt: skip


def sensor_size(text: str) -> tuple[int, int]:
    """(W, H) of `WIDTHxHEIGHT`; raises UserError."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= min(size) <= max(size) <= LARGEST:
        raise UserError(f"--size: must be the sensor's WIDTHxHEIGHT in pixels, up to {LARGEST}, but got {text!r}; try 128x128")
    return size


def reach(root: Path) -> str:
    """How far the events of the first recording that can be read go, for the question for the sensor's size."""
    listing = list_parts(existing_folder(root, "--root"), tuple(READERS), "recording")
    for i in range(len(listing.names)):
        try:
            path = root / listing.names[i]
            events = read_recording(path)
            return f"the events of {path} go up to x = {events['x'].max():g} and y = {events['y'].max():g}"
        except (Damaged, OSError, ValueError):  # ValueError: the largest of no events
            continue
    return f"none of the recordings in {root} can be read"


def _outputs(root: Path, names: list[str]) -> list[str]:
    """The path of each recording's clip; raises UserError where two recordings would be one clip."""
    source: dict[str, str] = {}
    for name in names:
        output = str(PurePosixPath(name).with_suffix(".npz"))
        if output in source:
            raise UserError(f"{root}: {source[output]} and {name} would both be {output}; keep one of them")
        source[output] = name
    return list(source)


def _check_there(folder: Path, shape: tuple[int, ...], outputs: set[str], root: Path) -> None:
    """Raise UserError where clips lie in a folder that are not those of these recordings."""
    found = sorted(path for path in folder.rglob("*.npz") if not path.name.startswith("."))
    strange = [path for path in found if path.relative_to(folder).as_posix() not in outputs]
    if strange:
        raise UserError(
            f"{folder}: holds clips that no recording in {root} makes, such as {strange[0]}; delete them, or name another "
            f"--output"
        )
    try:
        there = read_frames(found[0]).shape if found else shape
    except (Damaged, OSError):
        return  # is made anew, or said when it is read
    if there != shape:
        raise UserError(
            f"{folder}: holds clips of {there[3]} x {there[2]} pixels, but --size and --downsample ask for {shape[3]} x "
            f"{shape[2]}; delete it, or name another --output"
        )


def _check_classes(listing: Listing, kept: np.ndarray, folder: Path) -> None:
    for part, indices in listing.parts.items():
        for label, name in enumerate(listing.classes):
            of_class = indices[listing.labels[indices] == label]
            if len(of_class) and not kept[of_class].any():
                raise Failed(f"{folder / part / name}: has no clip, for none of its {len(of_class)} recordings can be used")


# ---------------------------------------------------------------------------------------------------------------------
# Recordings.


def read_recording(path: Path) -> Events:
    """Events of a recording, by its ending; raises Damaged or OSError."""
    return READERS[path.suffix.lower()](path)


def _of_bytes(read: Callable[[bytes], Events]) -> Callable[[Path], Events]:
    def of_path(path: Path) -> Events:
        if (size := path.stat().st_size) > FILE:
            raise Damaged(f"has {size:,} bytes, but {FILE:,} are the most")
        return read(path.read_bytes())

    return of_path


def read_aedat(data: bytes) -> Events:
    """AEDAT 2.0 of a DVS128 or AEDAT 3.1, as the first line says."""
    version = re.match(rb"#!AER-DAT(\d)", data)
    if version is None or version[1] not in b"23":
        what = f"is AEDAT {version[1].decode()}" if version else "does not begin with #!AER-DAT"
        raise Damaged(f"{what}, but AEDAT 2.0 and 3.1 are read; convert it to an .npz file of t, x, y and p")
    if version[1] == b"3":
        return read_aedat3(data)
    address, _ = aedat2_words(data)
    if (address >> 16).any():
        raise Damaged("has addresses of more than 16 bits, so no DVS128 made it; convert it to an .npz file of t, x, y and p")
    of_pixel = address >> 15 == 0  # the others are marks of time, such as those of a plug
    return {name: column[of_pixel] for name, column in read_aedat2(data).items()}


def read_columns(path: Path) -> Events:
    """An .npz file of t, x, y and p, each [N]: t in any unit, p 1 for ON, and 0 or -1 for OFF; in any order of time."""
    columns = read_arrays(path, *"txyp")
    if len(columns) < 4 or any(column.ndim != 1 or column.dtype.kind not in "uibf" for column in columns):
        raise Damaged("is no .npz file of t, x, y, p, each a number for every event")
    if len({len(column) for column in columns}) > 1:
        raise Damaged(f"holds {', '.join(f'{len(c):,} {name}' for name, c in zip('txyp', columns, strict=True))}: not one each")
    for name, column in zip("txyp", columns, strict=True):
        if not np.isfinite(column).all() or (name != "t" and (column != np.trunc(column)).any()):
            raise Damaged(f"holds a {name} that is no {'number' if name == 't' else 'whole number'}")
    t, x, y, p = columns
    if not np.isin(p, (-1, 0, 1)).all() or ((p < 0).any() and (p == 0).any()):
        raise Damaged("holds a p that is neither 1 for ON nor 0 or -1 for OFF")
    events = {"t": t, "x": x, "y": y, "p": p > 0}
    if (t[1:] < t[:-1]).any():
        order = np.argsort(t, kind="stable")
        events = {name: column[order] for name, column in events.items()}
    return events


READERS: dict[str, Callable[[Path], Events]] = {
    ".npz": read_columns, ".aedat": _of_bytes(read_aedat), ".bin": _of_bytes(read_atis),
}  # fmt: skip
"""Endings of recordings, and how they are read."""
