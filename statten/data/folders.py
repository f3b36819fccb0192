"""Class folders: `<part>/<class>/<file>`, listed without a look at any file."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from statten.config import Config
from statten.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names of images, as torchvision takes them."""
CLIPS = (".npz", ".npy")
"""File names of event clips."""
HIDDEN = ord(".")
TEST_NAMES = ("val", "test")
"""Folder of the test part, beside `train`."""


class Names:
    """A million file names in one piece of memory, which loader processes share: reading one copies nothing else."""

    def __init__(self, folders: Sequence[str], files: Sequence[Sequence[bytes]]):
        """
        Args:
            folders: paths of the folders.
            files: names of the files in each.
        """
        flat = list(chain.from_iterable(files))
        self._text = b"".join(flat)
        self._ends = np.cumsum(np.fromiter(chain((0,), map(len, flat)), np.int64, len(flat) + 1))
        self._folders, self._until = list(folders), np.cumsum([len(names) for names in files])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        folder = self._folders[int(np.searchsorted(self._until, index, side="right"))]
        return os.path.join(folder, os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]]))


@dataclass(frozen=True)
class Listing:
    """The samples of one or more parts, class by class, in the order of their names."""

    folder: Path
    classes: list[str]
    """Names of the classes, sorted; label i is the i-th."""
    names: Names
    """Paths of the files, relative to `folder`."""
    labels: np.ndarray
    """Label of every file [N], int64."""
    test: np.ndarray | None
    """Indices of the given test part."""


def dataset_root(config: Config) -> Path:
    """`data.root`, which must be a folder."""
    data = config.data
    if data.root is None:
        raise UserError(f"data.root: must name the folder of {data.name}; set data.root=DIR")
    return existing_folder(Path(data.root), "data.root")


def existing_folder(path: Path, field: str) -> Path:
    """The path, which must be a folder."""
    if path.is_dir():
        return path
    parent = next(p for p in path.absolute().parents if p.is_dir())
    what = f"{path} is a file, not a folder" if path.exists() else f"no such folder: {path}"
    raise UserError(f"{field}: {what}; the nearest that exists is {parent}")


def subfolders(folder: Path) -> list[str]:
    """Names of the folders inside, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_parts(root: Path, suffixes: tuple[str, ...], noun: str, needs_parts: bool = False) -> Listing:
    """List `root/train/<class>/` and `root/val/<class>/` (or test/), or else `root/<class>/` without a test part.

    Args:
        root: the folder.
        suffixes: endings of the files that count.
        noun: what a file is, for messages.
        needs_parts: whether `train` and `val` are required.
    """
    stamps = [root, *(root / name for name in subfolders(root))]
    stamps += [folder / name for folder in stamps[1:] if folder.name in ("train", *TEST_NAMES) for name in subfolders(folder)]
    # A folder's time changes with every file that comes or goes.
    times = tuple(folder.stat().st_mtime_ns for folder in stamps)
    return _list_parts(root, suffixes, noun, needs_parts, times)


def unlisted() -> None:
    """Forget what was listed, as a new process would have to list it."""
    _list_parts.cache_clear()


@lru_cache(maxsize=4)
def _list_parts(root: Path, suffixes: tuple[str, ...], noun: str, needs_parts: bool, times: tuple[int, ...]) -> Listing:
    parts = _parts(root, needs_parts)
    found = {part: _list_classes(root / part if part else root, suffixes) for part in parts}
    first = root / parts[0] if parts[0] else root
    classes = list(found[parts[0]])
    if not classes:
        raise UserError(f"{first}: holds no class folders; {noun}s belong into {first}/CLASS/")
    problems = [
        f"{root / part / name}: is an empty class, for it holds no {noun} ({', '.join(suffixes)})"
        for part, members in found.items() for name, files in members.items() if not files
    ]  # fmt: skip
    problems += [
        f"{root / part / name}: is a class that {first} lacks"
        for part in parts[1:]
        for name in found[part]
        if name not in classes
    ]
    if len(parts) == 2 and not found[parts[1]]:
        problems.append(f"{root / parts[1]}: holds no class folders; its {noun}s belong into {root / parts[1]}/CLASS/")
    if problems:
        raise UserError(problems)
    label = {name: i for i, name in enumerate(classes)}
    names = Names(
        [os.path.join(part, name) for part in parts for name in found[part]],
        [files for part in parts for files in found[part].values()],
    )
    sizes = [(label[name], len(files)) for part in parts for name, files in found[part].items()]
    labels = np.repeat(*np.array(sizes, dtype=np.int64).T)
    train = sum(map(len, found[parts[0]].values()))
    return Listing(root, classes, names, labels, np.arange(train, len(labels)) if len(parts) == 2 else None)


def _parts(root: Path, needs_parts: bool) -> list[str]:
    names = subfolders(root)
    test = [name for name in TEST_NAMES if name in names]
    if "train" in names and test:
        return ["train", test[0]]
    if "train" in names:
        raise UserError(f"{root}: holds train/ but no {' or '.join(f'{name}/' for name in TEST_NAMES)}, the part for the test")
    if test:
        raise UserError(f"{root}: holds {test[0]}/ but no train/, the part for training")
    if needs_parts:
        raise UserError(
            f"{root}: must hold the class folders train/CLASS/ and val/CLASS/, or tar shards train/*.tar and val/*.tar"
        )
    return [""]


def _list_classes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Class name to its files, relative to its folder; both sorted."""
    names, endings = subfolders(folder), tuple(suffix.encode() for lower in suffixes for suffix in (lower, lower.upper()))
    paths = [os.fsencode(folder / name) for name in names]
    with ThreadPoolExecutor(8) as pool:  # on network storage a listing is a round trip
        listed: Iterator[list[bytes]] = pool.map(os.listdir, paths)
        return {name: _files(path, inside, endings) for name, path, inside in zip(names, paths, listed, strict=True)}


def _files(folder: bytes, names: list[bytes], endings: tuple[bytes, ...]) -> list[bytes]:
    found = [name for name in names if name.endswith(endings)]
    below = []
    if len(found) < len(names):  # only what is no sample by its name is looked at
        for name in sorted(set(names) - set(found)):
            if name.lower().endswith(endings):
                found.append(name)  # .Jpeg
            elif name[0] != HIDDEN and os.path.isdir(path := os.path.join(folder, name)):
                below += [os.path.join(name, file) for file in _files(path, os.listdir(path), endings)]
    found.sort()
    del found[bisect_left(found, b".") : bisect_left(found, b"/")]  # hidden ones
    return found + below
