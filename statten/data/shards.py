"""Tar shards in WebDataset's naming, with an index: reading without a million small files.

    <root>/train/000000.tar    members KEY.jpg (or .png, ...) and KEY.cls, which holds the label as a number
    <root>/train/000001.tar    ...
    <root>/train/index.json    {"version": 1, "classes": [...], "shards": [{"name", "bytes", "offsets", "sizes", "labels"}]}
    <root>/val/...             and test/, by the names that `folders.PARTS` lists

`offsets` and `sizes` are those of the image files inside the shard, in bytes; so counts are known without reading, and any
sample can be read alone. Shards of other makers, also with KEY.json ({"cls": 3} or {"label": 3}) in the place of KEY.cls,
are read as soon as they have an index.
"""

import hashlib
import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from statten.data.archives import BROKEN, reason
from statten.data.counter import permutation
from statten.data.dataset import Damaged
from statten.data.folders import IMAGES, Listing, existing_folder, list_parts, named_parts, subfolders
from statten.data.work import Progress, default_workers, gathered, silent, sole_writer
from statten.errors import Failed, UserError, in_shell, shown
from statten.files import write_json
from statten.records.data import Index, Shard
from statten.records.reading import read

INDEX, PLAN, VERSION = "index.json", ".plan.json", 1
CLASSES = 1_000_000
"""Labels of shards that others wrote are below this."""
INDEX_BYTES = 1 << 30
"""Bytes of an index at most: a hundred for each of ten million samples."""
OPEN_FILES = 64
"""Shards that a process keeps open."""


@dataclass(frozen=True)
class Shards:
    """The samples of all shards of a dataset: part after part, shard after shard, in their order on disk."""

    files: list[str]
    """Paths of the shards."""
    classes: list[str]
    """Name of each label."""
    labels: np.ndarray
    """Label of every sample [N]."""
    shard: np.ndarray
    """Number of the shard of every sample [N]; ascending."""
    offsets: np.ndarray
    """Where in its shard each image begins [N], in bytes."""
    sizes: np.ndarray
    """Bytes of each image [N]."""
    parts: dict[str, np.ndarray]
    """Indices of each part that is given, in order, by the name of its folder; "" where there are no parts."""
    _open: "OrderedDict[int, int]" = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)

    def read(self, index: int) -> bytes:
        """Content of one image file; raises Damaged or OSError."""
        size = int(self.sizes[index])
        data = os.pread(self._file(int(self.shard[index])), size, int(self.offsets[index]))
        if len(data) < size:
            raise Damaged("the shard ends inside this sample")
        return data

    def expect(self, indices: np.ndarray) -> None:
        """Have the kernel read these samples, neighbours on disk, into memory."""
        for shard in dict.fromkeys(self.shard[indices].tolist()):
            inside = indices[self.shard[indices] == shard]
            begin, end = int(self.offsets[inside[0]]), int(self.offsets[inside[-1]] + self.sizes[inside[-1]])
            os.posix_fadvise(self._file(shard), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def locate(self, index: int) -> str:
        """Shard and place of a sample, for messages."""
        first = int(np.searchsorted(self.shard, self.shard[index]))
        return f"{self.files[self.shard[index]]}: sample {index - first} at byte {self.offsets[index]}"

    def _file(self, shard: int) -> int:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.files[shard], os.O_RDONLY)
            return self._open[shard]

    def __reduce__(self) -> Any:  # without its open files
        return Shards, (self.files, self.classes, self.labels, self.shard, self.offsets, self.sizes, self.parts)


def has_shards(root: Path) -> bool:
    """Whether tar shards lie in the folders of its parts, or in `root` itself."""
    return any(_tars(folder) for folder in (root, *_part_folders(root)))


def _part_folders(root: Path) -> list[Path]:
    return [root / name for name in subfolders(root) if named_parts(root, [name])]


def _tars(folder: Path) -> list[str]:
    """The shards of a folder. Archives beside class folders of images, without an index, are none."""
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if entry.name.endswith(".tar") and not entry.name.startswith("."))
    return [] if found and not (folder / INDEX).exists() and _holds_class_folders(folder) else found


def _holds_class_folders(folder: Path) -> bool:
    inside = (files for name in subfolders(folder) for _, _, files in os.walk(folder / name))
    return any(file.lower().endswith(IMAGES) for files in inside for file in files)


def open_shards(root: Path) -> Shards:
    """Open the shards below `root` by their indices; raises UserError where an index is missing or does not fit."""
    parts = shard_parts(root)
    indices = [folder / INDEX for folder in parts]
    for path in indices:
        if not path.is_file():
            raise UserError(
                f"{path.parent}: holds tar shards but no {INDEX}; write it with: "
                f"statten data shard image_folder --root {in_shell(root)}"
            )
    return _open_shards(root, tuple(parts), tuple(path.stat().st_mtime_ns for path in indices))


def shard_parts(root: Path) -> list[Path]:
    """The folders of shards below `root`: train, then val and test, what there is of them; or `root` alone."""
    if _tars(root):
        return [root]
    parts = named_parts(root, [folder.name for folder in _part_folders(root) if _tars(folder)])
    if "train" not in parts:
        raise UserError(f"{root}: holds shards in {next(iter(parts.values()))}/ but none in train/, the part for training")
    if len(parts) == 1:
        raise UserError(f"{root}: holds shards in {parts['train']}/ but none in val/ or test/, the part for the test")
    return [root / name for name in parts.values()]


@lru_cache(maxsize=2)
def _open_shards(root: Path, parts: tuple[Path, ...], _changed: Any) -> Shards:
    documents = [_read_index(folder) for folder in parts]
    classes = documents[0]["classes"]
    if any(document["classes"] != classes for document in documents):
        raise UserError(
            f"{root}: the indices of {' and '.join(p.name for p in parts)} name different classes; shard both again together"
        )
    entries = [(folder, entry) for folder, document in zip(parts, documents, strict=True) for entry in document["shards"]]
    problems = [problem for folder, entry in entries if (problem := _mismatch(folder, entry))]
    if problems:
        raise UserError(problems)
    columns = {
        name: np.concatenate([np.array(entry[name], dtype=np.int64) for _, entry in entries])
        for name in ("labels", "offsets", "sizes")
    }
    counts = [len(entry["labels"]) for _, entry in entries]
    shard = np.repeat(np.arange(len(entries)), counts)
    ends = np.cumsum([sum(len(entry["labels"]) for entry in document["shards"]) for document in documents])
    names = [folder.name for folder in parts] if len(parts) > 1 else [""]
    given = dict(zip(names, np.split(np.arange(len(shard)), ends[:-1]), strict=True))
    empty = np.flatnonzero(np.bincount(columns["labels"][: ends[0]], minlength=len(classes)) == 0)
    if len(empty):
        raise UserError(f"{parts[0]}: the shards hold no sample of class {classes[empty[0]]}" + _and_more(len(empty)))
    files = [str(folder / entry["name"]) for folder, entry in entries]
    return Shards(files, classes, columns["labels"], shard, columns["offsets"], columns["sizes"], given)


def _and_more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def _read_index(folder: Path) -> Index:
    what, advice = f"is no index of version {VERSION}", "delete it and write it again with: statten data shard"
    document = read(folder / INDEX, Index, what, advice, INDEX_BYTES)
    if document is None:
        raise UserError(f"{folder / INDEX}: no such file; write it with: statten data shard")
    for entry in document["shards"]:
        if not _fits(entry, len(document["classes"])):
            name = shown(entry["name"])
            raise UserError(f"{folder / INDEX}: {what}: {name} has samples without a class, or outside its bytes; {advice}")
    return document


def _fits(entry: Shard, classes: int) -> bool:
    """Whether an entry's samples have classes and lie inside its shard, a file beside the index."""
    labels, offsets, sizes = entry["labels"], entry["offsets"], entry["sizes"]
    if not len(labels) == len(offsets) == len(sizes) or os.path.basename(entry["name"]) != entry["name"]:
        return False
    inside = np.array(sizes, dtype=np.int64) <= entry["bytes"] - np.array(offsets, dtype=np.int64)
    return max(labels, default=0) < classes and bool(inside.all())


def _mismatch(folder: Path, entry: Shard) -> str | None:
    path = folder / entry["name"]
    try:
        found = path.stat().st_size
    except OSError:
        return f"{path}: is in {INDEX}, but not there"
    if found != entry["bytes"]:
        return f"{path}: has {found:,} bytes, but its index says {entry['bytes']:,}; it is truncated or was changed"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Writing.


def shard(
    name: str,
    root: Path,
    output: Path | None,
    per_shard: int = 1000,
    *,
    workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Pack `imagenet` or an `image_folder` into tar shards; without `output`, write the missing indices of shards in `root`.

    Returns:
        {"output", "parts": {part: {"samples", "shards"}}}.

    Raises:
        UserError: `root` holds no such dataset, `output` holds something else, or a file cannot be read.
    """
    if name not in ("imagenet", "image_folder"):
        raise UserError(f"{name}: only folders of images become shards: imagenet and image_folder")
    existing_folder(root, "--root")
    try:
        return _shard(name, root, output, per_shard, workers or default_workers(), progress)
    except OSError as error:
        raise Failed(f"{error.filename or output or root}: {error.strerror or error}") from None


def _shard(name: str, root: Path, output: Path | None, per_shard: int, workers: int, progress: Progress) -> dict[str, Any]:
    if output is None:
        if not has_shards(root):
            raise UserError(f"--output: must name the folder of the new shards, for {root} holds none to be indexed")
        return index_shards(root, workers, progress)
    if has_shards(root):
        raise UserError(f"--root: {root} holds shards already")
    listing = list_parts(root, IMAGES, "image", needs_parts=name == "imagenet")
    return write_shards(listing, output, per_shard, workers, progress)


def write_shards(listing: Listing, output: Path, per_shard: int, workers: int, progress: Progress) -> dict[str, Any]:
    """Copy class folders into tar shards with an index; stopped at any moment and started again, it ends in the same bytes.

    Files are copied as they are, in a random but fixed order, so that a shard holds a bit of every class.

    Returns and raises like `shard`.
    """
    parts = listing.parts
    if not _complete(listing, output, per_shard):
        _write(listing, output, per_shard, workers, progress)
    return {
        "output": str(output),
        "parts": {part or "all": {"samples": len(ix), "shards": -(-len(ix) // per_shard)} for part, ix in parts.items()},
    }


def _complete(listing: Listing, output: Path, per_shard: int) -> bool:
    """Whether these shards lie there already, so that nothing is to be written."""
    if (output / PLAN).exists() or not all((output / part / INDEX).is_file() for part in listing.parts):
        return False
    for part, indices in listing.parts.items():
        shares = _shares(indices, per_shard)
        names = [f"{number:06d}.tar" for number in range(len(shares))]
        entries = [_layout(listing, names[i], i * per_shard, share) for i, share in enumerate(shares)]
        document = _read_index(output / part)
        if (document["classes"], document["shards"]) != (listing.classes, entries):
            return False
        if any(_mismatch(output / part, entry) for entry in entries):
            return False
    return True


def _write(listing: Listing, output: Path, per_shard: int, workers: int, progress: Progress) -> None:
    parts = listing.parts
    with sole_writer(output, "shards"):
        plan = {
            "version": VERSION, "per_shard": per_shard, "classes": listing.classes,
            "samples": {part: len(indices) for part, indices in parts.items()}, "names": _digest(listing),
        }  # fmt: skip
        _agree(output, plan)
        for part, indices in parts.items():
            _write_part(listing, output / part, indices, per_shard, workers, progress)
        (output / PLAN).unlink(missing_ok=True)


def _digest(listing: Listing) -> str:
    return hashlib.sha256(b"\0".join(os.fsencode(listing.names[i]) for i in range(len(listing.names)))).hexdigest()


def _agree(output: Path, plan: dict[str, Any]) -> None:
    """Make sure that what lies in `output` was begun with the same plan, or is nothing."""
    begun = read(output / PLAN, dict[str, Any])
    if begun is None:
        if has_shards(output) or any(not path.name.startswith(".") for path in output.iterdir()):
            raise UserError(f"--output: {output} holds something already; name a new folder")
        write_json(output / PLAN, plan)
    elif begun != plan:
        raise UserError(f"--output: {output} holds shards of other files or with another --per-shard; name a new folder")


def _shares(indices: np.ndarray, per_shard: int) -> list[np.ndarray]:
    """The samples of each shard of a part, in a random but fixed order."""
    order = indices[permutation("shards", 0, 0, len(indices))]
    return [order[begin : begin + per_shard] for begin in range(0, len(order), per_shard)]


def _write_part(listing: Listing, folder: Path, indices: np.ndarray, per_shard: int, workers: int, progress: Progress) -> None:
    folder.mkdir(exist_ok=True)
    shares = _shares(indices, per_shard)

    def write(number: int) -> Shard:
        path = folder / f"{number:06d}.tar"
        entry = _layout(listing, path.name, number * per_shard, shares[number])
        # A shard gets its name when it is whole.
        if not path.exists() or path.stat().st_size != entry["bytes"]:
            _write_shard(listing, path, number * per_shard, shares[number])
        return entry

    entries = []
    with ThreadPoolExecutor(workers) as pool:
        for done, entry in enumerate(gathered(pool, write, len(shares)), 1):
            entries.append(entry)
            progress(f"{folder.name} shards", done, len(shares))
    write_json(folder / INDEX, {"version": VERSION, "classes": listing.classes, "shards": entries})


def _members(listing: Listing, first: int, indices: np.ndarray) -> Iterator[tuple[str, str, bytes]]:
    """Path of the image, key and content of KEY.cls for each sample of a shard."""
    for place, index in enumerate(indices.tolist(), first):
        yield os.path.join(listing.folder, listing.names[index]), f"{place:08d}", str(listing.labels[index]).encode()


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _layout(listing: Listing, name: str, first: int, indices: np.ndarray) -> Shard:
    """The index entry of a shard, from the sizes of its files."""
    offsets, sizes, at = [], [], 0
    for path, _, label in _members(listing, first, indices):
        sizes.append(os.stat(path).st_size)
        offsets.append(at + tarfile.BLOCKSIZE)
        at += tarfile.BLOCKSIZE + _blocks(sizes[-1]) + tarfile.BLOCKSIZE + _blocks(len(label))
    # Two empty blocks end a tar file, which is filled up to whole records.
    total = -(-(at + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return {"name": name, "bytes": total, "offsets": offsets, "sizes": sizes, "labels": listing.labels[indices].tolist()}


def _write_shard(listing: Listing, path: Path, first: int, indices: np.ndarray) -> None:
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for source, key, label in _members(listing, first, indices):
                try:
                    data = Path(source).read_bytes()
                except OSError as error:
                    raise UserError(f"{source}: cannot be read: {error.strerror}") from None
                archive.addfile(_info(key + os.path.splitext(source)[1].lower(), len(data)), BytesIO(data))
                archive.addfile(_info(f"{key}.cls", len(label)), BytesIO(label))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


# ---------------------------------------------------------------------------------------------------------------------
# Indexing shards that others wrote.


def index_shards(root: Path, workers: int, progress: Progress) -> dict[str, Any]:
    """Write the missing indices of the shards below `root`; returns and raises like `shard`."""
    parts = shard_parts(root)
    known = [_read_index(folder) if (folder / INDEX).exists() else None for folder in parts]
    with ExitStack() as stack:
        if None in known:
            stack.enter_context(sole_writer(root, "the indices of shards"))
        return _index(root, parts, known, workers, progress)


def _index(root: Path, parts: list[Path], known: list[Index | None], workers: int, progress: Progress) -> dict[str, Any]:
    shards = [
        document["shards"] if document else _scan_all(folder, workers, progress)
        for folder, document in zip(parts, known, strict=True)
    ]
    highest = max(max(entry["labels"]) for entries in shards for entry in entries)
    classes = next((d["classes"] for d in known if d), [str(label) for label in range(highest + 1)])
    report = {}
    for folder, document, entries in zip(parts, known, shards, strict=True):
        if document is None:
            write_json(folder / INDEX, {"version": VERSION, "classes": classes, "shards": entries})
        samples = sum(len(entry["labels"]) for entry in entries)
        report[folder.name if folder != root else "all"] = {"samples": samples, "shards": len(entries)}
    return {"output": str(root), "parts": report}


def _scan_all(folder: Path, workers: int, progress: Progress) -> list[Shard]:
    names, entries = _tars(folder), []
    with ThreadPoolExecutor(workers) as pool:
        for entry in gathered(pool, lambda i: _scan(folder / names[i]), len(names)):
            entries.append(entry)
            progress(f"{folder.name} shards", len(entries), len(names))
    return entries


def _scan(path: Path) -> Shard:
    """The index entry of a shard, from its own headers."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}"
                if f".{suffix.lower()}" in IMAGES:
                    images[key] = member.offset_data, member.size
                elif suffix in ("cls", "json"):
                    labels.setdefault(key, _label(suffix, archive.extractfile(member).read()))  # type: ignore[union-attr]
    except (*BROKEN, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be indexed: {reason(error)}") from None
    missing = [key for key in images if key not in labels]
    if missing or not images:
        what = f"sample {missing[0].lstrip('/')} has no .cls and no .json with a label" if missing else "holds no image"
        raise UserError(f"{path}: cannot be indexed: {what}")
    return {
        "name": path.name, "bytes": path.stat().st_size, "offsets": [offset for offset, _ in images.values()],
        "sizes": [size for _, size in images.values()], "labels": [labels[key] for key in images],
    }  # fmt: skip


def _label(suffix: str, data: Any) -> int:
    if suffix == "json":
        document = json.loads(data)
        data = document["cls"] if "cls" in document else document["label"]
    label = int(data)
    if not 0 <= label < CLASSES:
        raise ValueError(f"labels must be from 0 to {CLASSES - 1:,}, but got {label}")
    return label
