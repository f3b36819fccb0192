"""The published event files: AEDAT 2 (CIFAR10-DVS), 40-bit events (N-Caltech101), AEDAT 3.1 with labels (DVS128 Gesture).

An event list has `t` (microseconds), `x`, `y` (pixels) and `p` (0 OFF, 1 ON), each [N], in order of time. SpikingJelly reads
the first two; its reader of the third loops over events in Python, so that one is ours, and tested to read the same.
"""

import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from statten.data.dataset import Damaged

Events = dict[str, np.ndarray]


@dataclass(frozen=True)
class EventFormat:
    """How an event dataset is published."""

    archives: tuple[str, ...]
    """Names of the archives that are needed."""
    url: str
    """Where they are."""
    suffix: str
    """Ending of the raw files."""
    height: int
    width: int
    read: Callable[[bytes], Events]
    """Events of a raw file; raises Damaged."""
    inner: str = ""
    """Folder inside the archive that holds the class folders or files."""


def check_events(events: Events, height: int, width: int) -> Events:
    """The events in the types that are written, if there are some and all lie on the sensor; raises Damaged."""
    if not len(events["t"]):
        raise Damaged("holds no events")
    for axis, size in (("x", width), ("y", height)):
        low, high = int(events[axis].min()), int(events[axis].max())
        if low < 0 or high >= size:
            raise Damaged(f"has an event at {axis} = {high if high >= size else low}, outside the {width} x {height} pixels")
    types = {"t": np.int64, "x": np.uint16, "y": np.uint16, "p": np.uint8}
    return {key: events[key].astype(kind) for key, kind in types.items()}


def read_aedat2(data: bytes) -> Events:
    """AEDAT 2.0 of CIFAR10-DVS: lines that start with #, then big-endian pairs of 32-bit address and time."""
    from spikingjelly.datasets.cifar10_dvs import _load_origin_data, _skip_header

    header = _skip_header(io.BytesIO(data))
    if (len(data) - header) % 8:
        raise Damaged(f"ends inside an event: {len(data) - header:,} bytes of events are no multiple of 8")
    if len(data) == header:
        raise Damaged("holds no events")
    return _with_file(_load_origin_data, data)


def read_atis(data: bytes) -> Events:
    """Events of N-Caltech101: 40 bits each, x, y, polarity (1 bit) and time (23 bits)."""
    from spikingjelly.datasets.utils import load_ATIS_bin

    if len(data) % 5:
        raise Damaged(f"ends inside an event: {len(data):,} bytes are no multiple of 5")
    return _with_file(load_ATIS_bin, data)


def _with_file(reader: Callable, data: bytes) -> Events:
    # SpikingJelly reads files, and archives hold members: this file has no name, and is gone with the process.
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return reader(os.dup(file.fileno()))  # what opens it closes it


def read_aedat3(data: bytes) -> Events:
    """AEDAT 3.1: text up to #!END-HEADER, then packets of a 28-byte header and `capacity` events of `size` bytes.

    A polarity event (type 1) has 8 bytes: 15 bits x from bit 17, 15 bits y from bit 2, polarity in bit 1, then the time,
    whose bits above the 31st are the packet's overflow counter.
    """
    at = _skip_text(data)
    columns: dict[str, list[np.ndarray]] = {key: [] for key in "txyp"}
    while at < len(data):
        if at + 28 > len(data):
            raise Damaged("ends inside a packet's header")
        kind, _source, size, _offset, overflow, capacity, _number, _valid = struct.unpack_from("<HHIIIIII", data, at)
        begin, at = at + 28, at + 28 + size * capacity
        if at > len(data):
            raise Damaged(f"ends inside a packet, {at - len(data):,} bytes early")
        if kind == 1:
            words = np.frombuffer(data, dtype="<u4", count=size * capacity // 4, offset=begin).reshape(capacity, size // 4)
            address, time = words[:, 0], words[:, 1].astype(np.int64)
            columns["t"].append(time | overflow << 31)
            columns["x"].append((address >> 17 & 0x7FFF).astype(np.int64))
            columns["y"].append((address >> 2 & 0x7FFF).astype(np.int64))
            columns["p"].append((address >> 1 & 1).astype(np.int64))
    return {key: np.concatenate(parts) if parts else np.empty(0, np.int64) for key, parts in columns.items()}


def _skip_text(data: bytes) -> int:
    at = 0
    while data[at : at + 1] == b"#":
        end = data.find(b"\n", at)
        if end < 0:
            raise Damaged("holds no events after its header")
        line, at = data[at : end + 1], end + 1
        if line == b"#!END-HEADER\r\n":
            break
    return at


def cut_gestures(events: Events, labels: bytes) -> Iterator[tuple[str, int, Events]]:
    """The samples of a DVS128 Gesture recording: (class, number within the class, events).

    `labels` is the recording's CSV: class (from 1), begin and end in microseconds. Classes are named 0 to 10, as
    SpikingJelly names them.
    """
    try:
        rows = np.loadtxt(io.BytesIO(labels), dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise Damaged(f"its labels are no rows of class, begin and end: {error}") from None
    seen: dict[int, int] = {}
    for label, begin, end in rows[:, :3].tolist():
        inside = (events["t"] >= begin) & (events["t"] < end)
        yield str(label - 1), seen.get(label, 0), {key: value[inside] for key, value in events.items()}
        seen[label] = seen.get(label, 0) + 1


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

FORMATS: dict[str, EventFormat] = {
    "cifar10dvs": EventFormat(
        tuple(f"{name}.zip" for name in _CIFAR10), "https://doi.org/10.6084/m9.figshare.4724671", ".aedat", 128, 128,
        read_aedat2,
    ),
    "ncaltech101": EventFormat(
        ("Caltech101.zip",), "https://www.garrickorchard.com/datasets/n-caltech101", ".bin", 180, 240, read_atis, "Caltech101"
    ),
    "dvs128gesture": EventFormat(
        ("DvsGesture.tar.gz",), "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8", ".aedat", 128, 128, read_aedat3,
        "DvsGesture",
    ),
}  # fmt: skip
