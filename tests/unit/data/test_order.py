"""Which samples ranks read, for any number of samples, ranks, repeats and shards: shares that are equal, disjoint and fixed."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from statten.data.counter import hashed, permutation, uniform
from statten.data.order import shuffled, shuffled_shards

quick = settings(max_examples=80, deadline=None)
SIZES = {
    "samples": st.integers(1, 120), "batch_size": st.integers(1, 9), "world_size": st.integers(1, 5),
    "repeats": st.integers(1, 4), "epoch": st.integers(0, 5),
}  # fmt: skip


def chosen(samples: int) -> np.ndarray:
    """Indices of a part: not all of them, ascending."""
    return np.arange(samples) * 3 + 1


@quick
@given(**SIZES)
def test_ranks_share_one_order_of_all_samples(samples, batch_size, world_size, repeats, epoch):
    indices = chosen(samples)
    ranks = [
        shuffled(indices, 5, epoch, batch_size=batch_size, rank=rank, world_size=world_size, repeats=repeats)
        for rank in range(world_size)
    ]
    steps = samples // (batch_size * world_size)
    read = np.stack([order.samples for order in ranks])
    assert read.shape == (world_size, steps * batch_size), "equally many steps on all ranks, and none of them part of one"
    assert all(len(order.stream) == 0 for order in ranks)
    times = dict(zip(*np.unique(read, return_counts=True), strict=True))
    assert set(times) <= set(indices.tolist()) and len(times) == -(-read.size // repeats)
    assert sorted(times.values())[1:] == [repeats] * max(0, len(times) - 1), "but for the last, each as often as it is repeated"
    pairs = [(sample, again) for order in ranks for sample, again in zip(order.samples, order.repeats, strict=True)]
    assert len(set(pairs)) == len(pairs), "two ranks, or two steps, would draw the same augmentation"
    assert set(pairs) == {(sample, again) for sample, number in times.items() for again in range(number)}
    # One rank with larger batches takes the same steps.
    alone = shuffled(indices, 5, epoch, batch_size=batch_size * world_size, repeats=repeats)
    for step in range(steps):
        together = read[:, step * batch_size : (step + 1) * batch_size]
        at = slice(step * together.size, (step + 1) * together.size)
        if repeats == 1:
            assert np.array_equal(together.ravel(), alone.samples[at])
        else:
            assert np.array_equal(together.T.ravel(), alone.samples[at]), "repeats go to different ranks"


@quick
@given(**SIZES, shards=st.integers(1, 8), window=st.integers(1, 40))
def test_ranks_read_stretches_of_one_stream_of_shards(samples, batch_size, world_size, repeats, epoch, shards, window):
    indices = chosen(samples)
    owner = np.arange(3 * samples + 1) * shards // (3 * samples + 1)
    ranks = [
        shuffled_shards(
            indices, owner, 5, epoch, batch_size=batch_size, window=window, rank=rank, world_size=world_size, repeats=repeats
        )
        for rank in range(world_size)
    ]
    share = samples // (batch_size * world_size) * batch_size
    stretch = -(-share // repeats)
    assert all(len(order.samples) == len(order.repeats) == share and len(order.stream) == stretch for order in ranks)
    streams = np.concatenate([order.stream for order in ranks])
    assert len(np.unique(streams)) == len(streams) and set(streams) <= set(indices.tolist()), "no sample on two ranks"
    changes = np.flatnonzero(np.diff(owner[streams])) + 1
    assert len(changes) + 1 == len(np.unique(owner[streams])) or not len(streams), "a shard is read in one go"
    for part in np.split(streams, changes):
        assert np.array_equal(part, np.sort(part)), "and from its begin to its end"
    for order in ranks:
        assert np.array_equal(order.repeats, np.arange(share) % repeats), "repeats stay on their rank"
        order_once = order.samples[::repeats]
        assert np.array_equal(order_once[:stretch].repeat(repeats)[:share], order.samples)
        for begin in range(0, stretch, window):
            within = slice(begin, begin + window)
            assert set(order_once[within]) == set(order.stream[within]), "a rank needs a window of a shard, and not more"


def test_epochs_seeds_and_shards_have_orders_of_their_own():
    indices, owner = chosen(400), np.arange(1300) // 130
    orders = [shuffled(indices, seed, epoch, batch_size=4).samples for seed in (0, 1) for epoch in (0, 1)]
    sharded = [shuffled_shards(indices, owner, seed, epoch, batch_size=4, window=50) for seed in (0, 1) for epoch in (0, 1)]
    for found in (orders, [order.samples for order in sharded], [owner[order.stream] for order in sharded]):
        assert len({tuple(order) for order in found}) == 4
    for order in sharded:
        assert np.mean(order.samples[:50] == order.stream[:50]) < 0.2, "shuffled inside its window"
    one_shard = [
        shuffled_shards(indices, np.zeros(1300, np.int64), seed, epoch, batch_size=4, window=50).samples
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in one_shard}) == 3, "windows too are shuffled by seed and epoch"
    again = shuffled_shards(indices, owner, 1, 1, batch_size=4, window=50)
    assert np.array_equal(again.samples, sharded[3].samples) and np.array_equal(again.stream, sharded[3].stream)


def test_alone_and_without_repeats_every_sample_comes_once():
    indices = chosen(40)
    for order in (
        shuffled(indices, 0, 0, batch_size=4),
        shuffled_shards(indices, np.zeros(200, np.int64), 0, 0, batch_size=4, window=9),
    ):
        assert sorted(order.samples) == indices.tolist() and not order.repeats.any()
        assert order.samples.dtype == order.stream.dtype == np.int64


def test_draws_are_those_of_ever():
    """A changed constant would be another augmentation in every run that goes on."""
    draws = uniform("augment", 7, 3, np.array([0, 5]), 3)
    assert draws.shape == (3, 2) and draws.dtype == np.float64
    assert draws.tolist() == [
        [0.5199014517394436, 0.4759179505994565], [0.6617879627267701, 0.41955338900812666],
        [0.9125213427726936, 0.7736243409981879],
    ]  # fmt: skip
    many = uniform("augment", 0, 0, np.arange(2000), 2)
    assert 0 <= many.min() < 0.01 and 0.99 < many.max() < 1


@quick
@given(seed=st.integers(-(2**63), 2**63 - 1), epoch=st.integers(0, 10**6), n=st.integers(0, 50))
def test_a_permutation_has_every_number_once(seed, epoch, n):
    found = permutation("order", seed, epoch, n)
    assert np.array_equal(np.sort(found), np.arange(n)) and np.array_equal(found, permutation("order", seed, epoch, n))


@quick
@given(a=st.tuples(*[st.integers(0, 2**63 - 1)] * 3), b=st.tuples(*[st.integers(0, 2**63 - 1)] * 3))
def test_other_coordinates_have_other_bits(a, b):
    assume(a != b)
    assert hashed("x", *a)[0] != hashed("x", *b)[0] and hashed("x", *a)[0] != hashed("y", *a)[0]
