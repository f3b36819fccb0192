"""`statten data prepare` and `data shard`, killed with -9 again and again, end in the same bytes as one clean run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import formats
import pytest

from statten.storage.run import Run, checkpoints

KILLS = 10


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killed_at(arguments, files, before):
    """Run `statten data ...` in a process that dies of -9 at its `files`-th file, before or after that has got its name.

    Returns the signal that ended it, 0 if it came to its end. What takes long to import is there already.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WTERMSIG(status)
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        replace, left = Path.replace, [files]

        def counted(self, target):
            left[0] -= Path(target).suffix in (".npz", ".tar")
            if before and left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(self, target)
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = counted
        sys.argv = ["statten", "data", *map(str, arguments)]
        from statten import cli

        cli.main()
    except SystemExit as end:
        os._exit(end.code or 0)
    finally:
        os._exit(99)


def interrupt(arguments, root, marks, clean):
    """Start the command KILLS times, and kill it each time after another tenth of the files that `clean` has."""
    files = max(1, sum(path.suffix in (".npz", ".tar") for path in clean.rglob("*")) // KILLS)
    for turn in range(KILLS):
        died = killed_at([*arguments, "--workers", 1 + turn % 2], files, before=turn % 2 == 0)
        assert died == signal.SIGKILL, f"turn {turn} was to be killed"
        assert any((root / mark).exists() for mark in marks), "what is not finished is marked"


def finish(arguments):
    done = subprocess.run([sys.executable, "-m", "statten.cli", "data", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def warm():
    """What the forked processes need is imported once, here."""
    import statten.data.prepare  # noqa: F401


@pytest.mark.parametrize("name", ["cifar10dvs", "dvs128gesture"])
def test_prepare_killed_ten_times_ends_in_the_same_bytes(name, warm, tmp_path):
    write = formats.write_cifar10dvs if name == "cifar10dvs" else formats.write_gesture
    clean = write(tmp_path / "clean")
    shutil.copytree(clean, tmp_path / "killed")
    command = ["prepare", name, "--timesteps", 4, "--timesteps", 2, "--root"]
    finish([*command, clean])
    marks = ["events_np.building", *(f"frames_number_{frames}_split_by_number.building" for frames in (2, 4))]
    interrupt([*command, tmp_path / "killed"], tmp_path / "killed", marks, clean)
    finish([*command, tmp_path / "killed"])
    assert bytes_of(tmp_path / "killed") == bytes_of(clean)
    assert not list(clean.glob("*.building"))
    stamps = {path: path.stat().st_mtime_ns for path in clean.rglob("*.npz")}
    finish([*command, clean])
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*.npz")} == stamps, "nothing is made twice"


def test_own_recordings_killed_ten_times_end_in_the_same_bytes(warm, tmp_path):
    for name in ("clap", "wave"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(KILLS):
            content = formats.atis(formats.random_events(i + len(name), 60, 64, 64))
            (tmp_path / "raw" / name / f"{i}.bin").write_bytes(content)
    command = ["prepare", "event_folder", "--root", tmp_path / "raw", "--size", "64x64", "--timesteps", 4, "--output"]
    finish([*command, tmp_path / "clean"])
    mark = "frames_number_4_split_by_number.building"
    interrupt([*command, tmp_path / "killed"], tmp_path / "killed", [mark], tmp_path / "clean")
    finish([*command, tmp_path / "killed"])
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "clean") and len(bytes_of(tmp_path / "clean")) == 2 * KILLS + 1


def test_shard_killed_ten_times_ends_in_the_same_bytes(warm, tmp_path):
    root = formats.write_images(tmp_path / "images", {"train": 60, "val": 20})
    command = ["shard", "imagenet", "--root", root, "--per-shard", 2, "--output"]
    finish([*command, tmp_path / "clean"])
    (tmp_path / "killed").mkdir()
    interrupt([*command, tmp_path / "killed"], tmp_path / "killed", [".plan.json"], tmp_path / "clean")
    finish([*command, tmp_path / "killed"])
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "clean")


def test_two_at_once_is_one_sentence(warm, tmp_path):
    from statten.data.prepare import prepare
    from statten.errors import UserError
    from statten.files import exclusive

    root = formats.write_ncaltech101(tmp_path / "root", per_class=2)
    with exclusive(root), pytest.raises(UserError, match="another process is writing it; wait for it or stop it"):
        prepare("ncaltech101", root, [2])


@pytest.mark.slow
def test_a_file_that_breaks_under_two_workers_is_a_clean_stop(statten, tmp_path):
    root = formats.write_images(tmp_path / "data", {"train": 24, "val": 4})
    settings = {
        "data.name": "image_folder", "data.root": root, "data.augment": "false", "model.in_channels": 3, "model.num_classes": 3,
        "model.depth": 1, "model.embed_dim": 16, "model.num_heads": 2, "train.epochs": 500, "train.batch_size": 6,
        "train.checkpoint_every_steps": 1, "scale.workers": 2, "scale.cpus_per_worker": 1, "scale.device": "cpu",
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = statten("train", "digits", *overrides, "--name", "r", "--storage", tmp_path)
    run = Run(tmp_path / "r")
    command.wait_until(lambda: len(run.metrics()) >= 1)
    for path in (root / "train").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    text = command.finish(code=1)
    assert text.strip().splitlines()[-1].startswith("statten: ") and ".JPEG: cannot be read: is no image file (8 bytes)" in text
    assert "Traceback" not in text and run.state == "failed" and checkpoints(run.checkpoint_folder)
