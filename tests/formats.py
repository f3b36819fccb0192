"""Small datasets in the real on-disk formats, written byte by byte; `seed` varies their content."""

import csv
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def jpeg(seed: int, width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    """A smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(file, kind)
    return file.getvalue()


def write_images(root: Path, parts: dict[str, int], classes: list[str] | None = None) -> Path:
    """Class folders root/PART/CLASS/*.JPEG with so many images of each class, of several sizes."""
    for part, count in parts.items():
        for c, name in enumerate(classes or ["n01440764", "n01443537", "n01484850"]):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 10_000 * c + i + (500_000 if part in ("val", "test") else 0)
                (folder / f"{name}_{i}.JPEG").write_bytes(jpeg(seed, 40 + i % 3, 30 + c))
    return root


def cifar_batch(labels: list[int], seed: int, key: bytes) -> bytes:
    """A batch as CIFAR's makers pickled it: protocol 2, byte strings as keys, rows of 3,072 bytes."""
    rows = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    names = [b"%05d.png" % i for i in range(len(labels))]
    return python2_pickle({b"batch_label": b"testing batch", key: labels, b"data": rows, b"filenames": names})


def python2_pickle(value: dict) -> bytes:
    """Protocol 2 with Python 2's byte strings (SHORT_BINSTRING), as in the published files; arrays as NumPy wrote them then."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    _python2(value, out)
    out.write(b".")
    return out.getvalue()


def _python2(value, out) -> None:
    if isinstance(value, dict):
        out.write(b"}(")
        for key, item in value.items():
            _python2(key, out)
            _python2(item, out)
        out.write(b"u")
    elif isinstance(value, list):
        out.write(b"](")
        for item in value:
            _python2(item, out)
        out.write(b"e")
    elif isinstance(value, bytes):
        out.write(b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value)
    elif isinstance(value, int):
        out.write(b"J" + struct.pack("<i", value))
    elif isinstance(value, tuple):
        out.write(b"(")
        for item in value:
            _python2(item, out)
        out.write(b"t")
    else:  # numpy.core.multiarray._reconstruct(numpy.ndarray, (0,), "b"), then its state
        out.write(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR")
        out.write(b"(K\x01(" + b"".join(b"J" + struct.pack("<i", n) for n in value.shape) + b"t")
        out.write(b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
        data = value.tobytes()
        out.write(b"\x89T" + struct.pack("<i", len(data)) + data + b"tb")


def write_cifar(root: Path, name: str = "cifar10", per_class: int = 5, extracted: bool = False) -> Path:
    """The archive of CIFAR-10 or CIFAR-100 (or its extracted folder) with `per_class` images of each class in every file."""
    if name == "cifar10":
        folder, key, classes = "cifar-10-batches-py", b"labels", 10
        train, test = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
        meta = {b"num_cases_per_batch": 10_000, b"label_names": [c.encode() for c in CIFAR10_CLASSES], b"num_vis": 3072}
        meta_name = "batches.meta"
    else:
        folder, key, classes, train, test = "cifar-100-python", b"fine_labels", 100, ["train"], ["test"]
        meta = {b"fine_label_names": [b"fine%02d" % i for i in range(100)], b"coarse_label_names": [b"coarse"]}
        meta_name = "meta"
    files = {
        file: cifar_batch([c for _ in range(per_class) for c in range(classes)], seed, key)
        for seed, file in enumerate([*train, *test])
    }
    files[meta_name] = python2_pickle(meta)
    root.mkdir(parents=True, exist_ok=True)
    if extracted:
        (root / folder).mkdir()
        for file, content in files.items():
            (root / folder / file).write_bytes(content)
        return root
    with tarfile.open(root / f"{'cifar-10' if name == 'cifar10' else 'cifar-100'}-python.tar.gz", "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root


# ---------------------------------------------------------------------------------------------------------------------
# Events: (t, x, y, p) with x to the right, y downwards and p 1 for ON, as a reader should give them.

Event = tuple[int, int, int, int]


def random_events(seed: int, count: int, width: int, height: int) -> list[Event]:
    """Events in order of time."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 1_000_000, count))
    return [(int(t), int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(2))) for t in times]


def aedat2(events: list[Event]) -> bytes:
    """AEDAT 2.0 of the DVS128 as CIFAR10-DVS has it: big-endian address and time, y << 8 | x << 1 | polarity.

    Readers turn the picture (x = 127 - y', y = 127 - x') and the polarity (1 is OFF on disk), so this does the inverse.
    """
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
    body = b"".join(struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for t, x, y, p in events)
    return header + body


def atis(events: list[Event]) -> bytes:
    """40-bit events of N-Caltech101: x, y, polarity and 23 bits of time."""
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF]) for t, x, y, p in events)


def aedat3(events: list[Event], per_packet: int = 7) -> bytes:
    """AEDAT 3.1 of DVS128 Gesture: polarity packets, and one special packet that readers must pass over."""
    out = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2017-01-01 00:00:00\r\n#!END-HEADER\r\n"
    out += struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + struct.pack("<II", 1, 0)
    for begin in range(0, len(events), per_packet):
        packet = events[begin : begin + per_packet]
        out += struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(packet), len(packet), len(packet))
        out += b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in packet)
    return out


def write_cifar10dvs(root: Path, per_class: int = 10, events: int = 200) -> Path:
    """The ten zip archives, each with CLASS/cifar10_CLASS_N.aedat."""
    folder = root / "download"
    folder.mkdir(parents=True)
    for c, name in enumerate(CIFAR10_CLASSES):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(per_class):
                content = aedat2(random_events(1000 * c + i, events + i, 128, 128))
                archive.writestr(f"{name}/cifar10_{name}_{i}.aedat", content)
    return root


def write_ncaltech101(root: Path, classes: int = 3, per_class: int = 10, events: int = 200) -> Path:
    """Caltech101.zip with Caltech101/CLASS/image_0001.bin, and the annotations that no one reads."""
    root.mkdir(parents=True)
    names = ["BACKGROUND_Google", "Faces_easy", *(f"class_{i:03d}" for i in range(2, classes))][:classes]
    with zipfile.ZipFile(root / "Caltech101.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for c, name in enumerate(names):
            for i in range(1, per_class + 1):
                content = atis(random_events(1000 * c + i, events + i, 240, 180))
                archive.writestr(f"Caltech101/{name}/image_{i:04d}.bin", content)
                archive.writestr(f"__MACOSX/Caltech101/{name}/._image_{i:04d}.bin", b"\x00\x05")
    return root


def write_gesture(root: Path, events: int = 300) -> Path:
    """DvsGesture.tar.gz: two training recordings and one for the test, each with two samples of class 8 and one of others."""
    trials = {"train": ["user01_fluorescent", "user02_led"], "test": ["user24_lab"]}
    files: dict[str, bytes] = {}
    for part, names in trials.items():
        files[f"trials_to_{part}.txt"] = "".join(f"{name}.aedat\n" for name in names).encode() + b"\n"
        for seed, name in enumerate(names):
            files[f"{name}.aedat"] = aedat3(random_events(seed + 10 * len(names), events, 128, 128))
            table = io.StringIO()
            writer = csv.writer(table)
            writer.writerow(["class", "startTime_usec", "endTime_usec"])
            labels = [*range(1, 9), 8, 9, 10, 11]
            for i, label in enumerate(labels):
                writer.writerow([label, i * 80_000, i * 80_000 + 75_000])
            files[f"{name}_labels.csv"] = table.getvalue().encode()
    (root / "download").mkdir(parents=True)
    with tarfile.open(root / "download" / "DvsGesture.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"DvsGesture/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return root


def write_clips(root: Path, frames: int, parts: dict[str, int], classes: list[str], dtype: str = "uint8") -> Path:
    """Ready frames root/PART/CLASS/*.npz; part "" has no folder of its own."""
    for part, count in parts.items():
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([c, i, len(part)])
                np.savez_compressed(folder / f"clip_{i:03d}.npz", frames=rng.integers(0, 9, (frames, 2, 20, 24)).astype(dtype))
    return root
