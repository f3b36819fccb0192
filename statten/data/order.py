"""Which samples a rank trains on, in which order: pure functions of (seed, epoch, rank)."""

from typing import NamedTuple

import numpy as np

from statten.data.counter import hashed, permutation


class Order(NamedTuple):
    """What one rank reads in one epoch, step after step; entry i belongs to step i // batch size."""

    samples: np.ndarray
    """Sample indices [steps * batch size]."""
    repeats: np.ndarray
    """How often that sample came before in this epoch [steps * batch size]."""
    stream: np.ndarray
    """The same samples, each once, in the order in which they lie on disk; empty where that does not matter."""


def shuffled(
    indices: np.ndarray, seed: int, epoch: int, *, batch_size: int, rank: int = 0, world_size: int = 1, repeats: int = 1
) -> Order:
    """Samples in random order.

    All ranks know the same order of all samples. Step s reads its s-th `batch_size * world_size` samples, of which rank r
    has the r-th `batch_size`; what is left over at the end is left out in this epoch. Repeats of a sample follow each
    other and go to different ranks (Hoffer et al.: Augment your batch, CVPR 2020; as DeiT and timm deal them out).
    """
    step = batch_size * world_size
    n = len(indices) // step * step
    order = indices[permutation("order", seed, epoch, len(indices))]
    samples = np.repeat(order[: -(-n // repeats)], repeats)[:n]
    before = np.arange(n) % repeats
    if repeats == 1:
        samples, before = (part.reshape(-1, world_size, batch_size)[:, rank].ravel() for part in (samples, before))
    else:
        samples, before = samples[rank::world_size], before[rank::world_size]
    return Order(samples, before, stream=np.empty(0, np.int64))


def shuffled_shards(
    indices: np.ndarray, shards: np.ndarray, seed: int, epoch: int, *, batch_size: int, window: int,
    rank: int = 0, world_size: int = 1, repeats: int = 1,
) -> Order:  # fmt: skip
    """Samples in an order that reads each shard from its begin to its end.

    The shards are put into a random order, and this stream of samples is cut into one stretch for each rank; all stretches
    are equally long, and what is left over at the end is left out in this epoch. Inside its stretch a rank shuffles
    windows of `window` samples, so it never needs more of a shard than that in memory. Repeats stay on their rank.

    Args:
        indices: training samples, ascending.
        shards: shard of every sample of the dataset.
    """
    n = len(indices) // (batch_size * world_size) * batch_size
    share = -(-n // repeats)
    stream = indices[np.argsort(hashed("shards", seed, epoch, shards[indices]), kind="stable")]
    stream = stream[rank * share : (rank + 1) * share]
    order = stream[np.lexsort((hashed("window", seed, epoch, stream), np.arange(share) // window))]
    return Order(np.repeat(order, repeats)[:n], np.arange(n) % repeats, stream)
