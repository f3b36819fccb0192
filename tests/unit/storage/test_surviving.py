"""What a run survives without Ray: damaged checkpoints, a full disk, storage that goes away, a worker that hangs."""

import itertools
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from evaluated import TINY
from states import next_epoch

from statten.config import load_config
from statten.errors import Superseded, UserError
from statten.models.published import load_published
from statten.storage.checkpoint import OPTIMIZER, STATE, load_newest, load_weights, prune, save
from statten.storage.run import Run, checkpoints
from statten.storage.writer import RunWriter
from statten.training.loop import make_state
from statten.training.worker import Agreement, run_fit

SHORT = {
    **TINY, "model.num_heads": 2, "train.epochs": 3, "train.warmup_epochs": 0, "train.batch_size": 256, "scale.device": "cpu",
}  # fmt: skip


def new_run(path: Path, **fields) -> Run:
    return Run.create(path, load_config("digits", {**SHORT, **fields}))


def finish(run: Run, then=None):
    with run.writing() as attempt:
        return run_fit(run, attempt, threads=1, then=then)


def curves(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second", "time")} for row in run.metrics()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Run:
    """A run that nothing happened to."""
    run = new_run(tmp_path_factory.mktemp("straight") / "run")
    assert finish(run)
    return run


def assert_as_if_nothing_had_happened(run: Run, straight: Run) -> None:
    assert run.state == "finished" and curves(run) == curves(straight)
    ours, theirs = (load_weights(r.checkpoint_folder / "epoch-0003") for r in (run, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(run.checkpoint_folder.glob(".*")), "nothing half written is left"


@pytest.fixture
def two_epochs(tmp_path, straight) -> Run:
    """A run that was stopped after two of its three epochs."""
    run = new_run(tmp_path / "run")
    shutil.copytree(straight.checkpoint_folder, run.checkpoint_folder, dirs_exist_ok=True)
    shutil.rmtree(run.checkpoint_folder / "epoch-0003")
    if not (run.checkpoint_folder / "epoch-0001").exists():  # kept only where it is the best
        state = make_state(run.config)
        state.epoch = 1
        save(state, run.checkpoint_folder)
    return run


def flip(path: Path, at: float, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER, STATE])
def test_any_flipped_bit_and_any_cut_is_found(name, two_epochs, caplog):
    file = two_epochs.checkpoint_folder / "epoch-0002" / name
    sound = file.read_bytes()
    for damage in range(40):
        if damage < 30:
            flip(file, damage / 30, damage % 8)
        else:
            file.write_bytes(sound[: len(sound) * (damage - 30) // 10])
        state = make_state(two_epochs.config)
        with caplog.at_level(logging.WARNING, "statten"):
            loaded = load_newest(state, two_epochs.checkpoint_folder)
        assert loaded and loaded.name == "epoch-0001", f"damage {damage} of {name} went unnoticed"
        assert "epoch-0002 is damaged" in caplog.text and "falling back to the checkpoint before it" in caplog.text
        caplog.clear()
        file.write_bytes(sound)
    assert load_newest(make_state(two_epochs.config), two_epochs.checkpoint_folder).name == "epoch-0002"


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, straight):
    run = new_run(tmp_path / "run", **{"train.keep_checkpoints": 3})
    assert finish(run)
    shutil.rmtree(run.checkpoint_folder / "epoch-0003")
    flip(run.checkpoint_folder / "epoch-0002" / "model.safetensors", 0.9)
    assert finish(run)
    assert_as_if_nothing_had_happened(run, straight)
    assert "epoch-0002 is damaged (model.safetensors does not match its digest)" in (run.path / "train.log").read_text()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_unasked(two_epochs):
    for path in checkpoints(two_epochs.checkpoint_folder):
        flip(path / OPTIMIZER, 0.5)
    assert finish(two_epochs) is None
    assert "all checkpoints are damaged; restore one" in two_epochs.result["reason"]


# ---------------------------------------------------------------------------------------------------------------------
# What rank 0 writes, without the training.


def writer_of(run: Run, attempt: str) -> RunWriter:
    return RunWriter(run, run.config, attempt)


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_the_best_checkpoint_stays_however_few_are_kept_and_whenever_it_came(keep, tmp_path):
    moments = [(done, f"epoch-{done:04d}{step}") for done in range(5) for step in ("", "-step-000007")][1:]
    for order in itertools.product([1, 2, 3], repeat=4):
        folder = tmp_path / "-".join(map(str, order))
        for number, (done, name) in enumerate(moments, 1):
            (folder / name).mkdir(parents=True)
            best = order.index(max(order[:done])) + 1 if done else None
            prune(folder, keep, best)
            names = {path.name for path in checkpoints(folder)}
            said = f"top-1 {order[:done]}, keep_checkpoints={keep}: {sorted(names)} are left"
            assert not done or f"epoch-{best:04d}" in names, f"the checkpoint of the best epoch, {best}, was pruned; {said}"
            newest = {name for _, name in moments[:number][-keep:]}
            assert newest <= names <= newest | {f"epoch-{best or 0:04d}"}, said


def test_the_writer_keeps_the_best_checkpoint(tmp_path):
    run, state = new_run(tmp_path / "run", **{"train.keep_checkpoints": 1}), make_state(load_config("digits", SHORT))
    with run.writing() as attempt:
        writer = writer_of(run, attempt)
        for top1, best in ((1.0, 1), (3.0, 2), (2.0, 2), (3.0, 2), (0.0, 2)):
            next_epoch(state, top1)
            writer.epoch(state)
            names = [path.name for path in checkpoints(run.checkpoint_folder)]
            expected = sorted({f"epoch-{best:04d}", f"epoch-{state.epoch:04d}"})
            assert names == expected, f"epoch {best} is the best one, {state.epoch} the newest"
        writer.close(failed=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("call", ["begin", "checkpoint", "epoch", "end"])
def test_an_attempt_that_another_one_followed_writes_nothing_more(call, tmp_path):
    run, state = new_run(tmp_path / "run"), make_state(load_config("digits", SHORT))
    with run.writing() as attempt:
        older = writer_of(run, attempt)
        older.begin(state)
        next_epoch(state)
        older.epoch(state)
    with run.writing():  # its machine was out of reach; the older attempt's worker is still there
        before = contents(run.path)
        if call == "checkpoint":
            state.step = 1
        elif call == "epoch":
            next_epoch(state)
        try:
            getattr(older, call)(state)
        except Superseded as error:
            assert "a newer attempt writes this run" in str(error)
        else:
            pytest.fail(f"RunWriter.{call} of an older attempt was let into the run of a newer one")
        assert contents(run.path) == before, f"RunWriter.{call} of an older attempt changed the newer one's files"
    older.close(failed=True)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_line_of_the_metrics_that_was_cut_off_is_gone_before_the_next_is_added(done, tmp_path):
    run, state = new_run(tmp_path / "run"), make_state(load_config("digits", SHORT))
    file = run.path / "metrics.jsonl"
    rows = []
    for _ in range(done):
        next_epoch(state)
        rows.append(json.dumps(state.metrics) + "\n")
    torn = json.dumps({"epoch": done + 1, "val/top1": 99.0, "val/loss": 1.0, "seconds": 1.0})
    for cut in range(1, len(torn) + 1, 7):
        file.write_text("".join(rows) + torn[:cut])
        with run.writing() as attempt:
            writer = writer_of(run, attempt)
            writer.begin(state)
            assert file.read_text() == "".join(rows), f"a line that was cut off after {cut} bytes stays in metrics.jsonl"
            writer.close(failed=False)


def test_what_a_killed_process_left_aside_goes_and_checkpoints_stay(two_epochs):
    folder = two_epochs.checkpoint_folder
    for name in (".epoch-0002-abcdefgh", ".epoch-0003-step-000001-abcdefgh"):
        shutil.copytree(folder / "epoch-0002", folder / name)
    with two_epochs.writing() as attempt:
        writer = writer_of(two_epochs, attempt)
        writer.begin(make_state(two_epochs.config))
        writer.close(failed=False)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["epoch-0001", "epoch-0002"], "half checkpoints, which nobody reads, would fill the disk kill by kill"


@pytest.fixture(params=["a full file system", "a limit of the file size"])
def cramped(request, tmp_path):
    """A folder, a function that takes its space away, and one that gives it back."""
    if request.param == "a limit of the file size":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield (
            tmp_path,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    filler = tmp_path / "filler"

    def fill() -> None:
        free = os.statvfs(tmp_path)
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 60_000))

    try:
        yield tmp_path, fill, filler.unlink
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(cramped, straight):
    folder, fill, empty = cramped
    run = new_run(folder / "run")
    assert finish(run, then=lambda row: fill() if row["epoch"] == 1 else None) is None
    empty()
    assert run.state == "failed" and run.result["reason"].startswith("the disk of the run is full (")
    assert run.result["reason"].endswith("; free some space") and str(folder) in run.result["reason"]
    assert [path.name for path in run.checkpoint_folder.iterdir()] == ["epoch-0001"], "whole ones alone"
    assert [row["epoch"] for row in run.metrics()] == [1], "metrics were written before the checkpoint that they speak of"
    assert finish(run)
    assert_as_if_nothing_had_happened(run, straight)


def test_storage_that_goes_away_for_a_while_is_waited_for(tmp_path, straight, caplog):
    run, elsewhere, made_anew = new_run(tmp_path / "storage" / "run"), tmp_path / "elsewhere", []

    def put_back() -> None:
        while "waiting for the storage" not in caplog.text:
            time.sleep(0.05)
        made_anew.append((tmp_path / "storage").exists())
        os.rename(elsewhere, tmp_path / "storage")

    def away(row) -> None:
        if row["epoch"] == 1:
            os.rename(tmp_path / "storage", elsewhere)
            threading.Thread(target=put_back).start()

    assert finish(run, away)
    assert made_anew == [False]
    assert_as_if_nothing_had_happened(run, straight)
    waited, back = (record.message for record in caplog.records if "storage" in record.message)
    assert waited.startswith("waiting for the storage, up to 300 s (scale.storage_seconds): ") and str(run.path) in waited
    assert back.startswith("the storage is back after ")


def test_storage_that_stays_away_stops_the_run_and_nothing_is_written_in_its_place(tmp_path, straight):
    run, elsewhere = new_run(tmp_path / "storage" / "run", **{"scale.storage_seconds": 0}), tmp_path / "elsewhere"
    assert finish(run, lambda row: os.rename(tmp_path / "storage", elsewhere)) is None
    assert not (tmp_path / "storage").exists()
    os.rename(elsewhere, tmp_path / "storage")
    assert run.state == "unfinished" and finish(run)
    assert_as_if_nothing_had_happened(run, straight)


def test_a_worker_that_is_stopped_is_ended_by_its_watchdog(tmp_path, straight):
    run = new_run(tmp_path / "run", **{"scale.hang_seconds": 6})
    code = (
        "import sys; from pathlib import Path\n"
        "from statten.storage.run import Run; from statten.training.worker import run_fit\n"
        "run = Run(Path(sys.argv[1]))\n"
        "with run.writing() as attempt: run_fit(run, attempt, threads=1)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)]) as worker:
        while not run.metrics():
            assert worker.poll() is None
            time.sleep(0.01)
        worker.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert worker.wait(30) == -signal.SIGKILL
        assert time.monotonic() - began > 3
    deadline = time.monotonic() + 5
    while "a worker made no step for 6 s and was ended" not in (run.path / "train.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert finish(run)
    assert_as_if_nothing_had_happened(run, straight)


def _ranks_that_leave(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    steps, agreed = 0, Agreement(lambda: rank == 1 and steps >= 5)
    while True:
        dist.all_reduce(torch.ones(1))
        steps += 1
        if agreed():
            break
    Path(folder, f"rank-{rank}").write_text(str(steps))
    dist.destroy_process_group()


def test_all_ranks_leave_after_the_same_step(tmp_path):
    mp.start_processes(_ranks_that_leave, (str(tmp_path),), nprocs=2, start_method="fork")
    assert [int((tmp_path / f"rank-{rank}").read_text()) for rank in (0, 1)] == [8, 8]


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_that_is_read_back_is_unpickled(tmp_path, two_epochs):
    struck = tmp_path / "struck"
    pickled = pickle.dumps(Hostile(struck))
    torch.save({"state_dict": Hostile(struck), "args": Hostile(struck)}, tmp_path / "published.pth.tar")
    pickle.loads(pickled)
    struck.unlink()  # that is what it does
    folder = two_epochs.path
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "attempt")]
    names = {*files, *(folder / name for name in ("result.json", "metrics.jsonl", "progress.json", "initial.safetensors"))}
    assert len(names) > 8
    with pytest.raises(UserError, match="can be read safely"):
        load_published(tmp_path / "published.pth.tar")
    for path in sorted(names):
        sound = path.read_bytes() if path.exists() else None
        for content in (
            pickled,
            (tmp_path / "published.pth.tar").read_bytes(),
            f"!!python/object/apply:os.mknod ['{struck}']".encode(),
        ):
            path.write_bytes(content)
            for read in (
                lambda: two_epochs.config, lambda: two_epochs.result, lambda: two_epochs.info, two_epochs.metrics,
                two_epochs.best_checkpoint, lambda: load_weights(two_epochs.path / "initial.safetensors"),
                lambda: load_newest(make_state(load_config("digits", SHORT)), two_epochs.checkpoint_folder),
                *(lambda path=path: load_weights(path, averaged=True) for path in checkpoints(two_epochs.checkpoint_folder)),
            ):  # fmt: skip
                try:
                    read()
                except (UserError, UnicodeDecodeError) as error:
                    assert isinstance(error, UserError) or path.name == "metrics.jsonl", f"{path.name}: {error!r}"
            assert not struck.exists(), f"{path.name} was unpickled"
        path.unlink()
        if sound is not None:
            path.write_bytes(sound)
    assert json.loads((folder / "run.json").read_text())["kind"] == "run"
