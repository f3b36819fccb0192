"""`statten data prepare` and `data shard`, killed with -9 again and again, end in the same bytes as one clean run."""

import os
import shutil
import signal
import subprocess
import sys
import time

import formats
import pytest

from statten.checkpoint import checkpoints
from statten.runs import Run

KILLS = 10


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def forked(arguments):
    """A process that runs the command, as `statten data ...` does; what takes long to import is there already."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        sys.argv = ["statten", "data", *map(str, arguments)]
        from statten import cli

        cli.main()
    except SystemExit as end:
        os._exit(end.code or 0)
    finally:
        os._exit(99)


def interrupted(arguments, root, marks, total):
    """Start the command KILLS times; kill -9 as soon as it has written some more files. Returns how often it was alive then."""
    killed = 0
    for _ in range(KILLS):
        before, pid = written(root), forked([*arguments, "--workers", 1])  # slowly
        deadline = time.monotonic() + 60
        while written(root) < before + 3 and os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.0005)
        try:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            killed += os.WIFSIGNALED(status)
        except (ProcessLookupError, ChildProcessError):
            break  # it was done
        assert written(root) == total or any((root / mark).exists() for mark in marks), "what is not finished is marked"
    return killed


def written(root):
    return sum(1 for path in root.rglob("*") if path.suffix in (".npz", ".tar") and not path.name.startswith("."))


def finish(arguments):
    done = subprocess.run([sys.executable, "-m", "statten.cli", "data", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def warm():
    """What the forked processes need is imported once, here."""
    import spikingjelly.datasets.cifar10_dvs
    import spikingjelly.datasets.utils  # noqa: F401


@pytest.mark.parametrize("name", ["cifar10dvs", "dvs128gesture"])
def test_prepare_killed_ten_times_ends_in_the_same_bytes(name, warm, tmp_path):
    write = formats.write_cifar10dvs if name == "cifar10dvs" else formats.write_gesture
    clean = write(tmp_path / "clean")
    shutil.copytree(clean, tmp_path / "killed")
    command = ["prepare", name, "--timesteps", 4, "--timesteps", 2, "--root"]
    finish([*command, clean])
    marks = ["events_np.building", *(f"frames_number_{frames}_split_by_number.building" for frames in (2, 4))]
    killed = interrupted([*command, tmp_path / "killed"], tmp_path / "killed", marks, written(clean))
    assert killed == KILLS
    finish([*command, tmp_path / "killed"])
    assert bytes_of(tmp_path / "killed") == bytes_of(clean)
    assert not list(clean.glob("*.building"))
    stamps = {path: path.stat().st_mtime_ns for path in clean.rglob("*.npz")}
    finish([*command, clean])
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*.npz")} == stamps, "nothing is made twice"


def test_shard_killed_ten_times_ends_in_the_same_bytes(warm, tmp_path):
    root = formats.write_images(tmp_path / "images", {"train": 60, "val": 20})
    command = ["shard", "imagenet", "--root", root, "--per-shard", 2, "--output"]
    finish([*command, tmp_path / "clean"])
    (tmp_path / "killed").mkdir()
    assert interrupted([*command, tmp_path / "killed"], tmp_path / "killed", [".plan.json"], written(tmp_path / "clean")) >= 5
    finish([*command, tmp_path / "killed"])
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "clean")


def test_two_at_once_is_one_sentence(warm, tmp_path):
    from statten.config import UserError
    from statten.data.prepare import prepare
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
