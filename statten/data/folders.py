"""Class folders: `<part>/<class>/<file>`, listed without a look at any file."""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations
from pathlib import Path

import numpy as np

from statten.config import Config
from statten.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names of images, as torchvision takes them."""
CLIPS = (".npz", ".npy")
"""File names of event clips."""
HIDDEN = ord(".")
PARTS = {
    "train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing"),
}  # fmt: skip
"""Names of the folders of a part, in any case; parts are read in this order."""
SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
"""Folders that systems leave behind, with thumbnails and the like; in small letters."""


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
    parts: dict[str, np.ndarray]
    """Indices of each part that is given, in order, by the name of its folder; "" where there are no parts."""
    left_out: Counter[str]
    """What lies there and is no sample: how many files of an ending, links and folders by their names."""


def held_out(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """Given parts [train, val, test], [train, test] or [all] by what they are for: `validation` and `test`, or None."""
    _, *others = parts.values()
    return {"validation": others[0] if len(others) == 2 else None, "test": others[-1] if others else None}


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
    """Names of the folders inside, sorted; without hidden ones, those of systems, and links to a folder above them."""
    above = (os.path.realpath(os.fsencode(folder)),)
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries
                if entry.is_dir() and not _is_system(entry.name)
                and not (entry.is_symlink() and _leads_up(os.fsencode(entry.path), above))
            )  # fmt: skip
    except OSError as error:
        raise _unlistable(error) from None


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _leads_up(link: bytes, above: tuple[bytes, ...]) -> bool:
    """Whether a link leads to a folder of the above of real paths that led to it, or to one that holds it."""
    target = os.path.join(os.path.realpath(link), b"")
    return any(os.path.join(path, b"").startswith(target) for path in above)


def _unlistable(error: OSError) -> UserError:
    return UserError(f"{os.fsdecode(error.filename or '')}: cannot be listed: {error.strerror}")


def named_parts(root: Path, names: Sequence[str]) -> dict[str, str]:
    """The folders that are parts by their names, as {"train", "val", "test": name}; raises UserError where two are one part."""
    found = {part: [name for name in names if name.lower() in words] for part, words in PARTS.items()}
    for part, same in found.items():
        if len(same) > 1:
            raise UserError(
                f"{root}: is not clear, for {same[0]}/ and {same[1]}/ may both be the {part} part; keep one of them there, or "
                f"rename the one that is to be {' or '.join(other for other in PARTS if other != part)}"
            )
    return {part: same[0] for part, same in found.items() if same}


def list_parts(root: Path, suffixes: tuple[str, ...], noun: str, needs_parts: bool = False) -> Listing:
    """List `root/train/<class>/`, and of `val/` and `test/` what there is, or else `root/<class>/` without parts.

    Args:
        root: the folder.
        suffixes: endings of the files that count.
        noun: what a file is, for messages.
        needs_parts: whether parts are required.
    """
    stamps = [root, *(root / name for name in subfolders(root))]
    stamps += [folder / name for folder in stamps[1:] if named_parts(root, [folder.name]) for name in subfolders(folder)]
    # A folder's time changes with every file that comes or goes.
    times = tuple(folder.stat().st_mtime_ns for folder in stamps)
    return _list_parts(root, suffixes, noun, needs_parts, times)


def unlisted() -> None:
    """Forget what was listed, as a new process would have to list it."""
    _list_parts.cache_clear()


@lru_cache(maxsize=4)
def _list_parts(root: Path, suffixes: tuple[str, ...], noun: str, needs_parts: bool, times: tuple[int, ...]) -> Listing:
    endings = tuple(suffix.encode() for lower in suffixes for suffix in (lower, lower.upper()))
    parts, left_out = _parts(root, endings, noun, needs_parts), Counter[str]()
    found = {part: _list_classes(root / part, endings, left_out) for part in parts}
    first = root / parts[0]
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
    for part in parts[1:]:
        if not found[part]:
            problems.append(f"{root / part}: holds no class folders; its {noun}s belong into {root / part}/CLASS/")
    problems += [
        f"{root / part / name}: is not clear, for it may be a class or hold parts, such as {inner[0]}/ and {inner[1]}/; "
        f"put the parts above the classes (train/CLASS/), or name {root / part / name} itself as the folder"
        for part, members in found.items() for name, files in members.items() if len(inner := _inner_parts(files)) > 1
    ]  # fmt: skip
    if problems:
        raise UserError(problems)
    for part in dict.fromkeys(["", *parts]):
        _count_beside(root / part, set(parts if part == "" and len(parts) > 1 else found[part]), left_out)
    label = {name: i for i, name in enumerate(classes)}
    names = Names(
        [os.path.join(part, name) for part in parts for name in found[part]],
        [files for part in parts for files in found[part].values()],
    )
    sizes = [(label[name], len(files)) for part in parts for name, files in found[part].items()]
    labels = np.repeat(*np.array(sizes, dtype=np.int64).T)
    ends = np.cumsum([sum(map(len, found[part].values())) for part in parts])
    given = dict(zip(parts, np.split(np.arange(len(labels)), ends[:-1]), strict=True))
    return Listing(root, classes, names, labels, given, left_out)


def _parts(root: Path, endings: tuple[bytes, ...], noun: str, needs_parts: bool) -> list[str]:
    """Names of the folders of the parts, in order; [""] where classes lie in `root` itself."""
    names = subfolders(root)
    named = [name for name in names if named_parts(root, [name])]
    others = [name for name in names if name not in named]
    loose = [name for name in named if _holds_samples_alone(root / name, endings)]
    with_classes = [name for name in named if name not in loose]
    # Samples without a class, such as a competition's test part, are no part; and beside other classes `valid/` is one of them.
    is_class = loose == named and others and not PARTS.keys() & set(named)
    if not named or is_class:
        if needs_parts:
            raise UserError(
                f"{root}: must hold the class folders train/CLASS/ and val/CLASS/, or tar shards train/*.tar and val/*.tar"
            )
        return [""]
    parts = named_parts(root, with_classes)
    if "train" not in parts or len(parts) == 1:
        parts = named_parts(root, named)
    if "train" in parts and len(parts) > 1 and (with_classes or not others):
        _all_different(root, list(parts.values()))
        return list(parts.values())
    if others:
        part = next(iter(parts))
        raise UserError(
            f"{root}: is not clear, for {parts[part]}/ may be the {part} part or a class beside {others[0]}/; put every {noun} "
            f"below train/CLASS/ and test/CLASS/, or rename the class"
        )
    if "train" in parts:
        raise UserError(f"{root}: holds {parts['train']}/ but no val/ or test/, the part for the test")
    raise UserError(f"{root}: holds {next(iter(parts.values()))}/ but no train/, the part for training")


def _holds_samples_alone(folder: Path, endings: tuple[bytes, ...]) -> bool:
    return not subfolders(folder) and any(name.lower().endswith(endings) for name in os.listdir(os.fsencode(folder)))


def _all_different(root: Path, parts: list[str]) -> None:
    for one, other in combinations(parts, 2):
        if os.path.samefile(root / one, root / other):
            raise UserError(f"{root}: {one}/ and {other}/ are the same folder, so the test would be on what was trained on")


def _inner_parts(files: list[bytes]) -> list[str]:
    """The folders below a class that look like a training part and others."""
    if not files or b"/" not in files[-1]:  # what lies deeper comes last
        return []
    folders = dict.fromkeys(os.fsdecode(file.split(b"/")[0]) for file in files if b"/" in file)
    parts = {part: name for name in folders for part, words in PARTS.items() if name.lower() in words}
    return list(parts.values()) if "train" in parts else []


def _count_beside(folder: Path, known: set[str], left_out: Counter[str]) -> None:
    """Count what lies beside the classes or parts of a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in known and not entry.name.startswith("."):
                left_out[f"{entry.path}/" if entry.is_dir() else _ending(entry.name)] += 1


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or name


def _list_classes(folder: Path, endings: tuple[bytes, ...], left_out: Counter[str]) -> dict[str, list[bytes]]:
    """Class name to its files, relative to its folder; both sorted."""
    names = subfolders(folder)
    paths = [os.fsencode(folder / name) for name in names]
    above = (os.path.realpath(os.fsencode(folder)),)
    try:
        with ThreadPoolExecutor(8) as pool:  # on network storage a listing is a round trip
            listed: Iterator[list[bytes]] = pool.map(os.listdir, paths)
            return {
                name: _files(path, inside, endings, above, left_out)
                for name, path, inside in zip(names, paths, listed, strict=True)
            }
    except OSError as error:
        raise _unlistable(error) from None


def _files(
    folder: bytes, names: list[bytes], endings: tuple[bytes, ...], above: tuple[bytes, ...], left_out: Counter[str]
) -> list[bytes]:
    found = [name for name in names if name.endswith(endings)]
    below = []
    if len(found) < len(names):  # only what is no sample by its name is looked at
        above = (*above, os.path.realpath(folder))
        for name in sorted(set(names) - set(found)):
            path = os.path.join(folder, name)
            if name.lower().endswith(endings):
                found.append(name)  # .Jpeg
            elif _is_system(text := os.fsdecode(name)):
                continue
            elif not os.path.isdir(path):
                left_out[_ending(text)] += 1
            elif os.path.islink(path) and _leads_up(path, above):
                left_out[f"{os.fsdecode(path)}/"] += 1
            else:
                inside = _files(path, os.listdir(path), endings, above, left_out)
                below += [os.path.join(name, file) for file in inside]
    found.sort()
    del found[bisect_left(found, b".") : bisect_left(found, b"/")]  # hidden ones
    return found + below
