"""`statten demo`: the main job from end to end, on data that is always there."""

import time
from pathlib import Path
from typing import Any

from statten.cluster.session import ray_cluster
from statten.config import load_config
from statten.display import console, duration
from statten.display.run import run_summary
from statten.errors import in_shell
from statten.evaluation import evaluate, summary
from statten.report.overview import sweep_summary
from statten.search import make_space, promote, tune
from statten.storage.run import free_name

SPACE: dict[str, Any] = {
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 2]},
    "model.embed_dim": {"int": [32, 128], "step": 32},
}
TRIALS, TRIAL_EPOCHS, PROMOTED_EPOCHS = 12, 6, 10


def run_demo(storage: Path) -> dict[str, Any]:
    """Sweep digits, promote the best trial, evaluate it on the test part; returns the evaluation."""
    with ray_cluster(None):  # one Ray for all three parts
        return _run(storage)


def _run(storage: Path) -> dict[str, Any]:
    began = time.monotonic()
    name = free_name(storage, "demo")
    config = load_config("digits", {"train.epochs": TRIAL_EPOCHS, "search.trials": TRIALS})
    space = make_space(SPACE, config)

    _title("1 of 3", "sweep", f"statten tune digits --space search_spaces/digits.yaml --trials {TRIALS} --name {name}")
    started = time.monotonic()
    sweep = tune(config, space, storage / name)
    sweep_summary(sweep, started)

    _title("2 of 3", "promote the best trial", f"statten promote {name} --set train.epochs={PROMOTED_EPOCHS}")
    started, best = time.monotonic(), sweep.best_trial().number
    run = promote(
        sweep.trial(best),
        {"train.epochs": PROMOTED_EPOCHS},
        storage / f"{name}-promoted",
        {"sweep": sweep.name, "trial": best},
    )
    run_summary(run, started)

    _title("3 of 3", "evaluate on the test part, which nothing has read until now", f"statten evaluate {run.name}")
    report = evaluate(run.path)
    summary(report)
    console.print(f"\nDone in {duration(time.monotonic() - began)}. See all: tensorboard --logdir {in_shell(storage)}")
    console.print("One training for every architecture of a space: statten supernet digits --space digits --epochs 24")
    return report


def _title(part: str, what: str, command: str) -> None:
    console.print(f"\n[bold]{part}: {what}[/]\n[dim]$ {command}[/]")
