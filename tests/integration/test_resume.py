"""A run that is killed with -9 and resumed ends in the same bits as one that was not."""

import json
import os
import signal

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from statten.data import split_indices
from statten.storage.events import PREFIX, tag
from statten.storage.run import Run

SMALL = "--set model.depth=1 --set model.embed_dim=32 --set train.epochs=6 --set train.checkpoint_every_steps=7"
ALL_OF_IT = (
    "--set train.optimizer=lamb --set train.mixup=0.5 --set train.cutmix=1 --set train.mixup_off_epoch=5 "
    "--set train.ema_decay=0.9 --set train.layer_decay=0.8 --set train.clip_grad=1 --set data.augment=true "
    "--set model.drop_path=0.1"
)
ELSE = "--set model.backbone=spikformer"
TAGS = {tag(metric) for metric in ("train/loss", "val/loss", "val/top1", "lr", "samples_per_second")}


def train(statten, storage, name, workers, options=""):
    threads = f"--set scale.workers={workers} --set scale.cpus_per_worker=1"
    return statten("train", "digits", *f"{SMALL} {threads} {options}".split(), "--name", name, "--storage", storage)


def weights(run):
    return {path.name: path.read_bytes() for path in (run.checkpoint_folder / "epoch-0006").glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options"), [(1, ELSE), (2, ALL_OF_IT)], ids=["another backbone", "two workers and all options"]
)
def test_six_epochs_straight_equal_three_killed_and_resumed(workers, options, statten, tmp_path):
    train(statten, tmp_path, "straight", workers, options).finish()
    killed = train(statten, tmp_path, "killed", workers, options)
    run = Run(tmp_path / "killed")
    killed.wait_until(lambda: len(run.metrics()) >= 3)
    # Not at the seam: some steps into the fourth epoch.
    killed.wait_until(
        lambda: any("epoch-0003-step" in p.name for p in run.checkpoint_folder.glob("*")) or len(run.metrics()) > 3
    )
    killed.kill()
    assert 3 <= len(run.metrics()) < 6 and run.state == "unfinished"

    text = statten("resume", "killed", "--storage", tmp_path).finish()
    assert "epoch 6/6" in text and "epoch 1/6" not in text

    straight = Run(tmp_path / "straight")
    assert weights(run) == weights(straight)
    rates = {"seconds", "samples_per_second", "time"}
    rows = [[{k: v for k, v in row.items() if k not in rates} for row in r.metrics()] for r in (run, straight)]
    assert rows[0] == rows[1], "every epoch's metrics, the interrupted one's included"
    assert run.state == "finished" and run.result["best"]["epoch"] == straight.result["best"]["epoch"]

    events = EventAccumulator(str(run.path)).Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert [event.step for event in events.Scalars(tag("val/top1"))] == [1, 2, 3, 4, 5, 6], "nothing twice, nothing missing"
    assert all(path.stat().st_size > 200 for path in run.path.glob(f"{PREFIX}*")), "no empty event file"


@pytest.mark.slow
def test_a_killed_worker_is_replaced(statten, tmp_path):
    command = train(statten, tmp_path, "worker", 1)
    run = Run(tmp_path / "worker")
    command.wait_until(lambda: len(run.metrics()) >= 2)
    for pid in os.listdir("/proc"):
        if pid.isdigit() and _is_worker(int(pid), command.mark):
            os.kill(int(pid), signal.SIGKILL)
    command.finish()
    assert [row["epoch"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6] and run.state == "finished"


def _is_worker(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command, open(f"/proc/{pid}/environ", "rb") as environment:
            return b"ray::RayTrainWorker" in command.read() and mark.encode() in environment.read()
    except OSError:
        return False


@pytest.mark.slow
def test_promotion_starts_from_the_best_weights_and_evaluation_reads_the_test_part(ray, done, tmp_path, monkeypatch):
    monkeypatch.setenv("STATTEN_STORAGE", str(tmp_path))
    options = "--set model.depth=1 --set model.embed_dim=32 --set train.epochs=3 --set train.warmup_epochs=0 --json"
    first = done("train", "digits", *options.split(), "--name", "first")
    document = json.loads(first[first.index("{") :])
    assert {"top1", "top5", "loss"} <= set(document) and document["epochs"] == 3
    overrides = "--set train.epochs=2 --set train.warmup_epochs=0 --set model.timesteps=8 --set model.block_size=4"
    done("promote", "first", *overrides.split(), "--name", "second")
    second = Run(tmp_path / "second")
    assert second.config.model.timesteps == 8
    started = load_file(second.path / "initial.safetensors")
    best = load_file(Run(tmp_path / "first").best_checkpoint() / "model.safetensors")
    assert all((started[name] == best[name]).all() for name in best)
    again = "--grid --set train.epochs=1 --set train.warmup_epochs=0 --set train.cooldown_epochs=0"
    said = done("promote", "first", *again.split(), "--name", "third")
    third, chosen = Run(tmp_path / "third"), json.loads((tmp_path / "third" / "run.json").read_text())["origin"]["grid"]
    assert (third.config.model.timesteps, third.config.model.block_size) == (chosen["timesteps"], chosen["block_size"])
    assert chosen["part"] == "validation" and chosen["why"] in said and "of 10 pairs it has the highest top-1" in said
    going = done("promote", "first", *again.split(), "--name", "third", "--resume")
    assert "third: is finished" in going, "the pair that was chosen is not another config"
    shown = done("evaluate", "second", "--json")
    report = json.loads(shown[shown.index("{") :])
    assert (
        report["samples"] == len(split_indices(second.config)["test"])
        and report["timesteps"] == 8
        and set(report["firing_rates"])
    )
    assert json.loads((second.path / "evaluation.json").read_text())["top1"] == report["top1"]
    wrong = done("promote", "first", "--set", "model.depth=2", code=2)
    assert "model.depth=1 must stay" in wrong
    wrong = done("promote", "first", "--grid", "--set", "model.timesteps=2", code=2)
    assert "--grid: chooses model.timesteps, but --set model.timesteps=2 does too" in wrong
