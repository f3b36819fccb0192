"""Batches of files: a draw belongs to its sample, a resume changes nothing, corrupt files stop the run or are counted."""

import hashlib
import json
import random

import formats
import numpy as np
import pytest
import torch

from statten.config import build_config
from statten.data import (
    CorruptSample,
    Source,
    TrainLoader,
    check_split,
    make_loaders,
    make_test_loader,
    open_source,
    split_document,
    split_indices,
)
from statten.data.check import check
from statten.data.dataset import Loaded
from statten.data.loaders import SPARES
from statten.data.shards import shard
from statten.data.split import READABLE, decode, encode, split
from statten.errors import Failed, UserError
from statten.storage.run import Run, checkpoints
from statten.training.worker import run_fit


def config_of(root, *, name="image_folder", workers=0, epochs=1, **data):
    events = name == "event_folder"
    augmentation = {"event_augment": "roll_rotate_shear"} if events else {"crop_scale": [0.3, 1.0], "color_jitter": 0.4}
    return build_config(
        {
            "data": {"name": name, "root": str(root), "workers": workers, "hflip": 0.5, **augmentation, **data},
            "model": {
                "timesteps": 4, "block_size": 2, "depth": 1, "embed_dim": 16, "num_heads": 2, "num_classes": 3,
                "image_size": 16, "in_channels": 2 if events else 3, "events": events,
            },
            "train": {"batch_size": 6, "epochs": epochs, "checkpoint_every_steps": 1},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    formats.write_images(base / "folders", {"train": 12, "val": 4}, ["a", "b", "c"])
    shard("image_folder", base / "folders", base / "shards", 5)
    formats.write_clips(base / "clips", 4, {"train": 12, "test": 4}, ["a", "b", "c"])
    return {"folders": base / "folders", "shards": base / "shards", "clips": base / "clips"}


def settings(kind):
    return {"name": "event_folder"} if kind == "clips" else {}


def checksums(batches):
    return [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest() for x, y in batches]


# --- reproducibility


@pytest.mark.parametrize("kind", ["folders", "shards", "clips"])
def test_resuming_inside_an_epoch_gives_the_same_batches(kind, roots):
    """With augmentation on, whatever the number of loader processes, and without touching the training's random numbers."""
    make = lambda workers: make_loaders(config_of(roots[kind], workers=workers, **settings(kind))).train  # noqa: E731
    here, there = make(0), make(2)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    whole = [checksums(here.batches(epoch)) for epoch in range(3)]
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert len(whole[0]) == 5 and len({c for epoch in whole for c in epoch}) == 15, "every epoch looks different"
    assert [checksums(there.batches(epoch)) for epoch in range(3)] == whole
    for loader in (make(0), make(2), there):
        assert checksums(loader.batches(1, start_step=3)) == whole[1][3:]


def test_a_draw_belongs_to_its_sample_not_to_its_place(roots):
    source = open_source(config_of(roots["folders"]))
    forwards = source.batch(np.array([3, 8, 20]), (7, 2))
    backwards = source.batch(np.array([20, 8, 3]), (7, 2))
    assert torch.equal(forwards.x, backwards.x.flip(0)) and torch.equal(forwards.y, backwards.y.flip(0))
    epochs = [source.batch(np.arange(30), (7, epoch)).x for epoch in (2, 3)]
    assert not torch.equal(*epochs)
    plain = source.batch(np.array([3, 8])).x
    assert torch.equal(plain, source.batch(np.array([3, 8])).x), "no draw without augmentation"


# --- splits


def test_validation_is_cut_from_the_training_part_and_test_is_read_by_evaluation_alone(roots):
    parts = split_indices(config_of(roots["folders"]))
    assert {part: len(indices) for part, indices in parts.items()} == {"train": 33, "validation": 3, "test": 12}
    assert parts["test"].tolist() == list(range(36, 48))
    assert np.array_equal(np.sort(np.concatenate([parts["train"], parts["validation"]])), np.arange(36))
    source = open_source(config_of(roots["folders"]))
    assert np.bincount(source.labels[parts["validation"]]).tolist() == [1, 1, 1]


def test_the_published_protocol_validates_on_the_test_part_and_says_so(roots, caplog):
    config = config_of(roots["folders"], validation="test")
    parts = split_indices(config)
    assert len(parts["train"]) == 36 and parts["validation"].tolist() == parts["test"].tolist() == list(range(36, 48))
    with caplog.at_level("WARNING", logger="statten"):
        loaders = make_loaders(config)
    assert loaders.validation.total == make_test_loader(config).total == 12
    assert "data.validation=test: models are selected on the test part" in caplog.text


@pytest.mark.parametrize("value", [0, 0.5, 1, "tset", "true", -0.1])
def test_a_wrong_validation_is_one_sentence(value):
    with pytest.raises(UserError, match=r"^data.validation: must be a share above 0 and below 0.5, or test, but got"):
        build_config({"data": {"validation": value}})


def test_splits_of_small_datasets_are_lists_and_those_of_large_ones_bits():
    for samples in (1000, READABLE + 1):
        labels = np.arange(samples) % 7
        parts = split(labels, 0.1, 1.0, 0)
        document = json.loads(json.dumps(encode(parts, labels)))
        assert isinstance(document["train"], list) == (samples <= READABLE)
        assert all(np.array_equal(decode(document)[name], indices) for name, indices in parts.items())
    labels = np.repeat(np.arange(1000), 1330)
    text = json.dumps(encode(split(labels, 0.1, 1.0, 0, np.arange(1_280_000, 1_330_000)), labels))
    assert len(text) < 400_000, "1.33 million samples"


def test_split_document_holds_the_split(roots):
    document = split_document(config_of(roots["clips"], name="event_folder"))
    assert document["samples"] == 48 and document["test"] == list(range(36, 48)) and len(document["labels"]) == 64


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    root = formats.write_images(tmp_path / "data", {"train": 6, "val": 2}, ["a", "b", "c"])
    config, path = config_of(root), tmp_path / "splits.json"
    path.write_text(json.dumps(split_document(config)))
    check_split(config, path)
    check_split(config, tmp_path / "none.json")  # a trial's lies with its sweep
    (root / "train" / "a" / "new.jpg").write_bytes(formats.jpeg(1))
    with pytest.raises(UserError, match=r"other samples than when the run began \(25 now, 24 then\)"):
        check_split(config, path)


# --- corrupt files


@pytest.fixture
def damaged(tmp_path):
    """36 training images, of which two are broken: one cut off, one no image at all."""
    root = formats.write_images(tmp_path / "data", {"train": 12, "val": 4}, ["a", "b", "c"])
    path = root / "train" / "b" / "b_3.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    (root / "train" / "c" / "c_5.JPEG").write_bytes(b"<html>404</html>")
    return root


def test_a_corrupt_image_is_named(damaged):
    source = open_source(config_of(damaged))
    names = [source.locate(i).rpartition("/")[2] for i in range(36)]
    with pytest.raises(
        CorruptSample, match=r"b/b_3.JPEG: cannot be read: (image file is truncated|Truncated File Read).*\(300 bytes\)"
    ):
        source.checked(names.index("b_3.JPEG"))
    with pytest.raises(CorruptSample, match=r"c/c_5.JPEG: cannot be read: is no image file \(16 bytes\)"):
        source.checked(names.index("c_5.JPEG"))
    (damaged / "train" / "a" / "a_0.JPEG").unlink()
    with pytest.raises(CorruptSample, match=r"a/a_0.JPEG: cannot be read: No such file"):
        source.checked(names.index("a_0.JPEG"))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_corrupt_file_ends_the_reading(damaged, workers):
    with pytest.raises(CorruptSample, match=r"(b_3|c_5).JPEG: cannot be read"):
        for _ in make_loaders(config_of(damaged, workers=workers, validation=0.01)).train.batches(0):
            pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_skipped_files_are_counted_and_all_steps_stay(damaged, world, workers):
    config = config_of(damaged, workers=workers, skip_corrupt=True, validation="test")
    loaders = [make_loaders(config, rank, world).train for rank in range(world)]
    for _ in range(2):
        batches = [list(loader.batches(0)) for loader in loaders]
        assert [len(b) for b in batches] == [36 // (6 * world)] * world
        assert all(x.shape == (6, 3, 16, 16) and len(y) == 6 for b in batches for x, y in b), "other samples take their place"
        assert sum(len(loader.corrupt) for loader in loaders) == 2
    again = [list(make_loaders(config, rank, world).train.batches(0)) for rank in range(world)]
    assert [checksums(b) for b in again] == [checksums(b) for b in batches], "and these are the same ones every time"


class OnlySpares(Source):
    """A dataset whose sample i is the number i, and can be read only where it is drawn in the place of another one."""

    def batch(self, indices, augmented_by=None, repeats=None):
        y = torch.from_numpy(indices[repeats >= SPARES])
        return Loaded(y.float()[:, None], y, [(int(i), "not in its turn") for i in indices[repeats < SPARES]])


def test_ranks_and_steps_draw_spares_of_their_own_for_what_cannot_be_read():
    drawn = {}
    for rank in range(2):
        loader = TrainLoader(OnlySpares(), np.arange(400), batch_size=20, seed=1, rank=rank, world_size=2, skip_corrupt=True)
        for epoch in range(2):
            for step, (_, y) in enumerate(loader.batches(epoch)):
                before = drawn.setdefault(tuple(y.tolist()), (rank, epoch, step))
                assert before == (rank, epoch, step), f"(rank, epoch, step) {before} and {rank, epoch, step} drew the same"
    assert len(drawn) == 40


def test_evaluation_leaves_corrupt_files_out(damaged):
    for path in sorted((damaged / "val").rglob("*.JPEG"))[:7]:
        path.write_bytes(b"")
    loader = make_test_loader(config_of(damaged, skip_corrupt=True))
    assert [len(y) for _, y in loader] == [5] and len(loader.corrupt) == 7 and loader.total == 12
    with pytest.raises(CorruptSample):
        list(make_test_loader(config_of(damaged)))


def test_nothing_readable_is_no_endless_loop(tmp_path):
    root = formats.write_images(tmp_path, {"train": 6, "val": 2}, ["a", "b", "c"])
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(CorruptSample, match="hardly any file can be read"):
        next(make_loaders(config_of(root, skip_corrupt=True)).train.batches(0))


def test_clips_of_another_length_or_form_are_corrupt(roots, tmp_path):
    root = formats.write_clips(tmp_path, 4, {"train": 4, "test": 2}, ["a", "b", "c"])
    first = sorted((root / "train").rglob("*.npz"))
    np.savez(first[1], frames=np.zeros((5, 2, 8, 8), np.uint8))
    np.savez(first[2], clips=np.zeros((4, 2, 8, 8), np.uint8))
    first[3].write_bytes(first[3].read_bytes()[:-30])
    np.savez(first[4], frames=np.zeros((4, 3, 8, 8), np.uint8))
    source = open_source(config_of(root, name="event_folder"))
    for index, words in (
        (1, "has 5 frames, but model.timesteps is 4"), (2, "is no .npz file with `frames`"), (3, "is no .npz file"),
        (4, "must hold numbers"),
    ):  # fmt: skip
        with pytest.raises(CorruptSample, match=words) as caught:
            source.checked(index)
        assert str(first[index]) in str(caught.value)


def test_a_run_that_meets_a_corrupt_file_keeps_its_checkpoints(damaged, tmp_path):
    run = Run.create(tmp_path / "r", config_of(damaged, validation="test", epochs=2))
    with run.writing() as attempt:
        assert run_fit(run, attempt, threads=1) is None
    assert run.state == "failed" and "JPEG: cannot be read" in run.result["reason"]
    read_before = len(checkpoints(run.checkpoint_folder))
    assert 0 <= read_before <= 2
    # Repaired, it goes on from there.
    for name in ("b/b_3", "c/c_5"):
        (damaged / "train" / f"{name}.JPEG").write_bytes(formats.jpeg(1))
    with run.writing() as attempt:
        assert run_fit(run, attempt, threads=1) is not None
    assert run.state == "finished" and len(run.metrics()) == 2


def test_skipped_files_are_a_metric(damaged, tmp_path):
    run = Run.create(tmp_path / "r", config_of(damaged, validation="test", skip_corrupt=True))
    with run.writing() as attempt:
        run_fit(run, attempt, threads=1)
    (row,) = run.metrics()
    assert row["corrupt"] == 2 and "left out: " in (run.path / "train.log").read_text()
    assert issubclass(CorruptSample, Failed), "the command line ends with 1"


# --- data check


def test_check_counts_and_lists(damaged):
    report = check("image_folder", damaged)
    assert report["layout"] == "class folders" and report["samples"] == 48
    assert report["split"] == {"train": 33, "validation": 3, "test": 12}
    assert report["per_class"]["b"] == {"train": 11, "validation": 1, "test": 4}
    broken = {file["file"].rpartition("/")[2]: file["reason"] for file in report["corrupt"]}
    assert broken["c_5.JPEG"] == "is no image file (16 bytes)"
    assert len(report["corrupt"]) == 2 and sum(report["sizes"].values()) == 46
    assert report["smallest"] == [40, 30] and report["largest"] == [42, 32]
    source = open_source(config_of(damaged))
    pixels = []
    for i in range(36):
        try:
            pixels.append(np.asarray(source.read(i)).reshape(-1, 3) / 255)
        except Exception:
            continue
    stacked = np.concatenate(pixels)
    assert len(pixels) == 34
    np.testing.assert_allclose(report["mean"], stacked.mean(0), rtol=1e-9)
    np.testing.assert_allclose(report["std"], stacked.std(0), rtol=1e-6)


def test_check_of_clips_and_shards(roots):
    report = check("event_folder", roots["clips"])
    assert report["layout"] == "class folders of clips" and report["sizes"] == {"24x20": 48} and report["corrupt"] == []
    source = open_source(config_of(roots["clips"], name="event_folder"))
    counts = torch.stack([source.read(i) for i in range(36)]).double()
    np.testing.assert_allclose(report["mean"], counts.mean((0, 1, 3, 4)), rtol=1e-9)
    np.testing.assert_allclose(report["std"], counts.std((0, 1, 3, 4), correction=0), rtol=1e-9)
    packed, loose = (check("image_folder", roots[kind]) for kind in ("shards", "folders"))
    assert packed["layout"] == "tar shards" and packed["sizes"] == loose["sizes"]
    np.testing.assert_allclose(packed["mean"], loose["mean"], rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("check image_folder --root {good} --json", 0, '"samples": 48'),
        ("check image_folder --root {good}", 0, "48 samples (33 train, 3 validation, 12 test)"),
        ("check image_folder --root {damaged}", 1, "is no image file (16 bytes)"),
        ("check image_foldr --root {good}", 2, "'image_foldr' is no dataset; did you mean image_folder?"),
        ("check image_folder --root {good}/none", 2, "--root: no such folder"),
        ("check digits --root {good}", 2, "digits: comes with the package"),
        ("check ncaltech101 --root {good}", 2, "make one with: statten data prepare ncaltech101"),
        ("prepare ncaltech101 --root {good} --timesteps 4", 2, "lacks Caltech101.zip"),
        ("prepare ncaltech101 --root {good} --timesteps 0", 2, "Invalid value for '--timesteps'"),
        ("shard image_folder --root {good} --output {new} --per-shard 10 --json", 0, '"shards": 4'),
        ("shard image_folder --root {good} --output {good}", 2, "holds something already"),
        ("shard event_folder --root {clips} --output {new}", 2, "only"),
    ],
)  # fmt: skip
def test_the_commands(arguments, code, words, roots, damaged, tmp_path, typed):
    names = {"good": roots["folders"], "damaged": damaged, "clips": roots["clips"], "new": tmp_path / "new"}
    ended, out, err = typed("data", *arguments.format(**names).split())
    assert ended == code, (out, err)
    assert words in (err if code == 2 else out)
    if code == 2:
        assert out == "" and len(err.strip().splitlines()) == 1
    if "--json" in arguments:
        json.loads(out)
