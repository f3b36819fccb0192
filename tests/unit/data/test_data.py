"""What is read: the split is a partition, every epoch is a shuffle that ranks share, every draw belongs to its sample."""

import dataclasses
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch

import statten.config
from statten.config import load_config
from statten.data import DATASETS, TrainLoader, check_data, make_loaders, make_test_loader, open_source, split_indices
from statten.data.counter import hashed, permutation, uniform
from statten.data.dataset import InMemory, Samples
from statten.data.digits import digit_labels
from statten.data.digits_events import load as load_clips
from statten.data.split import split
from statten.errors import UserError

SIZES = {"digits": 8, "digits_events": 16}
DATA = sorted(name for name, dataset in DATASETS.items() if dataset.bundled)
KEYS = {"train", "validation", "test"}


def config_of(name, *overrides):
    """The dataset's recipe, small."""
    return load_config(name, [f"data.name={name}", *overrides])


def problems(config):
    with pytest.raises(UserError) as caught:
        check_data(config)
    return caught.value.problems


def numbered(n, augment=lambda x, seed, epoch, indices: x):
    """A dataset whose sample i is the number i."""
    samples = Samples(torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), torch.arange(n))
    return InMemory(samples.y.numpy(), lambda: samples, augment)


def read(batches):
    return [(x.clone(), y.clone()) for x, y in batches]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True)
    )


# --- datasets


def test_every_name_of_the_config_has_an_entry():
    assert set(DATASETS) == set(get_args(statten.config.Dataset))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("size", [None, 12])
def test_samples_have_the_shape_that_the_config_asks_for(name, size):
    dataset = DATASETS[name]
    config = config_of(name, f"model.image_size={size or SIZES[name]}", "model.timesteps=3", "train.batch_size=5")
    for loader in (make_loaders(config).train.batches(0), make_test_loader(config)):
        x, y = next(iter(loader))
        time_axis = (3,) if dataset.events else ()
        assert x.shape == (5, *time_axis, dataset.channels, config.model.image_size, config.model.image_size)
        assert x.dtype == torch.float32 and x.isfinite().all() and x.is_contiguous()
        assert y.dtype == torch.int64 and y.shape == (5,) and y.min() >= 0 and y.max() < 10


def test_digits_are_scikit_learns_normalised():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    config = config_of("digits", "data.augment=false")
    test = split_indices(config)["test"]
    x, y = (torch.cat(parts) for parts in zip(*make_test_loader(config), strict=True))
    expected = (images[test].reshape(-1, 1, 8, 8) / 16 - 0.305) / 0.376
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y.numpy(), labels[test])
    for seed in range(3):
        train = split_indices(config_of("digits", f"data.split_seed={seed}"))["train"]
        assert images[train].mean() / 16 == pytest.approx(0.305, abs=5e-3)
        assert images[train].std() / 16 == pytest.approx(0.376, abs=5e-3)


def test_building_is_done_once_per_process():
    config = config_of("digits_events")
    assert load_clips(config) is load_clips(config)


def test_import_is_little_more_than_torch():
    code = (
        "import sys, statten.data; print([m for m in ('sklearn', 'torchvision', 'spikingjelly', 'timm') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- split


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_split_is_a_stratified_partition(seed):
    config = config_of("digits", f"data.split_seed={seed}")
    parts, labels = split_indices(config), digit_labels()
    assert set(parts) == KEYS
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(1797))
    for label in range(10):
        n = (labels == label).sum()
        counts = {name: (labels[indices] == label).sum() for name, indices in parts.items()}
        assert counts["test"] == round(0.2 * n)
        assert counts["validation"] == round(0.1 * (n - counts["test"]))


def test_split_depends_on_its_seed_alone():
    parts = split_indices(config_of("digits"))
    again = split_indices(config_of("digits", "train.seed=5", "train.batch_size=7", "model.depth=1"))
    other = split_indices(config_of("digits", "data.split_seed=1"))
    for name in KEYS:
        np.testing.assert_array_equal(parts[name], again[name])
        assert not np.array_equal(parts[name], other[name])
    # Fixed for ever: a checkpoint's test part must never move into another version's training part.
    assert parts["test"][:5].tolist() == [2, 5, 7, 8, 11]


def test_same_split_for_the_digits_and_their_clips():
    images, clips = split_indices(config_of("digits")), split_indices(config_of("digits_events"))
    assert all(np.array_equal(images[name], clips[name]) for name in KEYS)


def test_a_smaller_fraction_is_within_a_larger_one_and_stratified():
    labels, larger = digit_labels(), None
    for fraction in (1.0, 0.5, 0.2, 0.01):
        parts = split_indices(config_of("digits", f"data.fraction={fraction}"))
        if larger is not None:
            assert set(parts["train"]) < set(larger["train"])
            assert all(np.array_equal(parts[name], larger[name]) for name in ("validation", "test"))
        counts = np.bincount(labels[parts["train"]], minlength=10)
        assert counts.min() >= 1 and counts.max() - counts.min() <= max(1, 0.1 * counts.max())
        larger = parts


def test_no_part_of_a_small_class_is_empty():
    parts = split(np.repeat([0, 1], 4), validation=0.01, fraction=0.01, seed=0)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 2, "validation": 2, "test": 2}


def test_the_test_part_is_read_by_the_test_loader_alone():
    config = config_of("digits", "train.batch_size=16", "data.augment=false")
    x = open_source(config).batch(np.arange(1797)).x.flatten(1)
    index = {row.tobytes(): i for i, row in enumerate(x.numpy())}
    parts, loaders = split_indices(config), make_loaders(config)

    def indices(batches):
        return {index[row.numpy().tobytes()] for x, _ in batches for row in x.flatten(1)}

    assert len(index) == 1797
    assert indices(loaders.train.batches(0)) <= set(parts["train"])
    assert indices(loaders.validation) == set(parts["validation"])
    assert indices(make_test_loader(config)) == set(parts["test"])


# --- evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_every_sample_exactly_once(world_size, workers):
    config = config_of("digits", "train.batch_size=50", "train.eval_batch_size=16", f"data.workers={workers}")
    for make in (make_test_loader, lambda *args: make_loaders(*args).validation):
        whole = make(config)
        labels = torch.cat([y for _, y in whole])
        assert whole.samples == whole.total == len(labels)
        seen = []
        for rank in range(world_size):
            loader = make(config, rank, world_size)
            batches = read(loader)
            assert len(batches) == len(loader)
            assert [len(y) for _, y in batches[:-1]] == [16] * (len(loader) - 1)
            assert sum(len(y) for _, y in batches) == loader.samples == len(labels[rank::world_size])
            assert loader.total == len(labels)
            assert torch.equal(torch.cat([y for _, y in batches]), labels[rank::world_size])
            seen += batches
        rows = torch.cat([x for x, _ in seen]).flatten(1)
        assert len(rows) == len(labels) and len(rows.unique(dim=0)) == len(labels)


def test_evaluation_is_not_augmented_and_may_be_repeated():
    config = config_of("digits_events")
    loader = make_loaders(config).validation
    assert same(read(loader), read(loader))
    assert same(read(loader), read(make_loaders(config_of("digits_events", "data.augment=false")).validation))


def test_more_ranks_than_samples():
    loader = make_loaders(config_of("digits", "train.batch_size=1"), rank=199, world_size=200).validation
    assert (loader.samples, len(loader), list(loader), loader.total) == (0, 0, [], 143)


# --- training


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap(world_size):
    source = numbered(101)
    indices = np.arange(1, 101)
    epochs = []
    for epoch in range(3):
        loaders = [
            TrainLoader(source, indices, batch_size=7, seed=3, augment=False, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        steps = 100 // (7 * world_size)
        assert {loader.steps_per_epoch for loader in loaders} == {steps}
        assert {loader.samples_per_epoch for loader in loaders} == {7 * steps}
        shares = [torch.cat([y for _, y in loader.batches(epoch)]).tolist() for loader in loaders]
        assert [len(share) for share in shares] == [7 * steps] * world_size
        seen = [sample for share in shares for sample in share]
        assert len(set(seen)) == len(seen) and 0 not in seen
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1]), "the samples left out differ between epochs"


def test_a_step_of_several_ranks_is_a_step_of_one_with_their_batches_together():
    """Also shows that augmentation does not know the layout of the world."""
    whole = make_loaders(config_of("digits", "train.batch_size=24")).train
    shares = [make_loaders(config_of("digits", "train.batch_size=8"), rank, 3).train for rank in range(3)]
    for step, (x, y) in enumerate(whole.batches(1)):
        parts = [next(share.batches(1, start_step=step)) for share in shares]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)


@pytest.mark.parametrize("name", DATA)
def test_training_is_repeatable_and_resumes_inside_an_epoch(name):
    config = config_of(name, "train.batch_size=200")
    here, there = make_loaders(config).train, make_loaders(config_of(name, "train.batch_size=200", "data.workers=2")).train
    first = read(here.batches(0))
    assert len(first) == here.steps_per_epoch == 6
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert same(read(there.batches(0)), first)
    assert torch.equal(torch.get_rng_state(), state), "reading must not draw from the training's random numbers"
    second = read(here.batches(1))
    assert not same(second, first)
    assert same(read(there.batches(1)), second), "loader processes live on for the next epoch"
    abandoned = there.batches(2)
    next(abandoned)
    for loader in (make_loaders(config).train, here, there):
        assert same(read(loader.batches(1, start_step=4)), second[4:])
        assert read(loader.batches(1, start_step=6)) == []


@pytest.mark.parametrize("name", DATA)
def test_order_and_augmentation_follow_the_seed(name):
    batches = [
        next(make_loaders(config_of(name, f"train.seed={seed}", f"data.augment={augment}")).train.batches(0))
        for seed in (42, 43)
        for augment in ("true", "false")
    ]
    assert torch.equal(batches[0][1], batches[1][1]) and not torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][1], batches[2][1])


def test_an_error_in_a_loader_process_reaches_the_training():
    def fail(x, seed, epoch, indices):
        raise ValueError("broken sample")

    source = numbered(8, augment=fail)
    for workers in (0, 1):
        loader = TrainLoader(source, np.arange(8), batch_size=4, seed=0, augment=True, workers=workers)
        with pytest.raises(ValueError, match="broken sample"):
            next(loader.batches(0))


def test_loader_processes_end_with_their_loader():
    """At once, and not after the five seconds that PyTorch waits for those that it cannot reach."""
    loader = make_test_loader(config_of("digits", "data.workers=2"))
    next(iter(loader))
    processes = loader._loader._iterator._workers
    del loader
    assert not any(process.is_alive() for process in processes)


# --- random numbers


def test_random_numbers_are_uniform_and_belong_to_their_coordinates():
    draws = uniform("augment", 42, 0, np.arange(20_000), 4)
    assert draws.shape == (4, 20_000) and draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(1) - 0.5).max() < 4 / np.sqrt(12 * 20_000)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 4 / np.sqrt(20_000)
    some = np.array([19_999, 3, 3])
    np.testing.assert_array_equal(uniform("augment", 42, 0, some, 4), draws[:, some])
    others = [("order", 42, 0), ("augment", 43, 0), ("augment", 42, 1), ("augment", 0, 42), ("augment", 2**80, 0)]
    for stream, seed, epoch in others:
        other = uniform(stream, seed, epoch, np.arange(20_000), 1)[0]
        assert abs(np.corrcoef(draws[0], other)[0, 1]) < 4 / np.sqrt(20_000)


def test_random_numbers_are_fixed_for_ever():
    """Runs resume and splits hold across versions only as long as these stand."""
    assert hashed("split", 0, np.arange(3)).tolist() == [2276820978056318931, 9692254082830574790, 18096781706432541670]
    assert sorted(permutation("order", 1, 2, 100)) == list(range(100))
    assert permutation("order", 1, 2, 10).tolist() == [1, 8, 7, 6, 3, 0, 4, 9, 5, 2]


# --- check_data


@pytest.mark.parametrize("name", DATA)
def test_recipes_fit_their_data(name):
    check_data(config_of(name))


def test_every_mismatch_is_one_sentence():
    config = config_of("digits", "model.in_channels=3", "model.num_classes=5", "model.events=true", "train.batch_size=5000")
    assert problems(config) == [
        "model.in_channels: must be 1 for digits, but got 3; use model.in_channels=1",
        "model.events: must be false for digits, which holds images, but got true; use model.events=false",
        "model.num_classes: must be at least 10 for digits, but got 5; use model.num_classes=10",
        "train.batch_size: 1 x 5000 samples per step (scale.workers x train.batch_size) must not be more than the training "
        "part of digits, which has 1295; the largest is train.batch_size=1295",
    ]


def test_further_mismatches():
    assert problems(config_of("digits_events", "model.events=false")) == [
        "model.events: must be true for digits_events, which holds event clips, but got false; use model.events=true"
    ]
    assert problems(config_of("digits", "data.frames=4")) == [
        "data.frames: must be empty for digits, which holds images, but got 4; use data.frames=null"
    ]
    check_data(config_of("digits_events", "data.frames=4"))
    check_data(config_of("digits", "model.num_classes=100"))


def test_largest_batch_is_the_largest():
    config = config_of("digits", "data.fraction=0.1", "scale.workers=4", "train.batch_size=64")
    (problem,) = problems(config)
    largest = int(problem.rpartition("=")[2])
    assert f"the largest is train.batch_size={largest}" in problem
    fits = config_of("digits", "data.fraction=0.1", "scale.workers=4", f"train.batch_size={largest}")
    check_data(fits)
    assert make_loaders(fits, rank=3, world_size=4).train.steps_per_epoch == 1
    assert problems(config_of("digits", "data.fraction=0.1", "scale.workers=4", f"train.batch_size={largest + 1}"))
    with pytest.raises(UserError, match="the largest is"):
        make_loaders(config, world_size=4)
    (problem,) = problems(config_of("digits", "data.fraction=0.001", "scale.workers=100"))
    assert problem.startswith("scale.workers: 100 workers need") and problem.endswith("the most is scale.workers=10")


def test_loaders_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_loaders(config_of("digits")).train = None
