"""Everything that turns what is published into what is read: downloads, and archives -> events -> frames.

    <root>/download/           archives, as they are published (they may lie in <root> too)
    <root>/extract/            or their extracted content
    <root>/events_np/          one .npz of t, x, y, p for each sample, in class folders
    <root>/frames_number_T_split_by_number/

These are SpikingJelly's folders, and like it we mark one that is not finished by a file `<folder>.building` beside it. A
file gets its name when it is whole, and what is there already is not made again: stopped at any moment, `prepare` goes on
where it was and ends in the same bytes.
"""

import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from statten.config import Config
from statten.data.archives import BROKEN, extract, read_arrays, zip_members
from statten.data.dataset import Damaged
from statten.data.events import building, clip_length, frames_folder
from statten.data.folders import existing_folder
from statten.data.images import cifar_source, published
from statten.data.raw_events import FORMATS, EventFormat, Events, check_events, cut_gesture, gesture_rows
from statten.data.work import Progress, default_workers, gathered, silent, sole_writer
from statten.errors import Failed, UserError

EVENTS = "events_np"
SHOWN = 5
"""Corrupt files that a message names."""


def fetch(config: Config) -> None:
    """Make sure that the dataset of a config is in `data.root`, as `data.download` asks; raises UserError."""
    name, root = config.data.name, config.data.root
    if root is not None and name in ("cifar10", "cifar100", *FORMATS):
        prepare(name, Path(root), [clip_length(config)] if name in FORMATS else [])


def prepare(
    name: str, root: Path, timesteps: list[int], *, workers: int | None = None, skip_corrupt: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Make a dataset ready to be read.

    Args:
        name: of the dataset.
        root: its folder; made where the dataset can be fetched.
        timesteps: every T for which an event dataset gets clips.
        workers: threads; None means one for each core.
        skip_corrupt: leave out raw files that cannot be read; otherwise they are named at the end, and the folder stays
            unfinished.
        progress: is told how far it is.

    Returns:
        {"name", "root", "samples"}, for an event dataset also {"frames": {T: folder}, "corrupt": [{"file", "reason"}]}.

    Raises:
        UserError: nothing to prepare, or an archive is missing and cannot be fetched.
        Failed: some raw files are corrupt.
    """
    try:
        if name in ("cifar10", "cifar100"):
            return _prepare_cifar(name, root)
        return _prepare_events(name, root, timesteps, workers or default_workers(), skip_corrupt, progress)
    except OSError as error:  # a full disk is no corrupt file
        raise Failed(f"{error.filename or root}: {error.strerror or error}") from None


def _prepare_events(
    name: str, root: Path, timesteps: list[int], workers: int, skip_corrupt: bool, progress: Progress
) -> dict[str, Any]:
    if name not in FORMATS:
        raise UserError(
            f"{name}: needs no preparation, it is read as it lies in its folder; look at it with: statten data check {name}"
        )
    if not timesteps:
        raise UserError(f"--timesteps: {name} needs at least one number of frames, such as --timesteps 10")
    if name != "cifar10dvs":  # which is fetched
        existing_folder(root, "--root")
    work = _Work(name, root, FORMATS[name], workers, skip_corrupt, progress)
    folders = {frames: frames_folder(root, frames) for frames in sorted(set(timesteps))}
    if not all(_finished(folder) for folder in folders.values()):
        with sole_writer(root, "clips"):
            if not _finished(root / EVENTS):
                work.make_events()
            for frames, folder in folders.items():
                if not _finished(folder):
                    work.make_frames(frames, folder)
    samples = sum(1 for _ in next(iter(folders.values())).rglob("*.npz"))
    return {
        "name": name, "root": str(root), "samples": samples,
        "frames": {str(frames): str(folder) for frames, folder in folders.items()},
        "corrupt": [{"file": file, "reason": reason} for file, reason in work.corrupt.items()],
    }  # fmt: skip


def _finished(folder: Path) -> bool:
    return folder.is_dir() and not building(folder).exists()


@dataclass(frozen=True)
class _Raw:
    """A raw file and what becomes of it."""

    name: str
    outputs: tuple[str, ...]
    """Paths of its samples below events_np."""
    events: Callable[[], Iterable[Events]]
    """Reads its samples; raises Damaged or BROKEN."""
    problems: tuple[tuple[str, str], ...] = ()
    """Name and reason of each sample that it should hold and does not."""


class _Work:
    """One `prepare` of an event dataset."""

    def __init__(self, name: str, root: Path, form: EventFormat, workers: int, skip_corrupt: bool, progress: Progress):
        self.name, self.root, self.form = name, root, form
        self.workers, self.skip_corrupt, self.progress = workers, skip_corrupt, progress
        self.corrupt: dict[str, str] = {}

    def make_events(self) -> None:
        """Raw files to events_np."""
        raw = raw_files(self.name, self.root, self.form)
        folder = self.root / EVENTS
        source: dict[str, str] = {}
        for file in raw:
            for output in file.outputs:
                if output in source:
                    raise UserError(f"{self.root}: {source[output]} and {file.name} are both {output}; keep one of them")
                source[output] = file.name

        def convert(i: int) -> list[tuple[str, str]]:
            problems, file = list(raw[i].problems), raw[i]
            if all(_whole(folder / output) for output in file.outputs):
                return problems
            try:
                samples = list(file.events())
            except (Damaged, *BROKEN) as error:
                return [*problems, (file.name, str(error))]
            for output, events in zip(file.outputs, samples, strict=True):
                try:
                    checked = check_events(events, self.form.height, self.form.width)
                except Damaged as error:
                    problems.append((file.name if len(samples) == 1 else f"{file.name}: {output}", str(error)))
                else:
                    _write_npz(folder / output, **checked)
            return problems

        self._run("events", folder, set(source), convert, len(raw))

    def make_frames(self, frames: int, folder: Path) -> None:
        """events_np to clips of `frames` frames."""
        events = self.root / EVENTS
        names = sorted(str(path.relative_to(events)) for path in events.rglob("*.npz") if not path.name.startswith("."))

        def convert(i: int) -> list[tuple[str, str]]:
            target = folder / names[i]
            if _whole(target):
                return []
            try:
                found = check_events(_read_events(events / names[i]), self.form.height, self.form.width)
                clip = integrate(found, frames, self.form.height, self.form.width)
            except (Damaged, OSError) as error:
                return [(str(events / names[i]), str(error))]
            _write_npz(target, frames=clip)
            return []

        self._run(f"frames T={frames}", folder, set(names), convert, len(names))

    def _run(
        self, what: str, folder: Path, outputs: set[str], convert: Callable[[int], list[tuple[str, str]]], count: int
    ) -> None:
        building(folder).touch()
        for parent in sorted({(folder / output).parent for output in outputs}):
            parent.mkdir(parents=True, exist_ok=True)
        corrupt: dict[str, str] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            for done, problems in enumerate(gathered(pool, convert, count), 1):
                corrupt.update(problems)
                self.progress(what, done, count)
        lost = sum(not (folder / output).exists() for output in outputs)
        if corrupt and (not self.skip_corrupt or lost == len(outputs)):
            named = "; ".join(f"{file}: {reason}" for file, reason in list(corrupt.items())[:SHOWN])
            more = f"; and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
            raise Failed(
                f"{folder} is not finished, {lost} of {len(outputs)} samples cannot be made: {named}{more}; "
                f"fetch them anew and repeat, or leave them out with --skip-corrupt"
            )
        self.corrupt |= corrupt
        building(folder).unlink()


def integrate(events: Events, frames: int, height: int, width: int) -> np.ndarray:
    """Clip [T, 2, H, W] of event counts in the smallest type that holds them: frames of equally many events."""
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    if len(events["t"]) < frames:
        raise Damaged(f"{len(events['t'])} events do not fill {frames} frames")
    counts = integrate_events_by_fixed_frames_number(events, "number", frames, height, width)
    return counts.astype(np.min_scalar_type(int(counts.max())))


def _read_events(path: Path) -> Events:
    columns = read_arrays(path, *"txyp")
    if len(columns) < 4 or any(column.shape != (len(columns[0]),) or column.dtype.kind not in "uib" for column in columns):
        raise Damaged("is no .npz file of t, x, y, p, each a number for every event")
    return dict(zip("txyp", columns, strict=True))


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    aside.replace(path)


def _whole(path: Path) -> bool:
    # The directory of a zip file comes last: a file that an older tool or a power cut left cut off has none.
    return path.is_file() and zipfile.is_zipfile(path)


# ---------------------------------------------------------------------------------------------------------------------
# Raw files, in their archives or extracted.


def raw_files(name: str, root: Path, form: EventFormat) -> list[_Raw]:
    """The raw files of an event dataset, fetched first where that is possible; raises UserError where they are missing."""
    extracted = root / "extract" / form.inner if form.inner else root / "extract"
    archives = {file: _archive(root, file) for file in form.archives}
    missing = [file for file, path in archives.items() if path is None]
    if missing and extracted.is_dir():
        archives = {}
    elif missing and name == "cifar10dvs":
        from spikingjelly.datasets.cifar10_dvs import CIFAR10DVS

        for file, url, md5 in CIFAR10DVS.resource_url_md5():
            if file in missing:
                archives[file] = download(url, root / "download", file, md5)
    elif missing:
        raise UserError(f"{root}: lacks {', '.join(missing)}; fetch it from {form.url} and put it into {root / 'download'}")
    if name == "dvs128gesture":
        if not extracted.is_dir():
            extract(archives[form.archives[0]], root / "extract")  # type: ignore[arg-type]
        return _gesture_files(extracted, form)
    found = []
    for path in archives.values():
        found += _zipped(path, form)  # type: ignore[arg-type]
    if not archives:
        paths = sorted(extracted.rglob(f"*{form.suffix}"))
        members = {path: PurePosixPath(path.relative_to(extracted)) for path in paths if not path.name.startswith("._")}
        found = [_raw(form, str(path), member, path.read_bytes) for path, member in members.items()]
    if not found:
        raise UserError(f"{root}: its archives hold no {form.suffix} files, so they are not those of {name} ({form.url})")
    return found


def _archive(root: Path, file: str) -> Path | None:
    return next((path for path in (root / "download" / file, root / file) if path.is_file()), None)


def _raw(form: EventFormat, name: str, path: PurePosixPath, content: Callable[[], bytes]) -> _Raw:
    return _Raw(name, (str(path.with_suffix(".npz")),), lambda: [form.read(content())])


def _zipped(path: Path, form: EventFormat) -> list[_Raw]:
    found = []
    for member, name, read in zip_members(path):
        if form.inner in member.parts[:1]:
            member = member.relative_to(form.inner)
        elif form.inner:
            continue
        if member.suffix == form.suffix and len(member.parts) == 2 and not member.name.startswith("."):
            found.append(_raw(form, f"{path}: {name}", member, read))
    return found


def _gesture_files(folder: Path, form: EventFormat) -> list[_Raw]:
    found, part_of = [], dict[str, str]()
    for part in ("train", "test"):
        file = folder / f"trials_to_{part}.txt"
        if not file.is_file():
            raise UserError(f"{folder}: lacks {file.name}, so it is no whole DVS128 Gesture")
        trials = dict.fromkeys(file.read_text(errors="replace").split())
        if not trials:
            raise UserError(f"{file}: names no recording, so there would be no {part} part")
        for trial in trials:
            if PurePosixPath(trial).name != trial:
                raise UserError(f"{file}: must hold names of files beside it, but got {trial!r}")
            if part_of.setdefault(trial, part) != part:
                raise UserError(f"{folder}: {trial} is in trials_to_train.txt and in trials_to_test.txt; take it out of one")
            found.append(_gestures(form, folder / trial, part))
    return found


def _gestures(form: EventFormat, path: Path, part: str) -> _Raw:
    try:
        rows = gesture_rows(path.with_name(f"{path.stem}_labels.csv").read_bytes())
    except OSError as error:
        rows = [Damaged(f"its labels cannot be read: {error}")]
    good = [row for row in rows if not isinstance(row, Damaged)]

    def cut() -> list[Events]:
        events = form.read(path.read_bytes())
        return [cut_gesture(events, row) for row in good]

    # The names of the samples are known from the labels alone.
    outputs = tuple(f"{part}/{row.label}/{path.stem}_{row.number}.npz" for row in good)
    problems = [str(row) for row in rows if isinstance(row, Damaged)] or ([] if rows else ["its labels hold no gesture"])
    return _Raw(str(path), outputs, cut, tuple((f"{path} ({i})" if i else str(path), text) for i, text in enumerate(problems)))


# ---------------------------------------------------------------------------------------------------------------------
# Downloads.


def _prepare_cifar(name: str, root: Path) -> dict[str, Any]:
    about = published(name)
    if cifar_source(root, name) is None:
        with sole_writer(root, about.filename):
            download(about.url, root, about.filename, about.tgz_md5)
    return {"name": name, "root": str(root), "source": str(cifar_source(root, name))}


def download(url: str, folder: Path, file: str, md5: str) -> Path:
    """Fetch a file into a folder, checked against its published MD5; raises UserError where it cannot be had."""
    from torchvision.datasets.utils import download_url

    aside = folder / ".download"
    folder.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        download_url(url, str(aside), file, md5)
        os.replace(aside / file, folder / file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{url}: cannot be fetched ({error}); fetch {file} elsewhere and put it into {folder}") from None
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(aside, ignore_errors=True)
    return folder / file
