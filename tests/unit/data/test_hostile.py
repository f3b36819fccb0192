"""Archives, event files and indices that are damaged or made to do harm: one sentence, nothing outside, nothing left behind."""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import formats
import numpy as np
import pytest

from statten.data import archives
from statten.data.archives import extract, read_arrays, zip_members
from statten.data.dataset import Damaged
from statten.data.events import read_frames
from statten.data.prepare import prepare
from statten.data.raw_events import cut_gestures, read_aedat2, read_aedat3
from statten.data.shards import shard
from statten.data.work import sole_writer
from statten.errors import Failed, UserError


def tar_of(path, *members):
    """Members are (name, type, link or content)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(text) if kind == tarfile.REGTYPE else 0
            info.linkname = "" if kind == tarfile.REGTYPE else text
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


GOOD = ("a/b.txt", tarfile.REGTYPE, "good")


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("/evil.txt", tarfile.REGTYPE, "x"), "path that leads elsewhere"),
        (("a/../../evil.txt", tarfile.REGTYPE, "x"), "path that leads elsewhere"),
        (("..", tarfile.DIRTYPE, ""), "path that leads elsewhere"),
        (("a\\..\\evil.txt", tarfile.REGTYPE, "x"), "path that leads elsewhere"),
        (("a/link", tarfile.SYMTYPE, "/tmp"), "is a link or a device"),
        (("a/link", tarfile.SYMTYPE, "b.txt"), "is a link or a device"),
        (("a/link", tarfile.LNKTYPE, "a/b.txt"), "is a link or a device"),
        (("a/pipe", tarfile.FIFOTYPE, ""), "is a link or a device"),
        (("a/disk", tarfile.BLKTYPE, ""), "is a link or a device"),
        (("d" * 300, tarfile.REGTYPE, "x"), "has a path of 300 bytes"),
        (("/".join(["d" * 200] * 40), tarfile.DIRTYPE, ""), "has a path of 8,039 bytes"),
        (("a/b.txt", tarfile.REGTYPE, "again"), "File exists"),
        (("a", tarfile.REGTYPE, "a file where a folder is"), "exists"),
    ],
)
def test_a_tar_with_a_bad_member_is_refused_and_leaves_nothing(member, words, tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", GOOD, member)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        extract(path, tmp_path / "in" / "here")
    assert str(caught.value).startswith(f"{path}: cannot be extracted: ")
    assert list((tmp_path / "in").iterdir()) == [] and {p.name for p in tmp_path.iterdir()} == {"a.tar.gz", "in"}


@pytest.mark.parametrize("name", ["/evil.txt", "a/../../evil.txt", "../evil.txt"])
def test_a_member_that_leads_out_is_refused_even_where_its_name_says_nothing(name, tmp_path, monkeypatch):
    """Where it lies counts, not only how it is called: the second of two locks, tried with the first one open."""
    monkeypatch.setattr(archives, "member_path", PurePosixPath)
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    path = tar_of(tmp_path / "a.tar.gz", GOOD, (name, tarfile.REGTYPE, "x"))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="cannot be extracted"):
        extract(path, tmp_path / "in" / "here")
    assert list((tmp_path / "in").iterdir()) == [] and not list(tmp_path.rglob("evil.txt")), "a member was written outside"


def test_limits_of_an_archive(tmp_path, monkeypatch):
    path = tar_of(tmp_path / "a.tar.gz", ("./a", tarfile.DIRTYPE, ""), GOOD, ("c.txt", tarfile.REGTYPE, "more"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b.txt", "good"), archive.writestr("c.txt", "more")
    (tmp_path / ".whole.partial" / "of a killed one").mkdir(parents=True)
    extract(path, tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == ["a", "c.txt"]
    assert (tmp_path / "whole" / "a" / "b.txt").read_text() == "good"
    assert [(str(member), read()) for member, _, read in zip_members(tmp_path / "a.zip")] == [
        ("a/b.txt", b"good"),
        ("c.txt", b"more"),
    ]
    for limit, value in (("MEMBERS", 1), ("TOTAL", 7)):
        with monkeypatch.context() as patched:
            patched.setattr(archives, limit, value)
            with pytest.raises(UserError, match="holds more than"):
                extract(path, tmp_path / "not")
            with pytest.raises(UserError, match="holds more than"):
                zip_members(tmp_path / "a.zip")
    assert not (tmp_path / "not").exists() and not (tmp_path / ".not.partial").exists()


@pytest.mark.parametrize(
    "member", ["/evil.aedat", "../evil.aedat", "airplane/../../evil.aedat", "airplane\\evil.aedat", "link"]
)
def test_a_zip_with_a_bad_member_is_refused_before_anything_is_written(member, tmp_path):
    root = formats.write_cifar10dvs(tmp_path / "root", per_class=1)
    with zipfile.ZipFile(root / "download" / "dog.zip", "a") as archive:
        info = zipfile.ZipInfo(member)
        info.external_attr = (0o120777 if member == "link" else 0o100644) << 16
        archive.writestr(info, formats.aedat2(formats.random_events(0, 50, 128, 128)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"dog.zip: is no whole zip file of plain files \(its member"):
        prepare("cifar10dvs", root, [2])
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock"] == before


def test_two_raw_files_of_one_name_are_refused(tmp_path):
    root = formats.write_cifar10dvs(tmp_path / "root", per_class=1)
    with zipfile.ZipFile(root / "download" / "dog.zip", "a") as archive:
        archive.writestr("cat/cifar10_cat_0.aedat", b"")
    with pytest.raises(UserError, match=r"are both cat/cifar10_cat_0.npz; keep one of them"):
        prepare("cifar10dvs", root, [2])


def test_an_encrypted_member_is_left_out_alone(tmp_path):
    root = formats.write_ncaltech101(tmp_path / "root", per_class=2)
    data = bytearray((root / "Caltech101.zip").read_bytes())
    place = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[place + 8] |= 1
    (root / "Caltech101.zip").write_bytes(data)
    report = prepare("ncaltech101", root, [2], skip_corrupt=True)
    assert report["samples"] == 5 and "encrypted" in report["corrupt"][0]["reason"]


# --- arrays


def npy(header, content=b"\0" * 64):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def header(shape, kind="|u1", fortran=False):
    return f"{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "data",
    [
        npy(header("(1000000000000, 2, 1, 1)")), npy(header("(99999999999999999999, 2, 1, 1)")), npy(header("(True, 2, 1, 1)")),
        npy(header("(-1, 2, 1, 1)")), npy(header("(8, 2, 1, 1)", "|O")), npy(header("(9, 2, 2, 2)")), npy("(((("), npy("1"),
        b"", b"PK", b"\x93NUMPY", b"PK\x03\x04" + bytes(80),
    ],
)  # fmt: skip
def test_an_array_file_that_lies_is_damaged(data, tmp_path):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(Damaged):
        read_frames(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("frames.npy", data)
    with pytest.raises(Damaged):
        read_frames(tmp_path / "x.npz")


@pytest.mark.parametrize("array", [
    np.arange(24, dtype="f4").reshape(2, 3, 4), np.asfortranarray(np.arange(24).reshape(2, 3, 4)), np.zeros((0, 3)),
    np.array(5), np.arange(4) > 1, np.arange(5, dtype=">u2"),
])  # fmt: skip
def test_arrays_are_read_as_numpy_reads_them(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", frames=array, other=np.array([None], object))
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        (read,) = read_arrays(path, "frames")
        assert read.dtype == array.dtype and np.array_equal(read, array) and read.flags.writeable


# --- event files


def packet(size, capacity, kind=1):
    head = struct.pack("<HHIIIIII", kind, 0, size, 4, 0, capacity, capacity, capacity)
    return b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + head + b"\0" * min(size * capacity, 100)


@pytest.mark.parametrize(
    ("read", "data", "words"),
    [
        (read_aedat3, packet(0, 5), "events of 0 bytes"),
        (read_aedat3, packet(4, 5), "events of 4 bytes"),
        (read_aedat3, packet(6, 3), "events of 6 bytes"),
        (read_aedat3, packet(2**32 - 1, 2**32 - 1), "ends inside a packet"),
        (read_aedat2, b"#!AER-DAT2\xee\xbf\x00\x00\x00\x02u}4\n" + b"\0" * 16, "begins with no header of text"),
    ],
)
def test_a_damaged_event_file_is_a_sentence(read, data, words):
    with pytest.raises(Damaged, match=words):
        read(data)


@pytest.mark.parametrize("labels", [b"h\n1,2\n", b"h\n0,1,2\n", b"h\none,1,2\n", b"h\n1.5,1,2\n", b"h\n\xff\xfe,1,2\n"])
def test_a_row_of_labels_that_is_odd_is_named(labels):
    with pytest.raises(Damaged, match=r"line 2 of its labels is no class \(from 1\), begin and end"):
        list(cut_gestures({key: np.arange(3) for key in "txyp"}, labels))


def gestures(tmp_path, **files):
    """DVS128 Gesture, extracted, with files replaced: {"user01": labels}."""
    root = formats.write_gesture(tmp_path / "root")
    extract(root / "download" / "DvsGesture.tar.gz", root / "extract")
    for name, content in files.items():
        (root / "extract" / "DvsGesture" / name).write_bytes(content)
    return root


TABLE = b"class,startTime_usec,endTime_usec\n1,0,300000\n2,9000000,9500000\n3,400000,600000\n"


@pytest.mark.parametrize(
    ("table", "kept", "words"),
    [
        (TABLE, ["0/user01_fluorescent_0", "2/user01_fluorescent_0"], "train/1/user01_fluorescent_0.npz: holds no events"),
        (TABLE.replace(b"2,9", b"x,9"), ["0/user01_fluorescent_0", "2/user01_fluorescent_0"], "line 3 of its labels is no"),
        (b"class\n", [], "its labels hold no gesture"),
        (b"", [], "its labels hold no gesture"),
    ],
)
def test_a_gesture_that_cannot_be_used_leaves_its_neighbours(table, kept, words, tmp_path):
    root = gestures(tmp_path, **{"user01_fluorescent_labels.csv": table})
    with pytest.raises(Failed, match=r"samples cannot be made.*user01_fluorescent.*leave them out with --skip-corrupt"):
        prepare("dvs128gesture", root, [2])
    report = prepare("dvs128gesture", root, [2], skip_corrupt=True)
    (left_out,) = report["corrupt"]
    assert words in f"{left_out['file']}: {left_out['reason']}"
    folder = root / "frames_number_2_split_by_number" / "train"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("user01*")) == [f"{name}.npz" for name in kept]
    assert len(list(folder.rglob("user02*.npz"))) == 12


def test_a_recording_that_cannot_be_read_leaves_the_others(tmp_path):
    root = gestures(tmp_path, **{"user01_fluorescent.aedat": packet(0, 5)})
    (root / "extract" / "DvsGesture" / "user02_led_labels.csv").unlink()
    report = prepare("dvs128gesture", root, [2], skip_corrupt=True)
    assert [Path(row["file"]).name for row in report["corrupt"]] == ["user01_fluorescent.aedat", "user02_led.aedat"]
    assert report["samples"] == 12


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        (b"", "trials_to_train.txt: names no recording"),
        (
            b"user01_fluorescent.aedat\nuser24_lab.aedat\n",
            "user24_lab.aedat is in trials_to_train.txt and in trials_to_test.txt",
        ),
        (b"../user01_fluorescent.aedat\n", "must hold names of files beside it"),
        (b"/etc/passwd\n", "must hold names of files beside it"),
    ],
)
def test_lists_of_recordings_that_are_odd(trials, words, tmp_path):
    with pytest.raises(UserError, match=words):
        prepare("dvs128gesture", gestures(tmp_path, **{"trials_to_train.txt": trials}), [2])


# --- what is ready is not written, and what cannot be written is said


def test_ready_data_need_no_writing(tmp_path):
    events = formats.write_ncaltech101(tmp_path / "events", per_class=2)
    images = formats.write_images(tmp_path / "images", {"train": 3, "val": 2})
    cifar = formats.write_cifar(tmp_path / "cifar", per_class=1)
    steps = [
        lambda: prepare("ncaltech101", events, [2]), lambda: prepare("cifar10", cifar, []),
        lambda: shard("imagenet", images, tmp_path / "shards", 4), lambda: shard("imagenet", tmp_path / "shards", None),
    ]  # fmt: skip
    first = [step() for step in steps]
    for lock in list(tmp_path.rglob(".lock")):
        lock.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert [step() for step in steps] == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="holds something already"):
        shard("imagenet", images, tmp_path / "shards", 5)


def test_storage_that_cannot_be_written_is_said_before_the_work():
    with (
        pytest.raises(UserError, match=r"^/proc/self: cannot be written: .*; there clips must be made"),
        sole_writer(Path("/proc/self"), "clips"),
    ):
        raise AssertionError("never begun")


# --- shards


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 9]}, {"labels": [0, -1]}, {"labels": [0]}, {"sizes": [2**62, 1]}, {"offsets": [-1, 1]}, {"sizes": "ab"},
        {"name": "../000000.tar"}, {"labels": None},
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_shards_is_refused(change, tmp_path):
    from statten.data.shards import open_shards

    images = formats.write_images(tmp_path / "images", {"": 1}, ["cat", "dog"])
    shard("image_folder", images, tmp_path / "shards")
    path = tmp_path / "shards" / "index.json"
    document = json.loads(path.read_text())
    document["shards"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"index.json: is no index of version 1"):
        open_shards(tmp_path / "shards")


@pytest.mark.parametrize(
    ("suffix", "label"), [("cls", b"-1"), ("cls", b"99999999999"), ("json", b"[1]"), ("json", b'{"cls": null}')]
)
def test_a_label_that_is_none_is_named(suffix, label, tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as archive:
        for name, data in ((f"0.{suffix}", label), ("0.jpg", formats.jpeg(0))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match=r"000.tar: cannot be indexed"):
        shard("image_folder", tmp_path, None)
