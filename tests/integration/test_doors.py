"""What a local Ray opens while a sweep of two workers a trial runs: doors on loopback alone, folders for this user alone."""

import os
from pathlib import Path

from processes import listeners, marked

from statten.search.sweep import Sweep

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
TINY = (
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=1",
    "model.timesteps=1",
    "model.block_size=1",
    "data.fraction=0.2",
)
SET = [word for field in (*TINY, "train.epochs=12", "search.firing_range=null", "scale.workers=2", "scale.cpus_per_worker=1")
       for word in ("--set", field)]  # fmt: skip


def test_a_sweep_of_several_workers_listens_on_loopback_alone(statten, tmp_path):
    (tmp_path / "space.yaml").write_text("train.lr: {float: [1.0e-4, 3.0e-3], log: true}\n")
    words = ["--space", tmp_path / "space.yaml", "--trials", 2, "--name", "s", "--storage", tmp_path]
    command = statten("tune", "digits", *words, *SET)
    command.wait_until(lambda: list(tmp_path.glob("s/trials/*/metrics.jsonl")))
    found = listeners(marked(command.mark))
    commands = " ".join(found.values())
    assert "gcs_server" in commands and "raylet" in commands and "dashboard" in commands and "TrainWorker" in commands, commands
    open_to_all = {key: name for key, name in found.items() if key[1] not in LOOPBACK}
    assert all("RayTrainWorker" in name for name in open_to_all.values()), open_to_all
    assert len(open_to_all) <= 1, "PyTorch's store, in which workers meet, knows no address to listen at"
    session = next(word for words in map(cmdline, marked(command.mark)) for word in words if "--session_dir=" in word)
    private = Path(session.partition("=")[2]).parents[1]
    assert private.stat().st_mode & 0o077 == 0 and private.stat().st_uid == os.getuid()
    command.finish()
    rows = Sweep.open(tmp_path / "s").rows()
    states = [trial.state.name for trial, _ in rows]
    assert len(states) == 2 and "COMPLETE" in states, "trials of several workers nest a trainer, one after the other"


def cmdline(pid):
    """The words of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
