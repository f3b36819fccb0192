"""Stratified, seeded split into training, validation and test part, and its form on disk."""

import base64
import hashlib
import zlib
from typing import Any

import numpy as np

from statten.data.counter import hashed

TEST = 0.2
"""Share of each class in the test part of datasets that come without one."""
READABLE = 20_000
"""Up to so many samples splits.json lists indices; a larger dataset has a bit for each sample."""


def split(
    labels: np.ndarray,
    validation: float | str,
    fraction: float,
    seed: int,
    test: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Divide sample indices by class.

    Each class is put into a random order of its own. From its end come the test part (unless the dataset has one) and, of
    the rest, the validation part; the first `fraction` of what is left is the training part. So test and validation do not
    depend on `fraction`, and a smaller training part lies within a larger one.

    Args:
        labels: [N] class of every sample.
        validation: share of the samples outside the test part, in (0, 0.5); "test" takes none, and validates on the test part.
        fraction: share of the training part that is used, in (0, 1].
        seed: `data.split_seed`.
        test: indices of the test part that the dataset comes with.
        given: indices of the validation part that it comes with; then none is cut off.

    Returns:
        `train`, `validation`, `test`: ascending int64 indices, disjoint unless validation is "test"; each has samples of
        every class that has three (two, where the test part is given).
    """
    parts: dict[str, list[np.ndarray]] = {
        "train": [], "validation": [] if given is None else [given], "test": [] if test is None else [test],
    }  # fmt: skip
    keys = hashed("split", seed, np.arange(len(labels)))
    free = np.ones(len(labels), dtype=bool)
    for part in (test, given):
        if part is not None:
            free[part] = False
    # One sort by class, then by key, cuts a million samples in a second.
    order = np.lexsort((keys, labels))
    order = order[free[order]]
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if test is None:
            members, chosen = np.split(members, [len(members) - max(1, round(TEST * len(members)))])
            parts["test"].append(chosen)
        if validation != "test" and given is None:
            cut = min(len(members) - 1, max(1, round(float(validation) * len(members))))
            members, held_out = np.split(members, [len(members) - cut])
            parts["validation"].append(held_out)
        parts["train"].append(members[: max(1, round(fraction * len(members)))])
    if validation == "test":
        parts["validation"] = parts["test"]
    return {name: np.sort(np.concatenate(indices)).astype(np.int64) for name, indices in parts.items()}


def identity(labels: np.ndarray) -> dict[str, Any]:
    """Which data indices mean: the number of `samples`, and SHA-256 of the `labels` [N] as int64 little-endian."""
    return {"samples": len(labels), "labels": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()}


def encode(parts: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """A split as JSON: lists of indices, or for a large dataset one bit per sample, compressed; and `identity` of its data."""
    known = identity(labels)
    if len(labels) <= READABLE:
        return {**{name: indices.tolist() for name, indices in parts.items()}, **known}
    return {**{name: _bits(indices, len(labels)) for name, indices in parts.items()}, **known}


def decode(document: dict[str, Any]) -> dict[str, np.ndarray]:
    """The split that `encode` wrote."""
    return {name: _indices(document[name]) for name in ("train", "validation", "test") if name in document}


def _bits(indices: np.ndarray, samples: int) -> dict[str, Any]:
    chosen = np.zeros(samples, dtype=bool)
    chosen[indices] = True
    return {
        "count": len(indices),
        "form": "base64 of zlib of numpy.packbits, a bit for each sample",
        "bits": base64.b64encode(zlib.compress(np.packbits(chosen).tobytes(), 9)).decode(),
    }


def _indices(part: Any) -> np.ndarray:
    if isinstance(part, list):
        return np.array(part, dtype=np.int64)
    packed = np.frombuffer(zlib.decompress(base64.b64decode(part["bits"])), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(packed)).astype(np.int64)
