"""`statten data prepare event_folder`: own recordings in every format become the clips that the recipe reads."""

import json
import struct
import subprocess
import sys

import formats
import numpy as np
import pytest

from statten.config import load_config
from statten.data import make_loaders, resolved
from statten.data.dataset import Damaged
from statten.data.events import building, frames_folder, read_frames
from statten.data.own_events import read_columns, read_recording
from statten.data.prepare import prepare
from statten.errors import Failed, UserError

WIDTH, HEIGHT = 128, 128
KINDS = ("aedat2.aedat", "aedat3.AEDAT", "atis.bin", "columns.npz")


def write_recording(path, events):
    """Events in the format that the name says."""
    if path.suffix == ".npz":
        t, x, y, p = map(np.array, zip(*events, strict=True))
        np.savez(path, t=t / 1e6, x=x.astype(float), y=y.astype(np.int16), p=2 * p - 1)
        return
    write = {"aedat2": formats.aedat2, "aedat3": formats.aedat3, "atis": formats.atis}[path.stem.rpartition("_")[2]]
    path.write_bytes(write(events))


@pytest.fixture
def root(tmp_path):
    """Two classes with a recording of each kind, twice."""
    for c, name in enumerate(("clap", "wave")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(2 * len(KINDS)):
            events = formats.random_events(100 * c + i, 203, WIDTH, HEIGHT)
            write_recording(tmp_path / "raw" / name / f"{i}_{KINDS[i % len(KINDS)]}", events)
    return tmp_path / "raw"


def counted(seed, frames, downsample=1):
    expected = np.zeros((frames, 2, -(-HEIGHT // downsample), -(-WIDTH // downsample)), int)
    for i, (_, x, y, p) in enumerate(formats.random_events(seed, 203, WIDTH, HEIGHT)):
        expected[min(i // (203 // frames), frames - 1), p, y // downsample, x // downsample] += 1
    return expected


def test_recordings_become_clips_that_the_recipe_trains_on(root, tmp_path, typed):
    (root / "clap" / "notes.txt").write_text("no recording")
    output = tmp_path / "my clips"
    given = ["data", "prepare", "event_folder", "--root", root, "--output", output, "--size", "128x128"]
    code, out, err = typed(*given, "--timesteps", 4, "--timesteps", 7)
    assert code == 0, err
    assert out.splitlines() == [
        "16 clips of 2 classes from 16 recordings", "no recordings: 1 .txt",
        f"train with: statten train event_folder --data '{output}' --set model.timesteps=7",
    ]  # fmt: skip
    for frames in (4, 7):
        for c, name in enumerate(("clap", "wave")):
            for i in range(2 * len(KINDS)):
                path = frames_folder(output, frames) / name / f"{i}_{KINDS[i % len(KINDS)].partition('.')[0]}.npz"
                assert np.array_equal(read_frames(path), counted(100 * c + i, frames)), path
    assert not list(output.glob("*.building")) and not list(output.rglob("*.partial"))
    config = resolved(load_config("event_folder", [f"data.root={output}", "model.timesteps=2", "train.batch_size=4"]))
    assert config.model.num_classes == 2 and config.model.in_channels == 2 and config.model.image_size == 64
    x, _ = next(make_loaders(config).train.batches(0))
    assert x.shape == (4, 2, 2, 64, 64)


def test_pixels_are_counted_together(root, tmp_path):
    prepare("event_folder", root, [3], output=tmp_path / "out", size="128x128", downsample=3)
    for i in (0, 2, 3):
        path = frames_folder(tmp_path / "out", 3) / "wave" / f"{i}_{KINDS[i].partition('.')[0]}.npz"
        assert np.array_equal(read_frames(path), counted(100 + i, 3, downsample=3))


def test_parts_stay_parts_and_new_recordings_are_added(root, tmp_path):
    both = tmp_path / "both"
    for part in ("train", "test"):
        (both / part).mkdir(parents=True)
        for name in ("clap", "wave"):
            (both / part / name).mkdir()
            write_recording(both / part / name / "a_atis.bin", formats.random_events(len(part), 50, 64, 64))
    report = prepare("event_folder", both, [5], output=tmp_path / "out", size="64x64")
    assert report["samples"] == 4
    first = frames_folder(tmp_path / "out", 5) / "test" / "clap" / "a_atis.npz"
    stamp = first.stat().st_mtime_ns
    write_recording(both / "test" / "clap" / "b_atis.bin", formats.random_events(9, 50, 64, 64))
    assert prepare("event_folder", both, [5], output=tmp_path / "out", size="64x64")["samples"] == 5
    assert first.stat().st_mtime_ns == stamp and first.with_name("b_atis.npz").is_file()
    mark = building(frames_folder(tmp_path / "out", 5))
    mark.touch()  # killed after the last clip
    prepare("event_folder", both, [5], output=tmp_path / "out", size="64x64")
    assert not mark.exists() and first.stat().st_mtime_ns == stamp


def test_a_bad_recording_is_one_sentence_and_its_neighbours_stay(root, tmp_path, typed):
    bad = {
        "cut.aedat": b"#!AER-DAT2.0\r\nabc", "new.aedat": b"#!AER-DAT4.0\r\n", "none.aedat": b"events", "empty.bin": b"",
        "outside.bin": formats.atis([(0, 200, 5, 1)]), "few.bin": formats.atis([(0, 5, 5, 1)]), "text.npz": b"text",
        "davis.aedat": b"#!AER-DAT2.0\r\n" + struct.pack(">II", 0x0A000800, 7),
    }  # fmt: skip
    for name, content in bad.items():
        (root / "wave" / name).write_bytes(content)
    given = ["data", "prepare", "event_folder", "--root", root, "--output", tmp_path / "out", "--size", "128x128"]
    given += ["--timesteps", 4]
    code, out, err = typed(*given)
    folder = frames_folder(tmp_path / "out", 4)
    assert code == 1 and out == "" and len(err.strip().splitlines()) == 1
    assert "8 of 24 samples cannot be made" in err and "; and 3 more; mend them" in err and "--skip-corrupt" in err
    assert len(list(folder.rglob("*.npz"))) == 16, "the others are made"
    config = load_config("event_folder", [f"data.root={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="is not finished; go on with the `statten data prepare event_folder`"):
        resolved(config)
    code, out, err = typed(*given, "--skip-corrupt", "--json")
    report = json.loads(out)
    assert code == 0 and report["recordings"] == 24 and report["samples"] == 16
    reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in report["corrupt"]}
    assert set(reasons) == set(bad)
    for name, part in {
        "cut.aedat": "ends inside an event", "new.aedat": "is AEDAT 4, but", "none.aedat": "does not begin with #!AER-DAT",
        "empty.bin": "holds no events", "outside.bin": "x = 200, outside the 128 x 128 pixels",
        "few.bin": "1 events do not fill 4 frames", "text.npz": "is no .npz file with `t`",
        "davis.aedat": "no DVS128 made it",
    }.items():  # fmt: skip
        assert part in reasons[name], name
    assert resolved(config).model.num_classes == 2
    code, out, _ = typed(*given, "--skip-corrupt")
    assert code == 0 and out.count("left out ") == 8 and "16 clips of 2 classes from 24 recordings, 8 left out" in out


def test_a_class_without_a_clip_is_said(root, tmp_path):
    (root / "empty").mkdir()
    (root / "empty" / "a.bin").write_bytes(b"")
    with pytest.raises(Failed, match=r"/empty: has no clip, for none of its 1 recordings can be used"):
        prepare("event_folder", root, [4], output=tmp_path / "out", size="128x128", skip_corrupt=True)


def test_mistakes_are_one_sentence(root, tmp_path):
    out = tmp_path / "out"

    def problem(timesteps=(4,), output=out, **options):
        with pytest.raises(UserError) as caught:
            prepare("event_folder", root, list(timesteps), output=output, **options)
        (sentence,) = caught.value.problems
        return sentence

    assert "--output: event_folder needs a folder" in problem(output=None)
    assert "--output: must lie outside of --root" in problem(output=root / "clips", size="9x9")
    assert "--timesteps: event_folder needs at least one number of frames" in problem([], size="9x9")
    reach = problem()
    assert "--size: must say the sensor's WIDTHxHEIGHT in pixels" in reach and "0_aedat2.aedat go up to x = 127" in reach
    for size in ("128", "0x5", "9999x4", "-3x4", "3.5x4"):
        assert f"up to 4096, but got '{size}'" in problem(size=size)
    assert not out.exists(), "nothing is written"
    prepare("event_folder", root, [4], output=out, size="128x128")
    assert "holds clips of 128 x 128 pixels, but --size and --downsample ask for 64 x 64" in problem(
        size="128x128", downsample=2
    )
    (root / "wave" / "0_aedat2.aedat").rename(root / "wave" / "other.aedat")
    assert "holds clips that no recording in" in problem(size="128x128")
    (root / "wave" / "other.bin").write_bytes(b"")
    assert "wave/other.aedat and wave/other.bin would both be wave/other.npz" in problem(size="128x128")
    with pytest.raises(UserError, match="--size: is for event_folder, your own recordings, and has no effect on ncaltech101"):
        prepare("ncaltech101", root, [4], size="3x3")


def test_columns_in_any_order_and_notation(tmp_path):
    path = tmp_path / "a.npz"

    def read(**columns):
        np.savez(path, **{"t": [3.5, 1.5, 2.5], "x": [1, 2, 3], "y": [0, 0, 0], "p": [1, 0, 1], **columns})
        return read_columns(path)

    assert read()["x"].tolist() == [2, 3, 1] and read()["p"].tolist() == [False, True, True]
    assert read(p=[-1, 1, -1])["p"].tolist() == [True, False, False] and read(p=[True, True, False])["p"].tolist()[0]
    assert read(t=np.array([1, 1, 1], np.uint8))["x"].tolist() == [1, 2, 3], "events of one time keep their order"
    for columns, sentence in (
        ({"p": [0, 1, 2]}, "holds a p that is neither 1 for ON nor 0 or -1 for OFF"), ({"p": [-1, 0, 1]}, "holds a p that is"),
        ({"x": [0.5, 1, 2]}, "holds a x that is no whole number"), ({"t": [1, np.nan, 2]}, "holds a t that is no number"),
        ({"y": [1, 2]}, "3 t, 3 x, 2 y, 3 p: not one each"), ({"x": [[1], [2], [3]]}, "each a number for every event"),
        ({"t": ["a", "b", "c"]}, "each a number for every event"),
    ):  # fmt: skip
        with pytest.raises(Damaged, match=sentence):
            read(**columns)


def test_marks_of_time_in_a_recording_are_no_events(tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(b"#!AER-DAT2.0\r\n" + struct.pack(">IIII", 0x0A07, 1000, 0x8000, 1001))
    assert [column.tolist() for column in read_recording(path).values()] == [[1000], [117], [124], [0]]


def test_preparing_needs_neither_spikingjelly_nor_torchaudio(tmp_path):
    root = formats.write_ncaltech101(tmp_path / "root", classes=2, per_class=1)
    code = (
        "import sys; sys.modules.update(spikingjelly=None, torchaudio=None)\n"
        "from statten.cli import main\n"
        f"sys.argv = ['statten', 'data', 'prepare', 'ncaltech101', '--root', {str(root)!r}, '--timesteps', '4']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ncaltech101 is ready" in done.stdout, done.stderr
