"""Everything that turns what is published into what is read: downloads, and archives -> events -> frames.

    <root>/download/           archives, as they are published (they may lie in <root> too)
    <root>/extract/            or their extracted content
    <root>/events_np/          one .npz of t, x, y, p for each sample, in class folders
    <root>/frames_number_T_split_by_number/

These are SpikingJelly's folders. The user's own recordings become clips in `own_events.py`.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from statten.config import Config
from statten.data.archives import BROKEN, extract, read_arrays, zip_members
from statten.data.dataset import Damaged
from statten.data.events import clip_length, frames_folder
from statten.data.folders import existing_folder
from statten.data.images import cifar_source, published
from statten.data.making import Making, finished, integrate, whole, write_npz
from statten.data.own_events import prepare_recordings, reach, sensor_size
from statten.data.raw_events import FORMATS, EventFormat, Events, check_events, cut_gesture, gesture_rows
from statten.data.work import Progress, default_workers, silent, sole_writer
from statten.errors import Failed, UserError

EVENTS = "events_np"


def fetch(config: Config) -> None:
    """Make sure that the dataset of a config is in `data.root`, as `data.download` asks; raises UserError."""
    name, root = config.data.name, config.data.root
    if root is not None and name in ("cifar10", "cifar100", *FORMATS):
        prepare(name, Path(root), [clip_length(config)] if name in FORMATS else [])


def prepare(
    name: str, root: Path, timesteps: list[int], *, output: Path | None = None, size: str | None = None, downsample: int = 1,
    workers: int | None = None, skip_corrupt: bool = False, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Make a dataset ready to be read.

    Args:
        name: of the dataset.
        root: its folder; made where the dataset can be fetched. Of `event_folder`, that of the recordings.
        timesteps: every T for which an event dataset gets clips.
        output: of `event_folder` alone, the folder of the clips.
        size: of `event_folder` alone, the sensor's WIDTHxHEIGHT in pixels.
        downsample: of `event_folder` alone, counts so many x so many pixels as one.
        workers: threads; None means one for each core.
        skip_corrupt: leave out raw files that cannot be read; otherwise they are named at the end, and the folder stays
            unfinished.
        progress: is told how far it is.

    Returns:
        {"name", "root", "samples"}, for an event dataset also {"frames": {T: folder}, "corrupt": [{"file", "reason"}]}, and
        for `event_folder` what `own_events.prepare_recordings` says.

    Raises:
        UserError: nothing to prepare, or an archive is missing and cannot be fetched.
        Failed: some raw files are corrupt.
    """
    making = Making(workers or default_workers(), skip_corrupt, progress)
    given = {"--output": output is not None, "--size": size is not None, "--downsample": downsample != 1}
    if name != "event_folder" and any(given.values()):
        option = next(option for option, is_given in given.items() if is_given)
        raise UserError(f"{option}: is for event_folder, your own recordings, and has no effect on {name}; leave it out")
    try:
        if name in ("cifar10", "cifar100"):
            return _prepare_cifar(name, root)
        if name == "event_folder":
            return _prepare_own(root, timesteps, output, size, downsample, making)
        return _prepare_events(name, root, timesteps, making)
    except OSError as error:  # a full disk is no corrupt file
        raise Failed(f"{error.filename or root}: {error.strerror or error}") from None


def _prepare_own(
    root: Path, timesteps: list[int], output: Path | None, size: str | None, downsample: int, making: Making
) -> dict[str, Any]:
    if output is None:
        raise UserError(
            "--output: event_folder needs a folder for the clips that are made of the recordings in --root; clips that are "
            "ready need no preparation, look at them with: statten data check event_folder"
        )
    source, target = root.absolute(), output.absolute()
    if target == source or source in target.parents:
        raise UserError(f"--output: must lie outside of --root, whose folders are the classes, but got {output}")
    _needs_timesteps("event_folder", timesteps)
    if size is None:
        raise UserError(f"--size: must say the sensor's WIDTHxHEIGHT in pixels, such as --size 128x128; {reach(root)}")
    return prepare_recordings(root, output, timesteps, sensor_size(size), downsample, making)


def _needs_timesteps(name: str, timesteps: list[int]) -> None:
    if not timesteps:
        raise UserError(f"--timesteps: {name} needs at least one number of frames, such as --timesteps 10")


def _prepare_events(name: str, root: Path, timesteps: list[int], making: Making) -> dict[str, Any]:
    if name not in FORMATS:
        raise UserError(
            f"{name}: needs no preparation, it is read as it lies in its folder; look at it with: statten data check {name}"
        )
    _needs_timesteps(name, timesteps)
    if not FORMATS[name].fetched:
        existing_folder(root, "--root")
    work = _Work(name, root, FORMATS[name], making)
    folders = {frames: frames_folder(root, frames) for frames in sorted(set(timesteps))}
    if not all(finished(folder) for folder in folders.values()):
        with sole_writer(root, "clips"):
            if not finished(root / EVENTS):
                work.make_events()
            for frames, folder in folders.items():
                if not finished(folder):
                    work.make_frames(frames, folder)
    samples = sum(1 for _ in next(iter(folders.values())).rglob("*.npz"))
    return {
        "name": name, "root": str(root), "samples": samples,
        "frames": {str(frames): str(folder) for frames, folder in folders.items()},
        "corrupt": [{"file": file, "reason": reason} for file, reason in work.corrupt.items()],
    }  # fmt: skip


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

    def __init__(self, name: str, root: Path, form: EventFormat, making: Making):
        self.name, self.root, self.form, self.making = name, root, form, making
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
            if all(whole(folder / output) for output in file.outputs):
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
                    write_npz(folder / output, **checked)
            return problems

        self.corrupt |= self.making.run("events", [folder], source, convert, len(raw))

    def make_frames(self, frames: int, folder: Path) -> None:
        """events_np to clips of `frames` frames."""
        events = self.root / EVENTS
        names = sorted(str(path.relative_to(events)) for path in events.rglob("*.npz") if not path.name.startswith("."))

        def convert(i: int) -> list[tuple[str, str]]:
            target = folder / names[i]
            if whole(target):
                return []
            try:
                found = check_events(_read_events(events / names[i]), self.form.height, self.form.width)
                clip = integrate(found, frames, self.form.height, self.form.width)
            except (Damaged, OSError) as error:
                return [(str(events / names[i]), str(error))]
            write_npz(target, frames=clip)
            return []

        self.corrupt |= self.making.run(f"frames T={frames}", [folder], names, convert, len(names))


def _read_events(path: Path) -> Events:
    columns = read_arrays(path, *"txyp")
    if len(columns) < 4 or any(column.shape != (len(columns[0]),) or column.dtype.kind not in "uib" for column in columns):
        raise Damaged("is no .npz file of t, x, y, p, each a number for every event")
    return dict(zip("txyp", columns, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Raw files, in their archives or extracted.


def raw_files(name: str, root: Path, form: EventFormat) -> list[_Raw]:
    """The raw files of an event dataset, fetched first where that is possible; raises UserError where they are missing."""
    extracted = root / "extract" / form.inner if form.inner else root / "extract"
    archives = {file: _archive(root, file) for file in form.archives}
    missing = [file for file, path in archives.items() if path is None]
    if missing and extracted.is_dir():
        archives = {}
    elif missing and form.fetched:
        for file in missing:
            url, md5 = form.fetched[file]
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
