"""Event clips: frame folders as SpikingJelly 2.0 makes and reads them.

    <root>/frames_number_T_split_by_number/<class>/<name>.npz              CIFAR10-DVS, N-Caltech101
    <root>/frames_number_T_split_by_number/{train,test}/<class>/<name>.npz DVS128 Gesture
    <root>/<class>/<name>.npz, or <root>/{train,test}/<class>/...          event_folder, the user's own

A file holds `frames` [T, 2, H, W], the number of events of each polarity and pixel (OFF, ON). `prepare.py` makes them.

T frames, H height, W width.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from statten.config import Config
from statten.data.archives import read_arrays
from statten.data.dataset import Damaged, Files
from statten.data.folders import CLIPS, Listing, dataset_root, held_out, list_parts
from statten.errors import UserError, in_shell

PUBLISHED_TRAIN = 9, 10
"""Of each class, files sorted by name, the first 9/10 are for training (Lee et al., 2025, for both datasets without a test
part), rounded up as spikingjelly.datasets.split_to_train_test_set does."""


def frames_folder(root: Path, frames: int) -> Path:
    """Where SpikingJelly keeps clips of T frames of equally many events."""
    return root / f"frames_number_{frames}_split_by_number"


def building(folder: Path) -> Path:
    """SpikingJelly's mark of a folder that is not finished."""
    return folder.with_name(f"{folder.name}.building")


def prepared_frames(root: Path) -> list[int]:
    """Every T for which finished frames lie in `root`."""
    found = (re.fullmatch(r"frames_number_(\d+)_split_by_number", path.name) for path in root.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match and not building(root / match[0]).exists())


def read_frames(path: Path | str) -> np.ndarray:
    """Event counts [T, 2, H, W] of a file; raises Damaged or OSError."""
    (content,) = read_arrays(path, "frames")
    if content.ndim != 4 or content.shape[1] != 2 or content.dtype.kind not in "uif":
        raise Damaged(f"must hold numbers [T, 2, H, W], but holds {content.dtype} {list(content.shape)}")
    return content


def clip(counts: np.ndarray) -> Tensor:
    """Event counts of any number type as a clip, of whole numbers where they are whole."""
    if counts.dtype == np.uint8:
        return torch.from_numpy(counts)
    whole = counts.astype(np.int32)
    return torch.from_numpy(whole if (whole == counts).all() else counts.astype(np.float32))


class FrameFolders(Files):
    """Clips in class folders."""

    layout = "class folders of clips"

    def __init__(
        self, config: Config, listing: Listing, frames: int, test: np.ndarray | None, validation: np.ndarray | None = None
    ):
        super().__init__(config, listing.classes, listing.labels, test, validation)
        self._names, self._folder, self._frames = listing.names, str(listing.folder), frames
        self.left_out, self._regroup = listing.left_out, config.data.regroup

    def read(self, index: int) -> Tensor:
        counts = read_frames(self.locate(index))
        return clip(of_length(counts, self._frames, self._regroup))

    def locate(self, index: int) -> str:
        return f"{self._folder}/{self._names[index]}"


def of_length(counts: np.ndarray, frames: int, regroup: str) -> np.ndarray:
    """A clip [N, 2, H, W] as one of `frames` frames, as `data.regroup` says; raises Damaged where it cannot be one."""
    if len(counts) > frames and regroup != "none":
        return regrouped(counts, frames, regroup)
    if len(counts) != frames:
        raise Damaged(f"has {len(counts)} frames, but model.timesteps is {frames}")
    return counts


def regrouped(counts: np.ndarray, frames: int, how: str) -> np.ndarray:
    """A clip [N, 2, H, W] of more frames as one of `frames`: its N frames in groups of N / frames, as equal as can be.

    Args:
        counts: event counts.
        frames: of the result, at most N.
        how: `sum` adds the frames of a group up, `subsample` takes its middle one.
    """
    n = len(counts)
    if how == "subsample":
        return counts[(2 * np.arange(frames) + 1) * n // (2 * frames)]
    return np.add.reduceat(counts, np.arange(frames) * n // frames, dtype=np.float32 if counts.dtype.kind == "f" else np.int32)


def clip_length(config: Config) -> int:
    """T of the clips that a config reads."""
    return config.data.frames or config.model.timesteps


def open_frames(config: Config) -> FrameFolders:
    """CIFAR10-DVS, N-Caltech101 or DVS128 Gesture from its prepared frames."""
    root, frames, name = dataset_root(config), clip_length(config), config.data.name
    folder = frames_folder(root, frames)
    command = f"statten data prepare {name} --root {in_shell(root)} --timesteps {frames}"
    if building(folder).exists():
        raise UserError(f"{folder}: is not finished; go on with: {command}")
    if not folder.is_dir():
        others = prepared_frames(root)
        there = f"; there are clips of T = {', '.join(map(str, others))} (model.timesteps)" if others else ""
        raise UserError(f"{folder}: no such folder, so there are no clips of {frames} frames{there}; make them with: {command}")
    listing = list_parts(folder, CLIPS, "clip")
    given = name == "dvs128gesture"
    if given != (len(listing.parts) == 2):
        what = "must hold train/ and test/" if given else "must hold class folders, not parts"
        raise UserError(f"{folder}: {what}, as {name} does; delete it and make it with: {command}")
    return FrameFolders(config, listing, frames, held_out(listing.parts)["test"] if given else last_tenth(listing.labels))


def last_tenth(labels: np.ndarray) -> np.ndarray:
    """The published test part: the last tenth of each class; `labels` [N] is in the order of classes and names."""
    parts, (of, whole) = [], PUBLISHED_TRAIN
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        cut = min(-(-of * len(members) // whole), len(members) - 1)
        parts.append(members[max(1, cut) :])
    return np.concatenate(parts)


def open_event_folder(config: Config) -> FrameFolders:
    """Ready clips of the user's own classes."""
    root, frames = dataset_root(config), clip_length(config)
    folder, others, regroups = frames_folder(root, frames), prepared_frames(root), config.data.regroup != "none"
    longer = [there for there in others if there > frames]
    unfinished = [path.with_suffix("") for path in root.glob("frames_number_*_split_by_number.building")]
    if folder in unfinished or (unfinished and not others):
        raise UserError(f"{unfinished[0]}: is not finished; go on with the `statten data prepare event_folder` that began it")
    if not folder.is_dir() and regroups and longer:
        folder = frames_folder(root, longer[0])
    if others and not folder.is_dir():
        raise UserError(f"{folder}: no such folder; there are clips of T = {', '.join(map(str, others))} (model.timesteps)")
    listing = list_parts(folder if folder.is_dir() else root, CLIPS, "clip")
    source = FrameFolders(config, listing, frames, **held_out(listing.parts))
    # One look, so that a wrong T is said before the run.
    try:
        found = len(read_frames(source.locate(0)))
    except (Damaged, OSError):
        found = frames  # said when it is read, as of any other file
    if found < frames or (found > frames and not regroups):
        most, way = ("at most ", "") if regroups else ("", ", or data.regroup=sum" if found > frames else "")
        raise UserError(
            f"model.timesteps: must be {most}{found}, the frames of the clips in {listing.folder}, but got {frames}; "
            f"use model.timesteps={found}{way}"
        )
    return source
