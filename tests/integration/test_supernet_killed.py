"""A supernet as one types it: killed in its training and in its evaluation, resumed, shown, promoted."""

import json
import os
import signal
import time

import psutil
import pytest
from processes import MARK
from safetensors.torch import load_file

from statten.data import make_loaders
from statten.models.slices import extract
from statten.storage.run import Run, checkpoints
from statten.storage.supernet import POINTS, Supernet

SPACE = """
model.timesteps:  {choices: [1, 2]}
model.block_size: {divisors_of: model.timesteps}
model.depth:      {int: [1, 2]}
model.embed_dim:  {int: [16, 48], step: 16}
"""
SMALL = "--set model.num_heads=2 --set data.fraction=0.3 --set train.epochs=3 --set train.checkpoint_every_steps=3"
KILLS = 4


def weights(made):
    return {path.name: path.read_bytes() for path in checkpoints(made.checkpoint_folder)[-1].glob("*.safetensors")}


def rows(made):
    return [{**row, "seconds": 0, "metrics": {**row["metrics"], "latency_ms": 0}} for row in made.evaluated()]


def start(statten, storage, name, workers=1):
    (storage / "space.yaml").write_text(SPACE)
    scale = f"--set scale.workers={workers} --set scale.cpus_per_worker=1"
    return statten(
        "supernet", "digits", *f"{SMALL} {scale}".split(), "--space", storage / "space.yaml", "--name", name,
        "--storage", storage,
    )  # fmt: skip


def actors(mark):
    """Processes of actors that evaluate, of one command."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "ray::Evaluator" in " ".join(process.info["cmdline"] or []) and process.environ().get(MARK) == mark:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.slow
def test_two_workers_killed_and_resumed_end_in_the_same_bits_and_every_point_is_there_once(statten, tmp_path, typed):
    start(statten, tmp_path, "straight", 2).finish()
    straight = Supernet.open(tmp_path / "straight")
    assert straight.complete and len(rows(straight)) == 18

    command = start(statten, tmp_path, "killed", 2)
    killed = Supernet(tmp_path / "killed")
    command.wait_until(lambda: any("epoch-0001-step" in path.name for path in killed.checkpoint_folder.glob("*")), 420)
    command.kill()
    assert killed.state == "unfinished"
    again = statten("resume", "killed", "--storage", tmp_path)
    again.wait_until(lambda: (killed.path / POINTS).exists() and len(killed.evaluated()) >= 2, 420)
    again.kill()  # in the evaluation
    with (killed.path / POINTS).open("a") as file:
        file.write('{"number": 17, "po')  # and a line that was cut off
    # What is left is evaluated while actors are killed, again and again.
    last = statten("resume", "killed", "--storage", tmp_path)
    gone = set[int]()
    while last.process.poll() is None and len(gone) < KILLS:
        for pid in [pid for pid in actors(last.mark) if pid not in gone][:1]:
            os.kill(pid, signal.SIGKILL)
            gone.add(pid)
        time.sleep(0.25)
    last.finish()
    assert gone, "no actor was there to be killed"
    assert weights(killed) == weights(straight)
    assert rows(killed) == rows(straight), "evaluated whole or in parts, killed or not"
    numbers = [json.loads(line)["number"] for line in (killed.path / POINTS).read_text().splitlines()]
    assert sorted(numbers) == list(range(18)), "each once"

    code, out, _ = typed("show", "killed", "--storage", tmp_path, "--json")
    document = json.loads(out)
    assert code == 0 and document["state"] == "finished" and document["progress"] == "18/18 points"
    front = document["front"]
    assert [row["metrics"]["val/loss"] for row in front] == sorted(row["metrics"]["val/loss"] for row in front)
    assert -1 <= document["proxy"]["tau"] <= 1 and 0 < document["proxy"]["hypervolume"] <= document["hypervolume"] <= 1
    _, out, _ = typed("runs", "--storage", tmp_path, "--json")
    assert {row["name"]: row["kind"] for row in json.loads(out)} == {"straight": "supernet", "killed": "supernet"}
    code, _, err = typed("resume", "killed", "--storage", tmp_path)
    assert code == 2 and "there is nothing to resume" in err

    number = front[0]["number"]
    statten("promote", "killed", "--trial", number, "--name", "alone", "--storage", tmp_path, "--epochs", 2).finish()
    run = Run.open(tmp_path / "alone")
    assert run.state == "finished" and run.origin["supernet"] == "killed" and run.origin["trial"] == number
    state = load_file(checkpoints(killed.checkpoint_folder)[-1] / "model.safetensors")
    initial = load_file(run.path / "initial.safetensors")
    cut = extract(state, run.config.model)
    assert initial.keys() == cut.keys() and all(initial[name].equal(cut[name]) for name in cut)
    assert run.metrics()[0]["lr"] > run.metrics()[-1]["lr"] and run.config.train.epochs == 2
    assert make_loaders(run.config).train.steps_per_epoch > 0
