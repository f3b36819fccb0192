"""Which folder is which part, what beside samples is none, and the same sample in two parts."""

import json
import shutil
from itertools import combinations

import formats
import numpy as np
import pytest

from statten.config import build_config
from statten.data import check_split, make_loaders, make_test_loader, open_source, split_document, split_indices
from statten.data.check import check
from statten.data.shards import shard
from statten.errors import UserError


def config_of(root, name="image_folder", **data):
    model = {"num_classes": 2, "image_size": 16, "timesteps": 2 if name == "event_folder" else 1, "block_size": 1}
    model |= {"events": True, "in_channels": 2} if name == "event_folder" else {}
    return build_config({"data": {"name": name, "root": str(root), **data}, "model": model, "train": {"batch_size": 2}})


def write(root, *folders, count=4):
    """Different images in each folder."""
    for f, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.jpg").write_bytes(formats.jpeg(100 * f + i))
    return root


def parts_of(*parts):
    return [f"{part}/{name}" for part in parts for name in ("cat", "dog")]


def sizes(config):
    return {part: len(indices) for part, indices in split_indices(config).items()}


THREE_PARTS = {"train": 8, "validation": 8, "test": 8}
TWO_PARTS = {"train": 6, "validation": 2, "test": 8}
FLAT = {"train": 4, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (parts_of("train", "val", "test"), THREE_PARTS),
        (parts_of("Training", "DEV", "Testing"), THREE_PARTS),
        (parts_of("train", "val"), TWO_PARTS),
        (parts_of("train", "test"), TWO_PARTS),
        (parts_of("training", "validation"), TWO_PARTS),
        (parts_of("Train", "Val"), TWO_PARTS),
        ([*parts_of("train", "valid"), "annotations/xml"], TWO_PARTS),
        ([*parts_of("train", "val"), "test"], TWO_PARTS),  # a test part without classes
        (["cat", "dog"], FLAT),
        (["invalid", "valid"], FLAT),
        (["control", "Test"], FLAT),
    ],
)
def test_usual_names_in_any_case_are_parts(folders, expected, tmp_path):
    config = config_of(write(tmp_path, *folders))
    parts = split_indices(config)
    assert {part: len(indices) for part, indices in parts.items()} == expected
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(sum(expected.values()))), "each once"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (parts_of("train"), "holds train/ but no val/ or test/"),
        (parts_of("Val", "test"), "holds Val/ but no train/"),
        ([*parts_of("train"), "cat"], r"is not clear, for train/ may be the train part or a class beside cat/"),
        (["train", "cat"], r"is not clear, for train/ may be the train part or a class beside cat/"),
        (["testing/old", "testing/new", "cat"], r"testing/ may be the test part or a class beside cat/"),
        (parts_of("train", "val", "validation"), r"val/ and validation/ may both be the val part"),
        (parts_of("train", "Train", "test"), r"Train/ and train/ may both be the train part"),
        (["Train", "Val"], "Train: holds no class folders; images belong into"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], r"cat: is not clear, for it may be a class or hold parts"),
        ([f"all/{folder}" for folder in parts_of("train", "val")], r"name .*/all itself as the folder"),
    ],
)
def test_what_is_not_clear_is_refused_with_both_readings(folders, words, tmp_path):
    with pytest.raises(UserError, match=words):
        open_source(config_of(write(tmp_path, *folders)))


def test_three_parts_validate_and_test_as_they_are_named(tmp_path):
    root = write(tmp_path / "in", *parts_of("train", "val", "test"))
    config = config_of(root)
    source, parts = open_source(config), split_indices(config)
    for part, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert {source.locate(i).split("/")[-3] for i in parts[part]} == {folder}
    assert make_loaders(config).validation.indices.tolist() == parts["validation"].tolist()
    assert make_test_loader(config).indices.tolist() == parts["test"].tolist()
    published = split_indices(config_of(root, validation="test"))
    assert published["validation"].tolist() == published["test"].tolist() == parts["test"].tolist()
    report = shard("image_folder", root, tmp_path / "shards", per_shard=3)
    assert report["parts"] == {part: {"samples": 8, "shards": 3} for part in ("train", "val", "test")}
    packed = config_of(tmp_path / "shards")
    assert {name: part.tolist() for name, part in split_indices(packed).items()} == {k: v.tolist() for k, v in parts.items()}
    assert sorted(open_source(packed).labels[parts["test"]]) == sorted(source.labels[parts["test"]])


def packed(root, *folders):
    shard("image_folder", write(root / "in", *folders), root / "shards", per_shard=3)
    return root / "shards"


FORMS = {
    "digits": (lambda root: root, "digits"),
    "digits_events": (lambda root: root, "digits_events"),
    "CIFAR": (lambda root: formats.write_cifar(root, per_class=2), "cifar10"),
    "class folders": (lambda root: write(root, "cat", "dog", count=9), "image_folder"),
    "two parts": (lambda root: write(root, *parts_of("train", "val")), "image_folder"),
    "three parts": (lambda root: write(root, *parts_of("train", "val", "test")), "image_folder"),
    "shards of two parts": (lambda root: packed(root, *parts_of("train", "test")), "image_folder"),
    "shards of three parts": (lambda root: packed(root, *parts_of("train", "val", "test")), "image_folder"),
    "clips of two parts": (lambda root: clips_in(root, "train", "test"), "event_folder"),
    "clips of three parts": (lambda root: clips_in(root, "train", "val", "test"), "event_folder"),
}


def clips_in(root, *parts):
    formats.write_clips(root, 2, dict.fromkeys(parts, 5), ["left", "right"])
    return root


@pytest.mark.parametrize("form", FORMS)
def test_every_sample_is_in_one_part_whatever_the_form_of_the_data(form, tmp_path):
    make, name = FORMS[form]
    root, whole = make(tmp_path), {}
    for validation in (0.1, 0.4, "test"):
        for fraction in (1.0, 0.5):
            config = config_of(root, name, validation=validation, fraction=fraction)
            parts = {part: set(indices.tolist()) for part, indices in split_indices(config).items()}
            said = f"{form}, data.validation={validation}, data.fraction={fraction}"
            for one, other in combinations(parts, 2):
                common = parts[one] & parts[other]
                if (one, other) == ("validation", "test") and validation == "test":
                    assert parts[one] == parts[other], said
                else:
                    assert not common, f"{said}: {len(common)} samples are in the {one} part and in the {other} part"
            if fraction == 1.0:
                whole = parts
                missing = set(range(len(open_source(config).labels))) - set.union(*parts.values())
                # With "test", the validation part that the data come with is not read.
                assert not missing or (validation == "test" and "three" in form), f"{said}: {len(missing)} are in no part"
            assert parts["train"] <= whole["train"] and all(parts[p] == whole[p] for p in ("validation", "test")), said
            assert set(make_test_loader(config).indices.tolist()) == parts["test"], f"{said}: evaluation reads another part"
            assert set(make_loaders(config).validation.indices.tolist()) == parts["validation"], said


def test_event_folders_have_the_same_parts(tmp_path):
    formats.write_clips(tmp_path, 2, {"Train": 4, "validation": 4, "test": 4}, ["left", "right"])
    assert sizes(config_of(tmp_path, "event_folder")) == THREE_PARTS
    formats.write_clips(tmp_path / "other" / "frames_number_3_split_by_number", 3, {"": 4}, ["left", "right"])
    with pytest.raises(UserError, match=r"frames_number_2_split_by_number: no such folder; there are clips of T = 3"):
        open_source(config_of(tmp_path / "other", "event_folder"))


def test_a_run_of_before_is_not_read_with_other_parts(tmp_path):
    root = write(tmp_path / "data", *parts_of("train", "val"))
    (tmp_path / "splits.json").write_text(json.dumps(split_document(config_of(root))))
    write(root, *parts_of("test"))
    with pytest.raises(UserError, match=r"24 now, 16 then.*val/ validates and test/ tests"):
        check_split(config_of(root), tmp_path / "splits.json")


def test_what_lies_beside_samples_is_counted_and_left_out(tmp_path):
    root = write(
        tmp_path, *parts_of("train", "val"), "__MACOSX/train", "train/@eaDir", "train/cat/@eaDir", "train/cat/.thumbnails"
    )
    for name in ("train.tar", "train/cat.tar", "train/cat.zip", "train/cat/Thumbs.db", "train/.DS_Store", "val/dog/1.gif"):
        (root / name).write_bytes(b"no sample")
    report = check("image_folder", root)
    assert report["samples"] == 16 and report["layout"] == "class folders" and report["corrupt"] == []
    assert report["left_out"] == {
        ".tar": 2, ".zip": 1, ".db": 1, ".gif": 1, f"{root}/__MACOSX/": 1, f"{root}/train/@eaDir/": 1,
    }  # fmt: skip


def test_links_to_a_folder_above_are_not_followed(tmp_path):
    root = write(tmp_path, "cat", "dog")
    for name, target in {"cat/self": "cat", "cat/root": ".", "everything": ".", "dog/above": ".."}.items():
        (root / name).symlink_to((root / target).resolve())
    report = check("image_folder", root)
    assert report["samples"] == 8 and len(report["left_out"]) == 4
    (root / "cat" / "dogs").symlink_to(root / "dog")  # and back again
    (root / "dog" / "cats").symlink_to(root / "cat")
    assert check("image_folder", root)["samples"] == 16


def test_one_folder_under_two_names_is_refused(tmp_path):
    root = write(tmp_path, *parts_of("train"))
    (root / "val").symlink_to(root / "train")
    with pytest.raises(UserError, match=r"train/ and val/ are the same folder"):
        open_source(config_of(root))


@pytest.mark.parametrize("kind", ["folders", "shards", "clips"])
def test_the_same_sample_in_two_parts_is_refused_by_name(kind, tmp_path, typed):
    root, name = tmp_path / "data", "event_folder" if kind == "clips" else "image_folder"
    if kind == "clips":
        formats.write_clips(root, 2, {"train": 4, "test": 4}, ["cat", "dog"])
        shutil.copy(root / "train" / "cat" / "clip_001.npz", root / "test" / "dog" / "renamed.npz")
        files = [str(root / "train" / "cat" / "clip_001.npz"), str(root / "test" / "dog" / "renamed.npz")]
    else:
        write(root, *parts_of("train", "val", "test"))
        shutil.copy(root / "train" / "cat" / "1.jpg", root / "val" / "dog" / "renamed.jpg")
        files = [str(root / "train" / "cat" / "1.jpg"), str(root / "val" / "dog" / "renamed.jpg")]
    if kind == "shards":
        shard(name, root, root := tmp_path / "shards")
        files = [f"{root}/{part}/000000.tar: sample" for part in ("train", "val")]
    code, out, err = typed("data", "check", name, "--root", root, "--json")
    assert code == 2 and all(file in err for file in files) and "Traceback" not in err
    (pair,) = json.loads(out)["shared"]
    assert all(found.startswith(file) for found, file in zip(pair, files, strict=True))


def test_repeats_without_given_parts_are_a_warning(tmp_path, typed):
    root = write(tmp_path, "cat", "dog")
    shutil.copy(root / "cat" / "0.jpg", root / "dog" / "9.jpg")
    code, out, _ = typed("data", "check", "image_folder", "--root", root)
    assert code == 0 and "warning: 1 samples repeat the content of another" in " ".join(out.split())
