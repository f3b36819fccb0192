"""Ctrl-C in a real terminal, SIGTERM and SIGHUP: a sentence that says how to go on, 128 + the signal, and nothing lost."""

import json
import re
import signal
import time

import pytest

from statten.search.sweep import Sweep
from statten.storage.run import Run

SMALL = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=1",
    "model.timesteps=1",
    "model.block_size=1",
    "data.fraction=0.2",
]
SET = [word for field in SMALL for word in ("--set", field)]
NOTHING = "nothing was begun that could be resumed"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text("train.lr: {float: [1.0e-4, 3.0e-3], log: true}\n")
    return path


def sentence(command):
    """What a command said last; nothing may look like an accident."""
    text = command.text
    assert "Traceback" not in text and "best trial" not in text, text
    return [line for line in text.splitlines() if "statten: " in line][-1].partition("statten: ")[2].strip()


@pytest.mark.parametrize(("seconds", "times"), [(2.5, 1), (4.0, 2)])
def test_ctrl_c_while_a_sweep_is_starting(statten, tmp_path, space, seconds, times):
    command = statten(
        "tune", "digits", "--space", space, "--trials", 2, "--name", "s", "--storage", tmp_path, *SET, terminal=True
    )
    time.sleep(seconds)
    for _ in range(times):
        command.press("\x03")
        time.sleep(0.2)
    # Where the signal meets an extension that runs Python, Python kills itself with it at the end: 130 for a shell, too.
    assert command.process.wait(60) in (130, -signal.SIGINT), command.text
    assert sentence(command) == f"stopped by Ctrl-C; {NOTHING}"
    assert not list(tmp_path.iterdir()) and command.gone(30)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_the_middle_of_a_sweep(statten, tmp_path, space, typed, times):
    fields = [*SET, "--set", "train.epochs=8", "--set", "search.firing_range=null"]
    arguments = ["--trials", 4, "--name", "s", "--storage", tmp_path, *fields]
    command = statten("tune", "digits", "--space", space, *arguments, terminal=True)
    command.wait_until(lambda: len(list(tmp_path.glob("s/trials/*/checkpoints/epoch-*"))) > 4)
    for _ in range(times):
        command.press("\x03")
    command.finish(130, 60)
    go_on = f"statten resume s --storage {tmp_path}"
    assert sentence(command) == f"stopped by Ctrl-C; what is finished is kept; go on with: {go_on}"
    assert command.gone(60)
    kept = {run.path: run.metrics() for run in Sweep(tmp_path / "s").folders().values()}
    states = [trial["state"] for trial in json.loads(typed("show", "s", "--storage", tmp_path, "--json")[1])["trials"]]
    assert "unfinished" in states and "running" not in states
    assert [row["state"] for row in json.loads(typed("runs", "--storage", tmp_path, "--json")[1])] == ["unfinished"]
    if times == 1:
        return
    resumed = statten(*go_on.split()[1:])
    resumed.finish(0)
    assert "best trial" in resumed.text
    for path, rows in kept.items():
        assert Run(path).metrics()[: len(rows)] == rows, "a finished epoch was trained again"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle_of_a_run(statten, tmp_path, name):
    number = signal.Signals[name]
    command = statten("train", "digits", "--name", "r", "--storage", tmp_path, *SET, "--set", "train.epochs=400", terminal=True)
    command.wait_until(lambda: Run(tmp_path / "r").metrics())
    command.process.send_signal(number)
    command.finish(128 + number, 60)
    kept = f"what is finished is kept; go on with: statten resume r --storage {tmp_path}"
    assert sentence(command) == f"stopped by {name}; {kept}"
    assert Run(tmp_path / "r").state == "unfinished" and command.gone(60)


def test_a_job_that_is_stopped_is_not_started_again(statten, tmp_path):
    job = tmp_path / "job.yaml"
    overrides = ", ".join(field.replace("=", ": ") for field in [*SMALL, "train.epochs=400"])
    job.write_text(
        f"{{command: train, recipe: digits, name: r, storage: {tmp_path}, retries: 3, overrides: {{{overrides}}}}}\n"
    )
    command = statten("run", job, terminal=True)
    command.wait_until(lambda: Run(tmp_path / "r").metrics())
    command.press("\x03")
    command.finish(130, 90)
    assert sentence(command).startswith("stopped by Ctrl-C; what is finished is kept; go on with: ")
    assert re.findall("stopped by Ctrl-C", command.text) == ["stopped by Ctrl-C"] and "started again" not in command.text
    assert command.gone(60)
