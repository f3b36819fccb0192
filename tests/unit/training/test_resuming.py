"""A config.yaml that was edited while its run was stopped: what its checkpoint does not fit is named, the rest may change."""

import json

import pytest
from sweeps import SHORT

from statten.cluster import trainer
from statten.config import dump_config, load_config, with_overrides
from statten.errors import UserError
from statten.storage.run import Run
from statten.training.resuming import check_resumable
from statten.training.worker import run_fit


@pytest.fixture
def run(tmp_path):
    """A run that was stopped after its first epoch."""
    run = Run.create(tmp_path / "r", load_config("digits", {**SHORT, "train.epochs": 3}))

    def stop(row):
        raise KeyboardInterrupt

    with run.writing() as attempt, pytest.raises(KeyboardInterrupt):
        run_fit(run, attempt, then=stop)
    assert len(run.metrics()) == 1
    return run


def edit(run, **fields):
    config = with_overrides(run.config, {name.replace("__", "."): value for name, value in fields.items()})
    (run.path / "config.yaml").write_text(dump_config(config))
    return Run(run.path)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model__embed_dim": 24}, "set back model.embed_dim (16, now 24)"),
        ({"train__optimizer": "sgd", "train__lr": 0.5}, "now 'sgd'); free to change is train.lr ("),
        ({"train__ema_decay": 0.9}, "set back train.ema_decay (null, now 0.9)"),
        (
            {"model__depth": 2, "model__timesteps": 2},
            "set back model.depth (1, now 2); free to change is model.timesteps (1, now 2)",
        ),
    ],
)
def test_fields_that_the_checkpoint_does_not_fit_are_named_before_anything_starts(run, fields, named):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "config.yaml"}
    edited = edit(run, **fields)
    with pytest.raises(UserError, match=r"config.yaml: was edited, and epoch-0001 does not fit it any more") as caught:
        trainer.resume(edited)
    assert named in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    run_fit(edited, "attempt-without-a-lock")
    assert edited.result["state"] == "failed" and named in edited.result["reason"], "a trial's worker says it too"


def test_other_fields_may_change_and_are_told(run):
    edited = edit(run, train__lr=0.001, model__timesteps=2, train__epochs=2)
    assert [change.partition(" ")[0] for change in check_resumable(edited)] == ["model.timesteps", "train.epochs", "train.lr"]
    with edited.writing() as attempt:
        run_fit(edited, attempt)
    assert edited.result["state"] == "finished" and len(edited.metrics()) == 2


def test_a_checkpoint_of_before_says_what_does_not_fit(run):
    path = run.checkpoint_folder / "epoch-0001" / "state.json"
    saved = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("config", "digest")}
    path.write_text(json.dumps(saved))
    edited = edit(run, model__embed_dim=24)
    assert check_resumable(edited) == []
    run_fit(edited, "attempt-without-a-lock")
    assert "epoch-0001: does not fit config.yaml" in edited.result["reason"]
