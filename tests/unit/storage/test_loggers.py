"""MLflow and Weights & Biases, for real: MLflow's own stores, W&B offline, and what is said where they cannot be used."""

import itertools
import json
import shutil
import socket
import struct
import sys
from pathlib import Path

import pytest
from evaluated import TINY
from mlflow.tracking import MlflowClient
from wandb.proto import wandb_internal_pb2

from statten.config import build_config, load_config
from statten.data import resolved
from statten.errors import ConfigError, UserError
from statten.evaluation.targets import open_target
from statten.space.loading import make_space
from statten.storage.loggers import FILE, check_loggers
from statten.storage.run import Run
from statten.training.worker import run_fit

SHORT = {
    **TINY, "model.num_heads": 2, "train.epochs": 3, "train.warmup_epochs": 0, "train.batch_size": 256, "scale.device": "cpu",
    "scale.neuron_backend": "torch", "data.fraction": 0.3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def file_store(monkeypatch):
    """MLflow's file store, which it no longer takes unasked, needs no tables to be made: it saves seconds."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)


def finish(run: Run, then=None):
    with run.writing() as attempt:
        return run_fit(run, attempt, threads=1, then=then)


def records(file: Path) -> list[wandb_internal_pb2.Record]:
    """What a .wandb file holds: W&B's header of 7 bytes, then blocks of 32 KiB as LevelDB's log has them."""
    data, found, part, at = file.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # the whole, or the end, of a record
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


class Interrupted(BaseException):
    """A process that is killed, as far as this one can tell."""


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Run:
    """A promoted run that is stopped after two of three epochs and resumed with another learning rate."""
    folder = tmp_path_factory.mktemp("logged")
    fields = {"log.mlflow": str(folder / "tracking"), "log.wandb": "offline", "log.project": "digits"}
    run = Run.create(folder / "mine", load_config("digits", {**SHORT, **fields}), {"sweep": "sizes", "trial": 3})

    def stop(row):
        if row["epoch"] == 2:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        with pytest.raises(Interrupted):
            finish(run, stop)
        config = run.path / "config.yaml"
        config.write_text(config.read_text().replace("min_lr: 1.0e-05", "min_lr: 2.0e-05"))
        run = Run(run.path)
        assert run.config.train.min_lr == 2e-5 and finish(run)
    return run


def measured(run):
    """The rows of metrics.jsonl without their own time, for which trackers have their own."""
    return [{name: value for name, value in row.items() if name != "time"} for row in run.metrics()]


def test_mlflow_has_one_run_with_everything(logged):
    client = MlflowClient(logged.config.log.mlflow)
    (found,) = client.search_runs([client.get_experiment_by_name("sizes").experiment_id])
    assert found.info.run_id == json.loads((logged.path / FILE).read_text())["mlflow"]
    assert (found.info.run_name, found.info.status, found.data.tags["state"]) == ("sizes-mine", "FINISHED", "finished")
    assert json.loads(found.data.tags["classes"]) == [str(i) for i in range(10)]
    assert found.data.params["train.epochs"] == "3" and found.data.params["model.attention"] == "statten"
    assert (found.data.params["train.min_lr"], found.data.tags["resumed.train.min_lr"]) == ("1e-05", "2e-05")
    rows = measured(logged)
    assert len(rows) == 3 and found.data.metrics.keys() == {*rows[0], "best/top1"}
    for name in rows[0]:
        history = client.get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(row["epoch"], row[name]) for row in rows], name


def test_wandb_offline_has_one_run_with_everything(logged):
    files = sorted((logged.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2, "one of each process, for `wandb sync`"
    logs = [records(file) for file in files]
    begun = [next(record.run for record in log if record.HasField("run")) for log in logs]
    assert {run.run_id for run in begun} == {json.loads((logged.path / FILE).read_text())["wandb"]}
    assert {(run.display_name, run.run_group, run.project) for run in begun} == {("sizes-mine", "sizes", "digits")}
    config = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert config["classes"] == [str(i) for i in range(10)] and config["train"]["epochs"] == 3
    found = {}
    for record in itertools.chain(*logs):
        if record.HasField("history"):
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found[row["_step"]] = {
                name: value for name, value in row.items() if not name.startswith("_") and name != "best/top1"
            }
    assert found == {row["epoch"]: row for row in measured(logged)}
    assert [record.exit.exit_code for log in logs for record in log if record.HasField("exit")] == [1, 0]


def test_a_logger_that_fails_does_not_end_training(tmp_path):
    """One warning; the run is whole, and what was missed is sent when the store is back, at the end at the latest."""
    store = tmp_path / "tracking"
    run = Run.create(tmp_path / "mine", load_config("digits", {**SHORT, "log.mlflow": str(store)}))

    def trouble(row):
        if row["epoch"] == 1:
            shutil.move(store, tmp_path / "away")
            store.write_text("a file where a folder was")
        elif row["epoch"] == 2:
            store.unlink()
            shutil.move(tmp_path / "away", store)

    assert finish(run, trouble) and run.state == "finished"
    assert (run.path / "train.log").read_text().count("log.mlflow: ") == 1
    history = MlflowClient(str(store)).get_metric_history(json.loads((run.path / FILE).read_text())["mlflow"], "val/loss")
    assert [metric.step for metric in history] == [1, 2, 3]


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_said_before_anything_starts(package, work, typed, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    value = {"mlflow": "sqlite:///mlflow.db", "wandb": "offline"}[package]
    for more in ([], ["--dry-run"]):
        code, _, err = typed("train", "digits", "--set", f"log.{package}={value}", *more)
        assert code == 2 and f"log.{package}: the package {package} is not installed" in err and "statten[log]" in err
    assert not (work / "runs").exists() and not (work / "mlflow.db").exists()


def test_nobody_logged_in_is_said_before_anything_starts(work, typed):
    code, _, err = typed("train", "digits", "--set", "log.wandb=online")
    assert code == 2 and "log.wandb: nobody is logged in" in err and err.count("\n") == 1
    assert not (work / "runs").exists()


def test_a_server_that_does_not_answer_is_said_before_anything_starts(work, typed):
    with socket.socket() as free:  # nobody listens there
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, _, err = typed("train", "digits", "--set", f"log.mlflow={uri}")
    assert code == 2 and f"log.mlflow: {uri} cannot be used: " in err and "Traceback" not in err
    assert not (work / "runs").exists()


def test_an_experiment_that_was_deleted_is_refused(tmp_path):
    client = MlflowClient(str(tmp_path / "tracking"))
    client.delete_experiment(client.create_experiment("gone"))
    config = load_config("digits", {"log.mlflow": str(tmp_path / "tracking"), "log.project": "gone"})
    with pytest.raises(UserError, match="its experiment gone is deleted"):
        check_loggers(config)
    check_loggers(config, "a-sweep")
    assert client.get_experiment_by_name("a-sweep") is not None


def test_the_config_says_where_and_holds_no_password(work):
    with pytest.raises(ConfigError, match=r"log: `mlflow` must not hold a password.*MLFLOW_TRACKING_USERNAME"):
        build_config({"log": {"mlflow": "http://me:secret@host:5000"}})
    for given, kept in {
        "mlruns": f"{work}/mlruns", "sqlite:///a.db": f"sqlite:///{work}/a.db", "sqlite:////a.db": "sqlite:////a.db",
        "http://host:5000": "http://host:5000", "databricks": "databricks", "file:/a": "file:/a",
    }.items():  # fmt: skip
        assert resolved(load_config("digits", {"log.mlflow": given})).log.mlflow == kept
    with pytest.raises(UserError, match=r"log\.project"):
        make_space({"log.project": {"choices": ["a", "b"]}}, load_config("digits"))
    with pytest.raises(UserError, match=r"--set log\.wandb: decides nothing of an evaluation"):
        open_target(work, {"log.wandb": "offline"})
    assert not load_config("digits").log.mlflow and load_config("digits").log.wandb == "none"
