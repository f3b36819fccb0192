"""Counter-based random numbers: each is a pure function of its coordinates, so nothing has a state to save or to share.

A stream per sample would cost a generator per sample; a hash of (stream, seed, epoch, index) costs a few array operations
for a whole batch and gives the same numbers on every rank, in every loader process and after every resume. The hash is
the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
"""

import zlib

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashed(stream: str, *coordinates: int | np.ndarray) -> np.ndarray:
    """64 random bits for each point of the broadcast coordinates (whole numbers); `stream` keeps purposes apart."""
    state = np.full(1, zlib.crc32(stream.encode()), dtype=np.uint64)
    for coordinate in coordinates:
        if isinstance(coordinate, int):
            coordinate = np.array([coordinate & _MASK], dtype=np.uint64)
        state = _mix(state ^ _mix(coordinate.astype(np.uint64)))
    return state


def uniform(stream: str, seed: int, epoch: int, indices: np.ndarray, draws: int) -> np.ndarray:
    """Float64 [draws, B] in [0, 1) for sample indices [B]."""
    bits = hashed(stream, seed, epoch, indices[None, :], np.arange(draws)[:, None])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(stream: str, seed: int, epoch: int, n: int) -> np.ndarray:
    """Random order of 0 .. n - 1, int64."""
    return np.argsort(hashed(stream, seed, epoch, np.arange(n)), kind="stable")
