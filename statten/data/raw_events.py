"""The published event files: AEDAT 2 (CIFAR10-DVS), 40-bit events (N-Caltech101), AEDAT 3.1 with labels (DVS128 Gesture).

An event list has `t` (microseconds), `x`, `y` (pixels) and `p` (0 OFF, 1 ON), each [N], in order of time. SpikingJelly reads
the first two; its reader of the third loops over events in Python, so that one is ours, and tested to read the same.
"""

import io
import os
import struct
import tempfile
from collections import Counter
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

    try:
        header = _skip_header(io.BytesIO(data))
    except UnicodeDecodeError:
        raise Damaged("begins with no header of text") from None
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
        if kind == 1 and (size < 8 or size % 4):
            raise Damaged(f"has events of {size} bytes, which hold no address and time of 4 bytes each")
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


@dataclass(frozen=True)
class Gesture:
    """A row of a recording's labels."""

    label: str
    """Class, from 0 to 10, as SpikingJelly names them."""
    number: int
    """How many of the class came before."""
    begin: int
    """Microseconds."""
    end: int
    """Microseconds; this one is outside."""


def gesture_rows(labels: bytes) -> list[Gesture | Damaged]:
    """The rows of a DVS128 Gesture recording's CSV - class (from 1), begin, end - or what is wrong with each."""
    seen: Counter[int] = Counter()
    rows: list[Gesture | Damaged] = []
    for number, line in enumerate(labels.decode(errors="replace").splitlines()[1:], 2):
        if not line.strip():
            continue
        try:
            label, begin, end = map(int, line.split(",")[:3])
            assert label > 0
        except (ValueError, AssertionError):
            rows.append(Damaged(f"line {number} of its labels is no class (from 1), begin and end: {line[:40]!r}"))
            continue
        rows.append(Gesture(str(label - 1), seen[label], begin, end))
        seen[label] += 1
    return rows


def cut_gesture(events: Events, row: Gesture) -> Events:
    """The events of one gesture."""
    inside = (events["t"] >= row.begin) & (events["t"] < row.end)
    return {key: value[inside] for key, value in events.items()}


def cut_gestures(events: Events, labels: bytes) -> Iterator[tuple[str, int, Events]]:
    """The samples of a DVS128 Gesture recording: (class, number within the class, events); raises Damaged."""
    for row in gesture_rows(labels):
        if isinstance(row, Damaged):
            raise row
        yield row.label, row.number, cut_gesture(events, row)


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
