"""Tar shards: written once, read as the folders they came from, divided over ranks and loader processes without a loss."""

import io
import json
import tarfile

import formats
import numpy as np
import pytest

from statten.config import build_config
from statten.data import TrainLoader, check_data, make_loaders, make_test_loader, open_source, split_indices
from statten.data.dataset import Files, InMemory, Samples
from statten.data.order import shuffled, shuffled_shards
from statten.data.shards import shard
from statten.errors import UserError

CLASSES = ["a", "b", "c"]


def config_of(root, *, workers=0, world=1, batch=4, **data):
    return build_config(
        {
            "data": {
                "name": "image_folder",
                "root": str(root),
                "workers": workers,
                "shuffle_buffer": 8,
                "crop_scale": [0.3, 1.0],
                **data,
            },
            "model": {"num_classes": 3, "image_size": 16},
            "train": {"batch_size": batch},
            "scale": {"workers": world},
        }
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return formats.write_images(tmp_path_factory.mktemp("folders"), {"train": 17, "val": 5}, CLASSES)


@pytest.fixture(scope="module")
def shards(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("shards") / "out"
    report = shard("image_folder", folders, output, per_shard=6)
    assert report["parts"] == {"train": {"samples": 51, "shards": 9}, "val": {"samples": 15, "shards": 3}}
    return output


class Numbers(Files):
    """A source whose sample i is read as the number i, so that batches tell what was read."""

    def __init__(self, source):
        super().__init__(source._config, source.classes, np.arange(len(source.labels)), source.test)
        self._inner, self.shards = source, source.shards
        self._transforms = {True: to_tensor, False: to_tensor}

    def read(self, index):
        return self._inner.read(index)

    def locate(self, index):
        return self._inner.locate(index)

    def expect(self, indices):
        self._inner.expect(indices)

    def _transform(self, train):
        return to_tensor


def to_tensor(image):
    import torch

    return torch.tensor(image.size)


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- format


def test_shards_are_webdataset_tars_with_an_index(folders, shards):
    index = json.loads((shards / "train" / "index.json").read_text())
    assert index["version"] == 1 and index["classes"] == CLASSES
    assert [entry["name"] for entry in index["shards"]] == [f"{i:06d}.tar" for i in range(9)]
    found = []
    for entry in index["shards"]:
        path = shards / "train" / entry["name"]
        content = path.read_bytes()
        assert len(content) == entry["bytes"]
        with tarfile.open(path) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        keys = sorted({name.partition(".")[0] for name in members})
        assert sorted(members) == sorted(f"{key}{suffix}" for key in keys for suffix in (".jpeg", ".cls"))
        for key, offset, size, label in zip(keys, entry["offsets"], entry["sizes"], entry["labels"], strict=True):
            assert content[offset : offset + size] == members[f"{key}.jpeg"] and int(members[f"{key}.cls"]) == label
            found.append((label, members[f"{key}.jpeg"]))
    written = [(c, path.read_bytes()) for c, name in enumerate(CLASSES) for path in (folders / "train" / name).iterdir()]
    assert sorted(found) == sorted(written), "every file once, unchanged"
    assert len({label for label, _ in found[:6]}) > 1, "a shard holds several classes"


def test_shards_read_as_their_folders(folders, shards):
    ours, theirs = open_source(config_of(shards)), open_source(config_of(folders))
    assert ours.classes == theirs.classes and len(ours.labels) == len(theirs.labels) == 66
    pixels = [sorted((int(s.labels[i]), s.read(i).tobytes()) for i in range(66)) for s in (ours, theirs)]
    assert pixels[0] == pixels[1]
    assert ours.test.tolist() == theirs.test.tolist() == list(range(51, 66))
    assert ours.locate(7) == f"{shards}/train/000001.tar: sample 1 at byte {ours._shards.offsets[7]}"


def test_many_shards_do_not_exhaust_open_files(shards, monkeypatch):
    monkeypatch.setattr("statten.data.shards.OPEN_FILES", 2)
    source = open_source(config_of(shards))
    source._shards._open.clear()
    sizes = [source.read(i).size for i in np.random.default_rng(0).permutation(66)]
    assert len(sizes) == 66 and len(source._shards._open) == 2


@pytest.mark.parametrize("form", ["cls", "json", "label"])
def test_shards_of_others_get_an_index(form, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for number in range(2):
            with tarfile.open(tmp_path / part / f"x-{number}.tar", "w") as archive:
                for i in range(3):
                    label = {"cls": str(i), "json": json.dumps({"cls": i}), "label": json.dumps({"label": i})}[form]
                    suffix = "cls" if form == "cls" else "json"
                    for name, data in (
                        (f"dir/s{number}{i}.{suffix}", label.encode()),
                        (f"dir/s{number}{i}.jpg", formats.jpeg(i)),
                    ):
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"train: holds tar shards but no index.json; write it with: statten data shard"):
        open_source(config_of(tmp_path))
    report = shard("image_folder", tmp_path, None)
    assert report["parts"] == {"train": {"samples": 6, "shards": 2}, "val": {"samples": 6, "shards": 2}}
    source = open_source(config_of(tmp_path))
    assert source.labels.tolist() == [0, 1, 2] * 4 and source.read(4).size == (40, 30)


def test_writing_goes_on_after_a_stop_and_ends_in_the_same_bytes(folders, shards, tmp_path, monkeypatch):
    output = tmp_path / "out"
    for stop in (1, 4, 8, 10):

        def progress(what, done, total, stop=stop, seen=[0]):  # noqa: B006
            seen[0] += 1
            if seen[0] == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            shard("image_folder", folders, output, 6, workers=1, progress=progress)
        (output / "train" / ".000008.tar.partial").write_bytes(b"half")
        with pytest.raises(UserError, match="--per-shard"):
            shard("image_folder", folders, output, 7)
        if not (output / "train" / "index.json").exists():
            with pytest.raises(UserError, match="the part for the test"):
                open_source(config_of(output))
    (output / "train" / "000003.tar").write_bytes(b"cut off")
    (output / "train" / ".000008.tar.partial").unlink()
    shard("image_folder", folders, output, 6)
    assert bytes_of(output) == bytes_of(shards)


def test_mistakes_are_one_sentence(folders, shards, tmp_path):
    with pytest.raises(UserError, match=r"--output: .* holds something already"):
        shard("image_folder", folders, shards)
    with pytest.raises(UserError, match="--output: must name the folder"):
        shard("image_folder", folders, None)
    with pytest.raises(UserError, match="holds shards already"):
        shard("image_folder", shards, tmp_path / "x")
    with pytest.raises(UserError, match=r"cifar10: only"):
        shard("cifar10", folders, tmp_path / "x")
    copy = tmp_path / "copy"
    shard("image_folder", folders, copy, 6)
    path = copy / "train" / "000004.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"000004.tar: has [\d,]+ bytes, but its index says [\d,]+; it is truncated"):
        open_source(config_of(copy))
    path.unlink()
    with pytest.raises(UserError, match=r"000004.tar: is in index.json, but not there"):
        open_source(config_of(copy))


def test_more_ranks_than_shards(shards):
    check_data(config_of(shards, world=9, batch=1))
    with pytest.raises(UserError) as caught:
        check_data(config_of(shards, world=10, batch=1))
    (problem,) = caught.value.problems
    assert problem.startswith(
        "scale.workers: 10 workers need at least one tar shard each, but the training part of image_folder has 9"
    )


# --- accounting


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", ["folders", "shards"])
def test_every_sample_once(kind, world, workers, request):
    root = request.getfixturevalue(kind)
    config = config_of(root, workers=workers)
    source, parts = Numbers(open_source(config)), split_indices(config)
    assert {part: len(indices) for part, indices in parts.items()} == {"train": 45, "validation": 6, "test": 15}
    from statten.data import EvalLoader

    for part in ("validation", "test"):
        seen = []
        for rank in range(world):
            loader = EvalLoader(source, parts[part], batch_size=4, rank=rank, world_size=world, workers=workers)
            numbers = [int(n) for _, y in loader for n in y]
            assert len(numbers) == loader.samples and loader.total == len(parts[part])
            seen += numbers
        assert sorted(seen) == parts[part].tolist()
    loaders = [
        TrainLoader(source, parts["train"], batch_size=4, seed=3, rank=rank, world_size=world, workers=workers, window=8)
        for rank in range(world)
    ]
    steps, epochs = 45 // (4 * world), []
    for epoch in range(2):
        shares = [[y.tolist() for _, y in loader.batches(epoch)] for loader in loaders]
        assert [len(share) for share in shares] == [steps] * world, "all ranks take equally many steps"
        seen = [n for share in shares for y in share for n in y]
        assert all(len(y) == 4 for share in shares for y in share)
        assert len(seen) == len(set(seen)) == 4 * world * steps and set(seen) <= set(parts["train"].tolist())
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_shards_are_read_from_begin_to_end():
    shards = np.repeat(np.arange(20), 50)
    indices = np.arange(1000)
    order = shuffled_shards(indices, shards, 1, 2, batch_size=10, window=100, rank=1, world_size=2)
    assert len(order.samples) == 500 and sorted(order.samples) == sorted(order.stream)
    runs = np.flatnonzero(np.diff(order.stream) != 1)
    assert len(runs) == 9 and len(np.unique(shards[order.stream])) == 10, "ten whole shards, each forwards"
    for begin in range(0, 500, 100):  # shuffled, but within the window
        window = slice(begin, begin + 100)
        assert sorted(order.samples[window]) == sorted(order.stream[window])
        assert order.samples[window].tolist() != order.stream[window].tolist()
    other = shuffled_shards(indices, shards, 1, 3, batch_size=10, window=100, rank=1, world_size=2)
    assert other.stream.tolist() != order.stream.tolist()
    first = shuffled_shards(indices, shards, 1, 2, batch_size=10, window=100, rank=0, world_size=2)
    assert not set(first.samples) & set(order.samples)


def test_what_is_read_soon_is_said_in_the_order_of_the_disk(shards):
    source = Numbers(open_source(config_of(shards)))
    told, train = [], split_indices(config_of(shards))["train"]
    source.expect = lambda indices: told.extend(indices.tolist())
    loader = TrainLoader(source, train, batch_size=4, seed=0, window=8)
    read = []
    for _, y in loader.batches(0):
        read += y.tolist()
        assert set(read) <= set(told), "before it is read"
    assert told == loader._order[1].stream.tolist(), "each once, forwards"


# --- repeated augmentation


@pytest.mark.parametrize("world", [1, 2, 4])
def test_repeats_of_a_sample_go_to_different_ranks(world):
    indices = np.arange(100, 200)
    orders = [shuffled(indices, 0, 0, batch_size=6, rank=rank, world_size=world, repeats=3) for rank in range(world)]
    steps = 100 // (6 * world)
    assert all(len(order.samples) == 6 * steps for order in orders), "an epoch is as long as without repeats"
    pairs = [pair for order in orders for pair in zip(order.samples.tolist(), order.repeats.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs), "no draw twice"
    assert len({sample for sample, _ in pairs}) == -(-len(pairs) // 3)
    if world > 1:
        ranks = {sample: {r for r, order in enumerate(orders) if sample in order.samples} for sample, _ in pairs}
        assert sum(len(where) > 1 for where in ranks.values()) >= len(ranks) - 1


def test_repeats_look_different_and_reach_the_batches(folders, shards):
    for root in (folders, shards):
        loader = make_loaders(config_of(root, repeats=2, batch=6)).train
        assert loader.steps_per_epoch == make_loaders(config_of(root, batch=6)).train.steps_per_epoch
        x, y = next(loader.batches(0))
        assert y[0] == y[1] and y[2] == y[3]
        assert sum(bool((x[i] != x[i + 1]).any()) for i in (0, 2, 4)) == 3, "each repeat has a draw of its own"


def test_repeats_of_samples_in_memory_have_draws_of_their_own():
    import torch

    drawn = []
    samples = Samples(torch.zeros(8, 1, 1, 1), torch.arange(8))
    source = InMemory(np.arange(8), lambda: samples, lambda x, seed, epoch, indices: drawn.extend(indices.tolist()) or x)
    for _ in TrainLoader(source, np.arange(8), batch_size=4, seed=0, repeats=2).batches(0):
        pass
    assert len(set(drawn)) == 8 and len({index % 8 for index in drawn}) == 4


def test_the_test_loader_counts_once_with_real_batches(shards):
    labels = np.concatenate([y.numpy() for _, y in make_test_loader(config_of(shards))])
    assert np.bincount(labels).tolist() == [5, 5, 5]
