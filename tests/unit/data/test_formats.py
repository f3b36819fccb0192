"""Every published format, written byte by byte: archive -> events -> frames -> batches, with values checked by hand."""

import io
import pickle
import re
import shutil
import struct
import tarfile
import zipfile

import formats
import numpy as np
import pytest
import torch
from peer_datasets import peer
from PIL import Image

from statten.config import build_config
from statten.data import check_data, make_loaders, make_test_loader, open_source, split_indices
from statten.data.dataset import Damaged
from statten.data.making import integrate
from statten.data.prepare import prepare
from statten.data.raw_events import FORMATS, check_events, cut_gestures, read_aedat2, read_aedat3, read_atis
from statten.errors import Failed, UserError


def config_of(name, root, classes, *, timesteps=1, size=32, events=False, **data):
    model = {"timesteps": timesteps, "block_size": 1, "num_classes": classes, "image_size": size, "events": events}
    data = {"name": name, "root": str(root), **data}
    return build_config({"data": data, "model": {**model, "in_channels": 2 if events else 3}, "train": {"batch_size": 4}})


def problems(config):
    with pytest.raises(UserError) as caught:
        check_data(config)
    return caught.value.problems


def listed(events):
    return list(zip(*(events[key].tolist() for key in "txyp"), strict=True))


# --- CIFAR


@pytest.mark.parametrize("extracted", [False, True])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_its_archive_or_folder(name, classes, extracted, tmp_path):
    formats.write_cifar(tmp_path, name, per_class=3, extracted=extracted)
    config = config_of(name, tmp_path, classes)
    check_data(config)
    source, files = open_source(config), 5 if name == "cifar10" else 1
    assert len(source.labels) == 3 * classes * (files + 1) and len(source.classes) == classes
    assert source.test.tolist() == list(range(3 * classes * files, 3 * classes * (files + 1)))
    # Row i of a file holds 1,024 red values, then green, then blue, line by line.
    rows = np.random.default_rng(0).integers(0, 256, (3 * classes, 3072), dtype=np.uint8)
    image = source.read(1)
    assert image.size == (32, 32) and image.mode == "RGB" and source.labels[1] == 1
    assert image.getpixel((5, 2)) == tuple(int(rows[1, 1024 * c + 2 * 32 + 5]) for c in range(3))
    x, y = next(make_loaders(config).train.batches(0))
    assert x.shape == (4, 3, 32, 32) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert make_test_loader(config).total == 3 * classes


def test_cifar_reads_what_torchvision_reads(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    formats.write_cifar(tmp_path, extracted=True)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # the digests are those of the published files
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    source = open_source(config_of("cifar10", tmp_path, 10))
    train, test = CIFAR10(tmp_path, train=True), CIFAR10(tmp_path, train=False)
    theirs = [*train, *test]
    assert [label for _, label in theirs] == source.labels.tolist()
    assert all(np.array_equal(np.asarray(image), np.asarray(source.read(i))) for i, (image, _) in enumerate(theirs))


def test_cifar_mistakes_are_one_sentence(tmp_path):
    config = config_of("cifar10", tmp_path, 10)
    (problem,) = problems(config)
    assert "holds no cifar10; put cifar-10-python.tar.gz (https://www.cs.toronto.edu" in problem
    assert f"statten data prepare cifar10 --root {tmp_path}" in problem
    formats.write_cifar(tmp_path)
    archive = tmp_path / "cifar-10-python.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    (problem,) = problems(config)
    assert "cifar-10-python.tar.gz: cannot be read: " in problem and problem.endswith("anew")
    archive.unlink()
    formats.write_cifar(tmp_path, extracted=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert "holds no data_batch_3" in problems(config)[0]


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    formats.write_cifar(tmp_path, extracted=True)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    assert re.search(r"it asks for _?io\.open, which no CIFAR file does", problems(config_of("cifar10", tmp_path, 10))[0])
    assert not (tmp_path / "ran").exists()


# --- folders of images


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path):
    from torchvision.datasets import ImageFolder

    formats.write_images(tmp_path, {"train": 12, "val": 3})
    nested = tmp_path / "train" / "n01443537" / "more"
    nested.mkdir()
    (nested / "deep.png").write_bytes(formats.jpeg(7, kind="PNG"))
    (tmp_path / "train" / "n01443537" / "notes.txt").write_text("no image")
    source = open_source(config_of("imagenet", tmp_path, 3))
    train, val = ImageFolder(tmp_path / "train"), ImageFolder(tmp_path / "val")
    theirs = [*train.samples, *val.samples]
    assert [source.locate(i) for i in range(len(source.labels))] == [path for path, _ in theirs]
    assert source.labels.tolist() == [label for _, label in theirs] and source.classes == train.classes
    assert source.test.tolist() == list(range(37, 46))
    for i in (0, 24, 45):
        assert np.array_equal(np.asarray(source.read(i)), np.asarray(Image.open(theirs[i][0]).convert("RGB")))


def test_every_colour_mode_becomes_rgb(tmp_path):
    formats.write_images(tmp_path, {"train": 3, "val": 1})
    folder = tmp_path / "train" / "n01440764"
    for mode in ("L", "CMYK"):
        Image.new(mode, (9, 7)).save(folder / f"a{mode}.jpg")
    Image.new("P", (9, 7)).save(folder / "aP.png")
    source = open_source(config_of("imagenet", tmp_path, 3))
    assert [source.read(i).mode for i in range(3)] == ["RGB"] * 3 and source.locate(0).endswith("aCMYK.jpg")


def test_own_classes_with_and_without_a_test_part(tmp_path):
    formats.write_images(tmp_path / "given", {"train": 5, "test": 2}, ["cat", "dog"])
    config = config_of("image_folder", tmp_path / "given", 2)
    check_data(config)
    assert split_indices(config)["test"].tolist() == [10, 11, 12, 13]
    formats.write_images(tmp_path / "flat", {"": 10}, ["cat", "dog"])
    parts = split_indices(config_of("image_folder", tmp_path / "flat", 2))
    assert {part: len(indices) for part, indices in parts.items()} == {"train": 14, "validation": 2, "test": 4}
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(20))


def test_mistakes_in_class_folders_are_one_sentence_each(tmp_path):
    root = formats.write_images(tmp_path / "root", {"train": 12, "val": 3})
    assert problems(config_of("imagenet", tmp_path / "rooot", 3)) == [
        f"data.root: no such folder: {tmp_path / 'rooot'}; the nearest that exists is {tmp_path}"
    ]
    no_root = build_config({"data": {"name": "imagenet"}, "model": {"num_classes": 3}})
    assert problems(no_root) == ["data.root: must name the folder of imagenet; set data.root=DIR"]
    assert problems(config_of("imagenet", root, 1000)) == [
        f"model.num_classes: {root} holds 3 classes, fewer than model.num_classes=1000; if none is missing, use "
        "model.num_classes=3"
    ]
    assert problems(config_of("imagenet", root, 2)) == [
        "model.num_classes: must be at least 3 for imagenet, but got 2; use model.num_classes=3"
    ]
    (root / "train" / "n00000001").mkdir()
    (root / "val" / "n00000002").mkdir()
    assert sorted(p.partition(": ")[2][:32] for p in problems(config_of("imagenet", root, 3))) == [
        "is a class that " + str(root / "train")[:16], "is an empty class, for it holds ", "is an empty class, for it holds ",
    ]  # fmt: skip
    shutil.rmtree(root / "val")
    assert "holds train/ but no val/ or test/" in problems(config_of("imagenet", root, 3))[0]
    assert "must hold the class folders train/CLASS/" in problems(config_of("imagenet", root / "train", 3))[0]
    wrong = config_of("imagenet", root, 3).model_copy(update={"model": config_of("cifar10dvs", root, 3, events=True).model})
    assert [p.partition(":")[0] for p in problems(wrong)][:2] == ["model.in_channels", "model.events"]


def test_a_listing_follows_the_disk(tmp_path):
    formats.write_images(tmp_path, {"train": 4, "val": 2})
    config = config_of("imagenet", tmp_path, 3)
    before = open_source(config)
    assert open_source(config).labels is before.labels, "listed once"
    (tmp_path / "train" / "n01440764" / "new.jpg").write_bytes(formats.jpeg(1))
    assert len(open_source(config).labels) == len(before.labels) + 1


# --- events: the readers, by hand


def test_aedat2_by_hand():
    header = b"#!AER-DAT2.0\r\n# a comment\r\n"
    # y' = 10, x' = 3, polarity 1 at 1,000 us; then y' = 127, x' = 0, polarity 0.
    events = read_aedat2(header + struct.pack(">IIII", 0x0A07, 1000, 0x7F00, 1001))
    # SpikingJelly turns the picture: x = 127 - y', y = 127 - x', and 1 - polarity.
    assert listed(events) == [(1000, 117, 124, 0), (1001, 0, 127, 1)]
    with pytest.raises(Damaged, match="12 bytes of events are no multiple of 8"):
        read_aedat2(header + bytes(12))
    with pytest.raises(Damaged, match="holds no events"):
        read_aedat2(header)


def test_forty_bit_events_by_hand():
    events = read_atis(bytes([5, 7, 0x81, 0x02, 0x03, 239, 179, 0x7F, 0xFF, 0xFF]))
    assert listed(events) == [(0x010203, 5, 7, 1), (0x7FFFFF, 239, 179, 0)]
    with pytest.raises(Damaged, match="11 bytes are no multiple of 5"):
        read_atis(bytes(11))


def test_aedat3_by_hand_and_as_spikingjelly_reads_it(tmp_path):
    header = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    packet = struct.pack("<HHIIIIII", 1, 1, 8, 4, 1, 2, 2, 2)  # overflow 1: bit 31 of the time
    body = packet + struct.pack("<IIII", 12 << 17 | 34 << 2 | 1 << 1 | 1, 500, 127 << 17 | 0 << 2 | 1, 501)
    assert listed(read_aedat3(header + body)) == [(500 + 2**31, 12, 34, 1), (501 + 2**31, 127, 0, 0)]
    for cut in (1, 9, len(body) - 1):
        with pytest.raises(Damaged, match="ends inside a packet"):
            read_aedat3(header + body[:-cut])
    path = tmp_path / "a.aedat"
    path.write_bytes(formats.aedat3(formats.random_events(3, 500, 128, 128)))
    ours, theirs = read_aedat3(path.read_bytes()), peer("utils").load_aedat_v3(path)
    assert listed(ours) == listed(theirs) == formats.random_events(3, 500, 128, 128)


def test_readers_read_what_spikingjelly_reads(tmp_path):
    """Bit for bit, and any bits: random addresses, headers with and without text in them, times up to the last."""
    rng = np.random.default_rng(0)
    theirs = {"AEDAT 2": peer("cifar10_dvs")._load_origin_data, "ATIS": peer("utils").load_ATIS_bin}
    headers = [b"", b"#!AER-DAT2.0\r\n", "# ein Gerät\n #\n\t# more\r\n#".encode(), b"#\xff\xfe", b"# one\n#\xff\n"]
    for kind, read, starts, size in (("AEDAT 2", read_aedat2, headers, 8), ("ATIS", read_atis, [b""], 5)):
        for start in starts:
            # As on disk, where an address has 16 bits: no later line begins with #.
            body = rng.integers(0, 256, (40, size), dtype=np.uint8)
            body[:, :2] = 0 if size == 8 else body[:, :2]
            path = tmp_path / "file"
            path.write_bytes(start + body.tobytes())
            try:
                expected = theirs[kind](path)
            except UnicodeDecodeError:
                with pytest.raises(Damaged, match="begins with no header of text"):
                    read(path.read_bytes())
                continue
            except ValueError:
                with pytest.raises(Damaged, match="ends inside an event"):
                    read(path.read_bytes())
                continue
            found = read(path.read_bytes())
            assert all(np.array_equal(found[key], expected[key]) for key in "txyp"), (kind, start)


def test_what_is_fetched_is_what_spikingjelly_fetches():
    theirs = peer("cifar10_dvs").CIFAR10DVS.resource_url_md5()
    assert {file: (url, md5) for file, url, md5 in theirs} == FORMATS["cifar10dvs"].fetched


@pytest.mark.parametrize("frames", [1, 3, 7, 64])
def test_integration_is_spikingjellys_bit_for_bit(frames):
    rng = np.random.default_rng(frames)
    events = {"t": np.arange(997), "x": rng.integers(0, 5, 997), "y": rng.integers(0, 3, 997), "p": rng.integers(0, 2, 997)}
    theirs = peer("utils").integrate_events_by_fixed_frames_number(events, "number", frames, 3, 5)
    for checked in (events, check_events(events, 3, 5)):
        assert np.array_equal(integrate(checked, frames, 3, 5), theirs)


def test_writers_and_readers_agree():
    for write, read, width, height in ((formats.aedat2, read_aedat2, 128, 128), (formats.atis, read_atis, 240, 180)):
        events = formats.random_events(1, 300, width, height)
        assert listed(check_events(read(write(events)), height, width)) == events


def test_gestures_are_cut_by_their_labels():
    events = {"t": np.arange(0, 100, 10), "x": np.ones(10), "y": np.ones(10), "p": np.ones(10)}
    cut = list(cut_gestures(events, b"class,startTime_usec,endTime_usec\n8,0,25\n8,30,50\n1,50,60\n"))
    assert [(name, number, part["t"].tolist()) for name, number, part in cut] == [
        ("7", 0, [0, 10, 20]), ("7", 1, [30, 40]), ("0", 0, [50]),
    ]  # fmt: skip


def test_frames_by_hand():
    events = {"t": np.arange(5), "x": np.array([0, 1, 1, 2, 2]), "y": np.array([0, 0, 0, 1, 1]), "p": np.array([0, 1, 1, 0, 0])}
    frames = integrate(events, 2, height=2, width=3)  # events 0 and 1, then 2 to 4
    expected = np.zeros((2, 2, 2, 3), dtype=np.uint8)
    expected[0, 0, 0, 0] = expected[0, 1, 0, 1] = expected[1, 1, 0, 1] = 1
    expected[1, 0, 1, 2] = 2
    assert frames.dtype == np.uint8 and np.array_equal(frames, expected)
    with pytest.raises(Damaged, match="5 events do not fill 6 frames"):
        integrate(events, 6, 2, 3)
    with pytest.raises(Damaged, match="x = 2, outside the 2 x 2 pixels"):
        check_events(events, 2, 2)


# --- events: the whole way


WRITERS = {
    "cifar10dvs": (formats.write_cifar10dvs, 10, 128, 128),
    "ncaltech101": (formats.write_ncaltech101, 3, 180, 240),
    "dvs128gesture": (formats.write_gesture, 11, 128, 128),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Each event dataset, from its archives to frames for T = 4 and T = 2."""
    roots = {}
    for name, (write, *_) in WRITERS.items():
        roots[name] = write(tmp_path_factory.mktemp(name) / "root")
        report = prepare(name, roots[name], [4, 2])
        assert report["corrupt"] == [] and set(report["frames"]) == {"2", "4"}
    return roots


@pytest.mark.parametrize("name", WRITERS)
def test_archives_become_batches(name, prepared):
    _, classes, height, width = WRITERS[name]
    config = config_of(name, prepared[name], classes, timesteps=4, size=128, events=True)
    check_data(config)
    source = open_source(config)
    assert all(source.read(i).shape == (4, 2, height, width) for i in (0, len(source.labels) - 1))
    for batches in (make_loaders(config).train.batches(0), iter(make_test_loader(config))):
        x, y = next(batches)
        assert x.shape == (len(y), 4, 2, 128, 128) and x.dtype == torch.float32 and y.max() < classes
    assert not list(prepared[name].glob("*.building")) and not list(prepared[name].rglob("*.partial"))


@pytest.mark.parametrize("name", ["cifar10dvs", "ncaltech101"])
def test_frames_hold_the_events_that_were_written(name, prepared):
    _, classes, height, width = WRITERS[name]
    source = open_source(config_of(name, prepared[name], classes, timesteps=4, events=True))
    index = 13  # class 1, and the fourth name in order: image_0004 or cifar10_automobile_3
    seed, count = (1003, 203) if name == "cifar10dvs" else (1004, 204)
    events = formats.random_events(seed, count, width, height)
    expected = np.zeros((4, 2, height, width), dtype=int)
    for i, (_, x, y, p) in enumerate(events):
        expected[min(i // (count // 4), 3), p, y, x] += 1
    assert source.labels[index] == 1 and np.array_equal(source.read(index).numpy(), expected)


def test_a_clip_of_native_size_reaches_the_batch_unchanged(prepared):
    config = config_of("cifar10dvs", prepared["cifar10dvs"], 10, timesteps=4, size=128, events=True, augment=False)
    source, test = open_source(config), split_indices(config)["test"]
    x, y = next(iter(make_test_loader(config)))
    assert torch.equal(x[2], source.read(int(test[2])).float()) and y.tolist() == source.labels[test[:4]].tolist()


@pytest.mark.parametrize("name", WRITERS)
def test_spikingjelly_reads_our_folders_and_makes_the_same_frames(name, prepared, tmp_path):
    module, cls_name = {
        "cifar10dvs": ("cifar10_dvs", "CIFAR10DVS"), "ncaltech101": ("n_caltech101", "NCaltech101"),
        "dvs128gesture": ("dvs128_gesture", "DVS128Gesture"),
    }[name]  # fmt: skip
    cls = getattr(peer(module), cls_name)
    options = {"data_type": "frame", "frames_number": 4, "split_by": "number"}
    parts = [{"train": True}, {"train": False}] if name == "dvs128gesture" else [{}]
    # Its own way from the extracted archives.
    root = tmp_path / "theirs"
    (root / "extract").mkdir(parents=True)
    for path in [*prepared[name].glob("download/*"), *prepared[name].glob("*.zip")]:
        shutil.unpack_archive(path, root / "extract")
    shutil.rmtree(root / "extract" / "__MACOSX", ignore_errors=True)
    (root / "events_np").mkdir()
    cls.create_raw_from_extracted(root / "extract", root / "events_np")
    source = open_source(config_of(name, prepared[name], WRITERS[name][1], timesteps=4, events=True))
    at = 0
    for part in parts:
        ours, theirs = cls(prepared[name], **options, **part), cls(root, **options, **part)
        assert [label for _, label in ours.samples] == [label for _, label in theirs.samples]
        for i in range(0, len(ours), 7):
            assert np.array_equal(ours[i][0], theirs[i][0])
            assert np.array_equal(source.read(at + i).numpy(), theirs[i][0]) and source.labels[at + i] == theirs[i][1]
        at += len(ours)


def test_the_published_cut_is_the_first_nine_tenths_by_name(prepared):
    config = config_of("cifar10dvs", prepared["cifar10dvs"], 10, timesteps=4, events=True)
    source, test = open_source(config), split_indices(config)["test"]
    assert [source.locate(int(i)).rpartition("/")[2] for i in test[:2]] == [
        "cifar10_airplane_9.npz",
        "cifar10_automobile_9.npz",
    ]
    assert np.bincount(source.labels[test]).tolist() == [1] * 10
    gesture = split_indices(config_of("dvs128gesture", prepared["dvs128gesture"], 11, timesteps=4, events=True))
    assert len(gesture["test"]) == 12 and gesture["test"].min() == 24, "its own test part"


def test_sentences_for_clips_that_are_not_there(prepared, tmp_path):
    root = prepared["cifar10dvs"]
    assert problems(config_of("cifar10dvs", root, 10, timesteps=8, events=True)) == [
        f"{root}/frames_number_8_split_by_number: no such folder, so there are no clips of 8 frames; there are clips of "
        f"T = 2, 4 (model.timesteps); make them with: statten data prepare cifar10dvs --root {root} --timesteps 8"
    ]
    (root / "frames_number_2_split_by_number.building").touch()
    try:
        assert (
            "is not finished; go on with: statten data prepare"
            in problems(config_of("cifar10dvs", root, 10, timesteps=2, events=True))[0]
        )
    finally:
        (root / "frames_number_2_split_by_number.building").unlink()
    for name, archive in (("ncaltech101", "Caltech101.zip"), ("dvs128gesture", "DvsGesture.tar.gz")):
        with pytest.raises(UserError, match=rf"lacks {archive}; fetch it from https://.* and put it into .*/download"):
            prepare(name, tmp_path, [4])
    with pytest.raises(UserError, match="image_folder: needs no preparation"):
        prepare("image_folder", tmp_path, [])
    with pytest.raises(UserError, match="such as --timesteps 10"):
        prepare("ncaltech101", tmp_path, [])


def test_corrupt_raw_files_are_named_and_may_be_left_out(tmp_path):
    root = formats.write_ncaltech101(tmp_path / "root")
    good = {}
    with zipfile.ZipFile(root / "Caltech101.zip") as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    broken = {"Caltech101/Faces_easy/image_0002.bin": b"\x01\x02\x03", "Caltech101/class_002/image_0001.bin": b""}
    with zipfile.ZipFile(root / "Caltech101.zip", "w") as archive:
        for name, content in {**good, **broken}.items():
            archive.writestr(name, content)
    with pytest.raises(Failed) as caught:
        prepare("ncaltech101", root, [4])
    sentence = str(caught.value)
    assert "2 of 30 samples cannot be made" in sentence and "3 bytes are no multiple of 5" in sentence
    assert "class_002/image_0001.bin: holds no events" in sentence and (root / "events_np.building").exists()
    report = prepare("ncaltech101", root, [4], skip_corrupt=True)
    assert len(report["corrupt"]) == 2 and report["samples"] == 28
    again = prepare("ncaltech101", root, [4])
    assert again["samples"] == 28 and again["corrupt"] == []


def test_a_truncated_archive_is_one_sentence(tmp_path):
    root = formats.write_ncaltech101(tmp_path / "zip")
    content = (root / "Caltech101.zip").read_bytes()
    (root / "Caltech101.zip").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"Caltech101.zip: is no whole zip file"):
        prepare("ncaltech101", root, [4])
    root = formats.write_gesture(tmp_path / "tar")
    path = root / "download" / "DvsGesture.tar.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"DvsGesture.tar.gz: cannot be extracted"):
        prepare("dvs128gesture", root, [4])
    assert not (root / "extract").exists()


def test_own_clips_and_their_length(tmp_path):
    formats.write_clips(tmp_path / "flat", 4, {"": 10}, ["left", "right"])
    config = config_of("event_folder", tmp_path / "flat", 2, timesteps=4, events=True)
    check_data(config)
    assert {part: len(indices) for part, indices in split_indices(config).items()} == {"train": 14, "validation": 2, "test": 4}
    assert problems(config_of("event_folder", tmp_path / "flat", 2, timesteps=5, events=True)) == [
        f"model.timesteps: must be 4, the frames of the clips in {tmp_path / 'flat'}, but got 5; use model.timesteps=4"
    ]
    formats.write_clips(tmp_path / "parts", 4, {"train": 5, "test": 2}, ["left", "right"], dtype="float64")
    config = config_of("event_folder", tmp_path / "parts", 2, timesteps=4, events=True)
    assert split_indices(config)["test"].tolist() == [10, 11, 12, 13]
    clip = open_source(config).read(0)
    assert clip.dtype == torch.int32 and clip.shape == (4, 2, 20, 24), "whole numbers, whatever type they were written in"


def test_a_download_without_a_network_is_one_sentence(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_args, **_options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for name, timesteps in (("cifar10", []), ("cifar100", []), ("cifar10dvs", [4])):
        with pytest.raises(UserError, match=r"cannot be fetched .*; fetch .* elsewhere and put it into") as caught:
            prepare(name, tmp_path / name, timesteps)
        assert len(caught.value.problems) == 1
        assert [path.name for path in (tmp_path / name).rglob("*")] in ([".lock"], [".lock", "download"], ["download", ".lock"])
    config = config_of("cifar10", tmp_path / "cifar10", 10, download=True)
    assert "cannot be fetched" in problems(config)[0]


def test_an_archive_of_something_else(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("readme")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert "holds no data_batch_1, so it is no cifar10" in problems(config_of("cifar10", tmp_path, 10))[0]
