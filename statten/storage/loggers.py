"""What metrics.jsonl holds, sent to MLflow and to Weights & Biases too, as `log.mlflow` and `log.wandb` say.

A run, trial or repeat of ours is one run there, in the experiment (MLflow) or group (W&B) of its sweep; `loggers.json` in its
folder keeps the ids, so that a resumed run goes on there. What could not be sent is sent later: no logger ends a training.
"""

import importlib.util
import json
import logging
import math
import os
import time
import uuid
from contextlib import suppress
from typing import Any, Protocol

from statten.config import Config
from statten.errors import UserError, first_line
from statten.files import write_json
from statten.records.reading import read
from statten.records.runs import LoggedAs
from statten.storage.run import Run

log = logging.getLogger("statten")

FILE = "loggers.json"
PAUSE = 60.0
"""Seconds after a failure before a logger is tried again, and at least ten times as long as the failure took."""
DECIDES = {"data", "model", "train"}
"""Parts of the config that decide the weights."""
Row = dict[str, float]


class Logger(Protocol):
    """A run elsewhere; every method may raise anything."""

    def open(self, run: Run, classes: list[str], known: str | None) -> str:
        """Begin a run, or go on with the one that is `known`; returns its id."""

    def send(self, row: Row) -> None:
        """Send the metrics of an epoch, where they are not there yet."""

    def close(self, state: str) -> None:
        """End it: the run is finished, stopped (early, by a sweep), failed or unfinished."""


class Loggers:
    """The loggers of a run; what goes wrong with one is a warning, once."""

    def __init__(self, run: Run, config: Config, classes: list[str]):
        self.run, self.classes = run, classes
        self._links = {name: _Link(name, kind(config)) for name, kind in KINDS.items() if _asked(config, name)}
        self._best = -math.inf

    def begin(self) -> None:
        """Open a run everywhere, and send the epochs that are not there yet."""
        self._send(self.run.metrics())

    def epoch(self, row: Row) -> None:
        """Send the metrics of a finished epoch."""
        self._send([row])

    def _send(self, rows: list[Row]) -> None:
        for row in rows:
            self._best = max(self._best, row["val/top1"])
            for link in self._links.values():
                link.waiting.append({**{name: row[name] for name in row if name != "time"}, "best/top1": self._best})
        for link in self._links.values():
            link.work(self.run, self.classes)

    def close(self, failed: bool) -> None:
        """Send what waits, and end the runs as this one ended."""
        state = "finished"
        if failed:
            state = "failed"
            with suppress(OSError):
                state = self.run.state
        for link in self._links.values():
            link.again = 0.0
            link.work(self.run, self.classes, state)


class _Link:
    """A logger, and the rows that it has not been sent."""

    def __init__(self, name: str, logger: Logger):
        self.name, self.logger, self.waiting, self.again = name, logger, list[Row](), 0.0
        self._open = self._warned = False

    def work(self, run: Run, classes: list[str], state: str | None = None) -> None:
        """Send what waits, and with a `state` end the run there."""
        began = time.monotonic()
        if began < self.again:
            return
        try:
            if not self._open:
                ids = read(run.path / FILE, LoggedAs) or {}
                known = self.logger.open(run, classes, ids.get(self.name))
                write_json(run.path / FILE, {**ids, self.name: known})
                self._open = True
            while self.waiting:
                self.logger.send(self.waiting[0])
                del self.waiting[0]
            if state:
                self.logger.close(state)
        except Exception as error:
            self.again = time.monotonic() + max(PAUSE, 10 * (time.monotonic() - began))
            if not self._warned:
                log.warning(
                    "log.%s: %s; training goes on, and what is missing there is sent later", self.name, first_line(error)
                )
                self._warned = True


class MlflowLogger:
    """A run of MLflow, behind its tracking URI."""

    def __init__(self, config: Config):
        self.config, self._last = config, 0

    def open(self, run: Run, classes: list[str], known: str | None) -> str:
        from mlflow.entities import Param

        self._client = _mlflow(self.config)
        group, name = _named(run)
        values = {path: str(value) for path, value in hyperparameters(self.config).items()}
        tags = {
            "folder": run.where,
            "mlflow.source.name": "statten",
            "mlflow.source.type": "LOCAL",
            **_listed("classes", classes),
        }
        tags |= {"mlflow.user": user} if (user := os.environ.get("USER")) else {}
        if known is None:
            experiment = _experiment(self._client, group or self.config.log.project)
            known = self._client.create_run(experiment, run_name=name).info.run_id
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known
        there = self._client.get_run(known).data
        # A parameter of MLflow's never changes; what a resumed run does otherwise is a tag.
        tags |= {f"resumed.{path}": value for path, value in values.items() if there.params.get(path, value) != value}
        for key, value in tags.items():
            self._client.set_tag(known, key, value)
        new = [Param(path, value) for path, value in values.items() if path not in there.params]
        for first in range(0, len(new), 100):  # what a request may hold
            self._client.log_batch(known, params=new[first : first + 100])
        history = self._client.get_metric_history(known, "epoch") if "epoch" in there.metrics else []
        self._last = max((metric.step for metric in history), default=0)
        return known

    def send(self, row: Row) -> None:
        from mlflow.entities import Metric

        epoch, now = int(row["epoch"]), int(1000 * time.time())
        if epoch > self._last:
            self._client.log_batch(self._id, metrics=[Metric(name, value, now, epoch) for name, value in row.items()])
            self._last = epoch

    def close(self, state: str) -> None:
        self._client.set_tag(self._id, "state", state)
        self._client.set_terminated(self._id, {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))


class WandbLogger:
    """A run of Weights & Biases; offline it lies in the run's folder, for `wandb sync`."""

    def __init__(self, config: Config):
        self.config = config

    def open(self, run: Run, classes: list[str], known: str | None) -> str:
        wandb = _wandb()
        group, name = _named(run)
        known, parts = known or uuid.uuid4().hex[:12], self.config.model_dump(mode="json", include=DECIDES)
        settings = wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, init_timeout=30, finish_timeout=60
        )  # fmt: skip
        self._run = wandb.init(
            project=self.config.log.project, group=group, name=name, id=known, resume="allow", mode=self.config.log.wandb,
            config={**parts, "classes": classes, "folder": run.where}, allow_val_change=True,
            dir=run.path, settings=settings, reinit="create_new",
        )  # fmt: skip
        return known

    def send(self, row: Row) -> None:
        if int(row["epoch"]) >= self._run.starting_step:
            self._run.log(dict(row), step=int(row["epoch"]))

    def close(self, state: str) -> None:
        self._run.summary["state"] = state
        self._run.finish(exit_code=0 if state in ("finished", "stopped") else 1)


KINDS: dict[str, Any] = {"mlflow": MlflowLogger, "wandb": WandbLogger}
"""By their fields of the config's part log, which are also the names of their packages."""


def check_loggers(config: Config, group: str | None = None, starts: bool = True) -> None:
    """Raise UserError unless the packages that `log` needs are here and what they write to answers.

    Args:
        config: of the run.
        group: name of the sweep, whose experiment of MLflow's is made once for all trials.
        starts: whether the run is about to start; else no file is made.
    """
    problems = []
    for name in KINDS:
        if _asked(config, name) and importlib.util.find_spec(name) is None:
            problems.append(f"log.{name}: the package {name} is not installed; install it with: pip install 'statten[log]'")
    if problems:
        raise UserError(problems)
    uri = config.log.mlflow
    if uri and (starts or uri.startswith("http")):
        try:
            client = _mlflow(config)
            if starts:
                _experiment(client, group or config.log.project)
            else:
                client.search_experiments(max_results=1)
        except Exception as error:  # MLflow's own, and those of a database
            raise UserError(f"log.mlflow: {uri} cannot be used: {first_line(error)}") from None
    if config.log.wandb == "online":
        _check_login()


def _check_login() -> None:
    wandb = _wandb()
    if wandb.run is not None:  # a notebook's own, which a login would refuse and a teardown end
        return
    try:
        there = wandb.login(prompt=False)
    except Exception as error:
        raise UserError(f"log.wandb: {first_line(error)}; log.wandb=offline keeps the run for `wandb sync`") from None
    finally:
        wandb.teardown()
    if not there:
        raise UserError(
            "log.wandb: nobody is logged in; type `wandb login`, set $WANDB_API_KEY, or take log.wandb=offline and `wandb sync`"
        )


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """What decides the weights, by dotted path, in values that trackers show; empty fields are left out."""
    flat = {}
    for part, fields in config.model_dump(mode="json", include=DECIDES).items():
        for name, value in fields.items():
            if value is not None:
                flat[f"{part}.{name}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def _asked(config: Config, name: str) -> bool:
    return getattr(config.log, name) not in (None, "none")


def _named(run: Run) -> tuple[str | None, str]:
    """The sweep that a run belongs to or comes from, and what it is called."""
    sweep = run.origin.get("sweep")
    return sweep, run.name if sweep is None or "checkpoint" in run.origin else f"{sweep}-{run.name}"


def _mlflow(config: Config) -> Any:
    """MLflow's client; it neither waits long for a server that is away, nor tells its makers of us."""
    for name, value in (("HTTP_REQUEST_MAX_RETRIES", "1"), ("HTTP_REQUEST_TIMEOUT", "10"), ("DISABLE_TELEMETRY", "true")):
        os.environ.setdefault(f"MLFLOW_{name}", value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(config.log.mlflow)


def _wandb() -> Any:
    """The package of W&B; it does not tell its makers of its errors."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _experiment(client: Any, name: str) -> str:
    """Id of an experiment of MLflow's, made where it is new."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name)
    except MlflowException:
        if (there := client.get_experiment_by_name(name)) is None:
            raise
        if there.lifecycle_stage != "active":
            raise ValueError(f"its experiment {name} is deleted; restore it, or choose another log.project") from None
        return there.experiment_id


def _listed(name: str, words: list[str]) -> dict[str, str]:
    """Words as tags of MLflow's, a hundred in each, for a tag may not be long."""
    firsts = range(0, len(words), 100)
    return {name if first == 0 else f"{name}.{first}": json.dumps(words[first : first + 100]) for first in firsts}
