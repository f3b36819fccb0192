"""Stratified, seeded split into training, validation and test part."""

import numpy as np

from statten.data.counter import hashed

TEST = 0.2
"""Share of each class in the test part of datasets that come without one."""


def split(labels: np.ndarray, validation: float, fraction: float, seed: int) -> dict[str, np.ndarray]:
    """Divide sample indices by class.

    Each class is put into a random order of its own. From its end come the test part and, of the rest, the validation
    part; the first `fraction` of what is left is the training part. So test and validation do not depend on `fraction`,
    and a smaller training part lies within a larger one.

    Args:
        labels: [N] class of every sample.
        validation: share of the samples outside the test part, in (0, 0.5).
        fraction: share of the training part that is used, in (0, 1].
        seed: `data.split_seed`.

    Returns:
        `train`, `validation`, `test`: ascending int64 indices, disjoint, each with samples of every class.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    keys = hashed("split", seed, np.arange(len(labels)))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(keys[members], kind="stable")]
        rest, test = np.split(members, [len(members) - max(1, round(TEST * len(members)))])
        train, held_out = np.split(rest, [len(rest) - max(1, round(validation * len(rest)))])
        parts["train"].append(train[: max(1, round(fraction * len(train)))])
        parts["validation"].append(held_out)
        parts["test"].append(test)
    return {name: np.sort(np.concatenate(indices)) for name, indices in parts.items()}
