"""A split of any labels: parts that are disjoint and complete, of the sizes that were asked for, and the same again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statten.data import split as module
from statten.data.split import TEST, decode, encode, identity, split


@st.composite
def data_sets(draw):
    """Labels in any order, classes of 1 to 30 samples; perhaps with a test part, or a validation part too, of their own."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    comes_with = draw(st.sampled_from(["nothing", "test", "validation and test"]))
    # Every third sample of a class is its test part, every second of the others its validation part.
    place = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    test = None if comes_with == "nothing" else np.flatnonzero(place % 3 == 0)
    held_out = np.flatnonzero(place % 3 == 1) if comes_with == "validation and test" else None
    return labels, test, held_out


FRACTIONS = st.floats(0.01, 1)
VALIDATIONS = st.one_of(st.floats(0.01, 0.49), st.just("test"))
quick = settings(max_examples=60, deadline=None)


@quick
@given(data=data_sets(), validation=VALIDATIONS, fraction=FRACTIONS, seed=st.integers(0, 2**40))
def test_parts_are_disjoint_and_complete_and_of_the_sizes_that_are_asked_for(data, validation, fraction, seed):
    labels, test, held_out = data
    parts = split(labels, validation, 1.0, seed, test, held_out)
    less = split(labels, validation, fraction, seed, test, held_out)
    everything = np.concatenate([parts["train"], parts["test"], *[parts["validation"]] * (validation != "test")])
    left_out = np.setdiff1d(np.arange(len(labels)), everything)
    assert len(np.unique(everything)) == len(everything), "a sample is in two parts"
    unread = [] if held_out is None or validation != "test" else held_out
    assert left_out.tolist() == list(unread), "a sample is in no part"
    for part in parts.values():
        assert part.dtype == np.int64 and np.array_equal(part, np.unique(part)), "ascending, each once"
    if validation == "test":
        assert np.array_equal(parts["validation"], parts["test"])
    if test is not None:
        assert np.array_equal(parts["test"], test), "the test part that the data come with"
    if held_out is not None and validation != "test":
        assert np.array_equal(parts["validation"], held_out)
    # A fraction takes from the training part, and from nothing else.
    assert all(np.array_equal(parts[name], less[name]) for name in ("validation", "test"))
    assert set(less["train"]) <= set(parts["train"])
    for label, number in enumerate(np.bincount(labels)):
        count = {name: int((labels[indices] == label).sum()) for name, indices in parts.items()}
        rest = number
        if test is None:
            assert count["test"] == max(1, round(TEST * number))
        rest -= count["test"]
        if held_out is None and validation != "test":
            assert count["validation"] == max(0, min(rest - 1, max(1, round(validation * rest)))), "one is left to train on"
        assert (labels[less["train"]] == label).sum() == min(count["train"], max(1, round(fraction * count["train"])))


@quick
@given(data=data_sets(), seed=st.integers(0, 2**40))
def test_a_split_is_the_same_again_and_another_one_with_another_seed(data, seed):
    labels, test, held_out = data
    one, again = (split(labels, 0.2, 0.7, seed, test, held_out) for _ in range(2))
    assert all(np.array_equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize(("samples", "sizes"), [(1, (0, 0, 1)), (2, (1, 0, 1)), (3, (1, 1, 1))])
def test_of_a_class_of_few_samples_one_is_trained_on_before_one_is_validated_on(samples, sizes):
    parts = split(np.zeros(samples, np.int64), 0.4, 1.0, 0)
    assert tuple(len(parts[name]) for name in ("train", "validation", "test")) == sizes


def test_the_order_in_a_class_is_that_of_the_seed():
    labels = np.repeat([0, 1], 50)
    parts = [split(labels, 0.2, 0.5, seed) for seed in range(4)]
    for name in ("train", "validation", "test"):
        assert len({tuple(found[name]) for found in parts}) == 4
        assert 20 < np.concatenate([found[name] % 50 for found in parts]).mean() < 30, "from all over the class"


@pytest.mark.parametrize("readable", [0, 10**6], ids=["bits", "lists"])
@quick
@given(data=data_sets(), validation=VALIDATIONS)
def test_a_split_is_read_as_it_was_written(readable, data, validation):
    labels, test, held_out = data
    parts = split(labels, validation, 0.5, 3, test, held_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READABLE", readable)
        document = json.loads(json.dumps(encode(parts, labels)))
    found = decode(document)
    assert list(found) == ["train", "validation", "test"]
    for name, indices in parts.items():
        assert np.array_equal(found[name], indices) and found[name].dtype == np.int64
        part = document[name]
        assert isinstance(part, list) if readable else (part["count"], part["bits"] > "") == (len(indices), True)
    assert {key: document[key] for key in ("samples", "labels")} == identity(labels)


def test_up_to_a_number_of_samples_lists_are_written():
    for samples, kind in ((module.READABLE, list), (module.READABLE + 1, dict)):
        labels = np.zeros(samples, np.int64)
        document = encode(split(labels, 0.1, 1.0, 0), labels)
        assert all(isinstance(document[name], kind) for name in ("train", "validation", "test"))
    assert decode({"train": [], "test": [1]})["train"].dtype == np.int64, "an empty part too"
    assert document["train"]["form"].startswith("base64") and len(document["train"]["bits"]) < 5000


def test_labels_are_known_by_their_digest_whatever_their_type():
    labels = np.array([0, 1, 2, 1])
    known = identity(labels)
    # Runs of before hold it.
    assert known == {"samples": 4, "labels": "359ad77c04cfcb7e9de6cca919c4924ff161d0dbdedbc0e20211649dc3b9ad99"}
    assert known == identity(labels.astype(np.uint8)) == identity(labels.astype(">i4"))
    assert known["labels"] != identity(np.array([0, 1, 1, 2]))["labels"]
