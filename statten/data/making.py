"""Making event clips: events to frames, many files side by side, each whole or not there at all.

A folder that is not finished is marked by a file `<folder>.building` beside it, as SpikingJelly does. A file gets its name when
it is whole, and what is there already is not made again: stopped at any moment, a command goes on where it was and ends in the
same bytes.

T frames, H height, W width.
"""

import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from statten.data.dataset import Damaged
from statten.data.events import building
from statten.data.raw_events import Events
from statten.data.work import Progress, gathered, silent
from statten.errors import Failed

SHOWN = 5
"""Corrupt files that a message names."""


@dataclass(frozen=True)
class Making:
    """How files are made from others."""

    workers: int
    """Threads."""
    skip_corrupt: bool = False
    """Leave out files that cannot be used, instead of naming them at the end and keeping the folder marked as unfinished."""
    progress: Progress = silent
    """Is told how far it is."""

    def run(
        self, what: str, folders: Sequence[Path], outputs: Iterable[str], convert: Callable[[int], list[tuple[str, str]]],
        count: int,
    ) -> dict[str, str]:  # fmt: skip
        """Make the files of one or more folders.

        Args:
            what: is made, for the progress.
            folders: get `outputs` each.
            outputs: paths below a folder.
            convert: makes the outputs of the i-th input, and gives name and reason of what cannot be used.
            count: of inputs.

        Returns:
            What was left out: file to reason.

        Raises:
            Failed: something is corrupt and is not to be left out, or nothing is left.
        """
        files = [folder / output for output in outputs for folder in folders]
        for folder in folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
            building(folder).touch()
        for parent in sorted({file.parent for file in files}):
            parent.mkdir(parents=True, exist_ok=True)
        corrupt: dict[str, str] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            for done, problems in enumerate(gathered(pool, convert, count), 1):
                corrupt.update(problems)
                self.progress(what, done, count)
        lost = sum(not file.exists() for file in files)
        if corrupt and (not self.skip_corrupt or lost == len(files)):
            named = "; ".join(f"{file}: {reason}" for file, reason in list(corrupt.items())[:SHOWN])
            more = f"; and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
            raise Failed(
                f"{folders[0]} is not finished, {lost // len(folders)} of {len(files) // len(folders)} samples cannot be made: "
                f"{named}{more}; mend them and repeat, or leave them out with --skip-corrupt"
            )
        for folder in folders:
            building(folder).unlink()
        return corrupt


def finished(folder: Path) -> bool:
    """Whether a folder is there and whole."""
    return folder.is_dir() and not building(folder).exists()


def integrate(events: Events, frames: int, height: int, width: int) -> np.ndarray:
    """Frames of equally many events, the last one with the remainder: SpikingJelly's `split_by="number"`.

    Args:
        events: of a sensor of H x W pixels, in order of time.
        frames: T.
        height: H.
        width: W.

    Returns:
        Event counts [T, 2, H, W], OFF in channel 0 and ON in channel 1, in the smallest type that holds them.

    Raises:
        Damaged: fewer events than frames.
    """
    count = len(events["t"])
    if count < frames:
        raise Damaged(f"{count} events do not fill {frames} frames")
    cells, each = 2 * height * width, count // frames
    cell = ((events["p"] != 0) * np.int64(height) + events["y"]) * width + events["x"]
    bounds = [*range(0, each * frames, each), count]
    counts = np.stack([np.bincount(cell[begin:end], minlength=cells) for begin, end in pairwise(bounds)])
    return counts.astype(np.min_scalar_type(int(counts.max()))).reshape(frames, 2, height, width)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write compressed arrays, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    aside.replace(path)


def whole(path: Path) -> bool:
    """Whether an .npz file is there from its beginning to its end."""
    # The directory of a zip file comes last: a file that an older tool or a power cut left cut off has none.
    return path.is_file() and zipfile.is_zipfile(path)
