"""A sweep in MLflow's SQLite and in W&B's offline runs: each trial is a run, the sweep is what holds them together."""

import json

import pytest
from evaluated import TINY
from mlflow.tracking import MlflowClient

from statten.search.sweep import Sweep

SET = [word for field, value in {**TINY, "train.epochs": 2, "train.warmup_epochs": 0, "data.fraction": 0.3}.items()
       for word in ("--set", f"{field}={value}")]  # fmt: skip


@pytest.mark.slow
def test_every_trial_is_a_run_of_the_sweep(ray, done, work):
    (work / "space.yaml").write_text("model.depth: {choices: [1, 2]}\n")
    words = [
        "--space",
        "space.yaml",
        "--trials",
        2,
        "--set",
        "search.scheduler=none",
        "--set",
        "log.mlflow=sqlite:///mlflow.db",
    ]
    done("tune", "digits", *SET, *words, "--set", "log.wandb=offline", "--name", "sizes")
    client, sweep = MlflowClient(f"sqlite:///{work}/mlflow.db"), Sweep(work / "runs" / "sizes")
    found = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("sizes").experiment_id])}
    assert found.keys() == {"sizes-0000", "sizes-0001"}
    for number, trial in sweep.folders().items():
        run, rows = found[f"sizes-{number:04d}"], trial.metrics()
        assert json.loads((trial.path / "loggers.json").read_text())["mlflow"] == run.info.run_id
        assert run.info.status == "FINISHED" and run.data.params["model.depth"] == str(trial.config.model.depth)
        history = client.get_metric_history(run.info.run_id, "val/top1")
        assert [(m.step, m.value) for m in history] == [(row["epoch"], row["val/top1"]) for row in rows] and len(rows) == 2
        assert len(list((trial.path / "wandb").glob("offline-run-*/*.wandb"))) == 1
