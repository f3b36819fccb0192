"""The published event files: AEDAT 2 (CIFAR10-DVS), 40-bit events (N-Caltech101), AEDAT 3.1 with labels (DVS128 Gesture).

An event list has `t` (microseconds), `x`, `y` (pixels) and `p` (0 OFF, 1 ON), each [N], in order of time. The readers take the
bytes of a file, which may lie in an archive. They are tested to read what SpikingJelly's read.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

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
    fetched: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Where an archive is fetched from, and its MD5; of none where its owners want a person to fetch it."""


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
    """AEDAT 2.0 of a DVS128.

    Bit 0 of an address is 1 for OFF, bits 1 to 7 and 8 to 14 are the pixel. Which of them goes down and which to the right is
    as SpikingJelly reads CIFAR10-DVS.
    """
    address, t = aedat2_words(data)
    return {"t": t, "x": 127 - (address >> 8 & 0x7F), "y": 127 - (address >> 1 & 0x7F), "p": 1 - (address & 1)}


def aedat2_words(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and times in microseconds [N] of AEDAT 2.0: lines that start with #, then big-endian pairs of 32 bits each."""
    begin = _skip_lines(data)
    if (len(data) - begin) % 8:
        raise Damaged(f"ends inside an event: {len(data) - begin:,} bytes of events are no multiple of 8")
    if len(data) == begin:
        raise Damaged("holds no events")
    words = np.frombuffer(data, ">u4", offset=begin).reshape(-1, 2)
    return words[:, 0], words[:, 1]


def _skip_lines(data: bytes) -> int:
    """Where the lines that start with # end."""
    at = 0
    while True:
        end = data.find(b"\n", at) + 1 or len(data)
        try:
            line = data[at:end].decode().strip()
        except UnicodeDecodeError:
            if at == 0:
                raise Damaged("begins with no header of text") from None
            return at
        if not line.startswith("#"):
            return at
        at = end


def read_atis(data: bytes) -> Events:
    """Events of N-Caltech101: 40 bits each, x, y, polarity (1 bit) and time in microseconds (23 bits)."""
    if len(data) % 5:
        raise Damaged(f"ends inside an event: {len(data):,} bytes are no multiple of 5")
    x, y, *others = np.frombuffer(data, np.uint8).reshape(-1, 5).T
    high, middle, low = (column.astype(np.uint32) for column in others)
    return {"t": (high & 0x7F) << 16 | middle << 8 | low, "x": x, "y": y, "p": high >> 7}


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


_CIFAR10DVS = {
    "airplane": ("7712788", "0afd5c4bf9ae06af762a77b180354fdd"), "automobile": ("7712791", "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": ("7712794", "a9c207c91c55b9dc2002dc21c684d785"), "cat": ("7712812", "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": ("7712815", "b6bf21f6c04d21ba4e23fc3e36c8a4a3"), "dog": ("7712818", "f379ebdf6703d16e0a690782e62639c3"),
    "frog": ("7712842", "cad6ed91214b1c7388a5f6ee56d08803"), "horse": ("7712851", "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": ("7712836", "41c7bd7d6b251be82557c6cce9a7d5c9"), "truck": ("7712839", "89f3922fd147d9aeff89e76a2b0b70a7"),
}  # fmt: skip
"""Number of each archive at its publisher, and its MD5."""

FORMATS: dict[str, EventFormat] = {
    "cifar10dvs": EventFormat(
        tuple(f"{name}.zip" for name in _CIFAR10DVS), "https://doi.org/10.6084/m9.figshare.4724671", ".aedat", 128, 128,
        read_aedat2,
        fetched={
            f"{name}.zip": (f"https://ndownloader.figshare.com/files/{number}", md5)
            for name, (number, md5) in _CIFAR10DVS.items()
        },
    ),
    "ncaltech101": EventFormat(
        ("Caltech101.zip",), "https://www.garrickorchard.com/datasets/n-caltech101", ".bin", 180, 240, read_atis, "Caltech101"
    ),
    "dvs128gesture": EventFormat(
        ("DvsGesture.tar.gz",), "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8", ".aedat", 128, 128, read_aedat3,
        "DvsGesture",
    ),
}  # fmt: skip
