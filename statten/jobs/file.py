"""Job files: a command, what it works on, its overrides, resources and surroundings, in one YAML file.

    command: train                      # train, tune, supernet, promote or evaluate
    recipe: cifar10_2_512               # train, tune, supernet: a recipe's name or a YAML file
    target: my-sweep                    # promote, evaluate: a run, sweep or supernet
    space: search_spaces/statten.yaml   # tune, supernet; a list is merged
    from: other-sweep                   # tune: whose trials are taken over
    grid: true                          # promote: with the best (timesteps, block size); or front: true, or trial: 3
    large: true                         # evaluate: images at 288 pixels
    name: first-try                     # of the new folder; default: numbered
    storage: /shared/runs               # folder of all runs
    overrides: {data.root: /data, train.epochs: 100}
    resources: {workers: 4, device: cuda}            # fields of the config's part `scale`
    runtime:
      packages: ["numpy>=2"]                         # must be installed where it runs
      environment: {OMP_NUM_THREADS: "1"}            # set before the command starts
    retries: 2                          # how often it is started again after a failure that is not the user's mistake

A job file is one command line, `arguments()`, so it does what the command does and fails with the same sentences. With
`--resume` a run or sweep of the same name and config goes on where it was: so a job that was lost is simply started again.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BeforeValidator, Field, model_validator

from statten.config import Int, Part, ScaleConfig, load_config, read_yaml, validate_part
from statten.errors import ConfigError, UserError, in_shell, nearest, user_path

SUBMITTED = "STATTEN_SUBMISSION"  # set in the environment of a submitted job, to its name
RESUMABLE = ("train", "tune", "supernet", "promote")
FIELDS = {
    "train": (("recipe",), ("name",)),
    "tune": (("recipe", "space"), ("source", "trials", "name")),
    "supernet": (("recipe", "space"), ("points", "name")),
    "promote": (("target",), ("trial", "front", "grid", "name")),
    "evaluate": (("target",), ("large",)),
}
"""What a job of each command must say, and may."""


class Runtime(Part):
    """What must be there, or is set, where the job runs."""

    packages: list[str] = Field(default_factory=list)
    """Requirements as pip writes them, such as numpy>=2."""
    install: bool = False
    """On a cluster, let pip install the packages for this job alone; its machines must reach an index."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables."""

    @model_validator(mode="after")
    def _rules(self) -> "Runtime":
        problems = []
        for package in self.packages:
            try:
                Requirement(package)
            except InvalidRequirement:
                problems.append(f"`packages` must be requirements such as numpy>=2, but got {package!r}")
        for name in self.environment:
            if name.startswith("RAY_AUTH_"):
                problems.append(f"`environment` is shown to everyone who sees the job, so {name} has no place in it")
        if problems:
            raise ConfigError(problems)
        return self


class JobFile(Part):
    """One job."""

    command: Literal["train", "tune", "supernet", "promote", "evaluate"]
    """What is done."""
    recipe: str | None = None
    """Recipe or YAML file of `train`, `tune` and `supernet`."""
    target: str | None = None
    """Run or sweep of `promote` and `evaluate`, or supernet of `promote`."""
    space: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] | None = None
    """Search-space file of `tune` and `supernet`, or several that are merged."""
    trials: Int | None = Field(None, ge=1)
    """Number of trials of `tune`; empty means `search.trials`."""
    points: Int | None = Field(None, ge=1)
    """Points that `supernet` evaluates; empty means all of at most 5,000, else 2,000."""
    source: str | None = Field(None, alias="from")
    """Sweep whose trials `tune` takes over, where they fit."""
    trial: Int | None = Field(None, ge=0)
    """Trial that `promote` trains on, or point of a supernet; empty means the best."""
    front: bool = False
    """Whether `promote` trains on every trial, or point, of the Pareto front."""
    grid: bool = False
    """Whether `promote` goes on with the (timesteps, block size) that is best for the weights."""
    large: bool = False
    """Whether `evaluate` takes images at 288 pixels, the centre of 320."""
    name: str | None = None
    """Name of the new folder; empty means the recipe's name and a number."""
    storage: str | None = None
    """Folder of all runs; empty means $STATTEN_STORAGE, else ./runs."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the config by dotted path, as with --set."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """Fields of the config's part `scale`: workers, device, cpus_per_worker, ..."""
    runtime: Runtime = Field(default_factory=Runtime)
    """Packages and environment."""
    retries: Int = Field(0, ge=0, le=100)
    """How often the job is started again after a failure, where it was; the user's mistakes (exit code 2) are not repeated."""

    @model_validator(mode="after")
    def _rules(self) -> "JobFile":
        if problems := list(self._problems()):
            raise ConfigError(problems)
        return self

    def _problems(self) -> Iterator[str]:
        needed, optional = FIELDS[self.command]
        for field in dict.fromkeys(field for fields in FIELDS.values() for part in fields for field in part):
            value, name = getattr(self, field), JobFile.model_fields[field].alias or field
            if field in needed and value is None:
                yield f"`{name}` must be given for command {self.command}"
            elif field not in (*needed, *optional) and value is not None and value is not False:
                yield f"`{name}` has no place in a job with command {self.command}, but got {value}; leave it out"
        if self.front and (self.grid or self.trial is not None):
            yield "`front` takes every trial of the front as it is, so `trial` and `grid` have no place beside it"
        for field in self.resources:
            if field not in ScaleConfig.model_fields:
                yield f"resources.{field}: no such field of the config's part scale; {nearest(field, ScaleConfig.model_fields)}"
            elif f"scale.{field}" in self.overrides:
                yield f"resources.{field} and overrides.scale.{field} are the same field; leave one of them out"
        if self.retries and self.command in RESUMABLE and self.name is None:
            yield f"`name` must be given with retries {self.retries}: by its name the {self.command} is found again"

    @property
    def all_overrides(self) -> dict[str, Any]:
        """Overrides with the resources among them."""
        return {**self.overrides, **{f"scale.{field}": value for field, value in self.resources.items()}}

    def arguments(self) -> list[str]:
        """The command line that this job is, without `statten`."""
        subject = self.target if self.recipe is None else self.recipe
        line = [self.command, str(subject)]
        for path, value in self.all_overrides.items():
            line += ["--set", f"{path}={json.dumps(value, ensure_ascii=False)}"]
        for field in (*FIELDS[self.command][1], "space", "storage"):
            value, option = getattr(self, field), f"--{JobFile.model_fields[field].alias or field}"
            if value is True:
                line.append(option)
            elif value is not None and value is not False:
                for one in value if isinstance(value, list) else [value]:
                    line += [option, str(one)]
        return line


def load_job(path: Path) -> JobFile:
    """Read and check a job file, its recipe and overrides included; raises UserError with every problem."""
    path = user_path(path)
    job, problems, _ = validate_part(JobFile, read_yaml(path, JobFile))
    if job is not None and job.recipe is not None:
        try:
            load_config(job.recipe, job.all_overrides)
        except ConfigError as error:
            problems += [problem.removeprefix("--set ") for problem in error.problems]
    if job is None or problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return job


def enter(job: JobFile) -> None:
    """Make this process one that a job can run in: its packages are there, its environment is set."""
    problems = []
    for requirement in map(Requirement, job.runtime.packages):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or version not in requirement.specifier:
            found = f"{version} is installed" if version else "it is not installed"
            problems.append(f"runtime.packages: needs {requirement}, but {found}; type: pip install {in_shell(requirement)}")
    if problems:
        raise UserError(problems)
    os.environ.update(job.runtime.environment)


# Again, after a failure.


STOPPED = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
"""Exit codes of a command that was stopped from outside."""
STOP_SECONDS = 30
"""How long a stopped command may take to end."""


def run_with_retries(job: JobFile, line: list[str]) -> int:
    """Run a job's command line in a process of its own, again after a failure, and return the last exit code.

    The first start may be told to resume by `line` itself; every later one does. Not worth another start are the user's
    mistakes (2) and a stop from outside.
    """
    again = ["--resume"] if job.command in RESUMABLE and "--resume" not in line else []
    for failures in range(job.retries + 1):
        code = _child([sys.executable, "-m", "statten.cli", *line, *(again if failures else [])])
        if code in (0, 2, *STOPPED) or failures == job.retries:
            return code
        left = job.retries - failures
        print(f"statten: the job ended with exit code {code}; it is started again, at most {left} times", file=sys.stderr)
    raise AssertionError("the last round returns")


def _child(command: list[str]) -> int:
    """Run a command to its end; whoever stops this process stops it too. A signal n counts as exit code 128 + n."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt as error:
            number = next(iter(error.args), signal.SIGINT)  # see cli/stopping.py
            if number != signal.SIGINT:  # a terminal sends that to both
                process.send_signal(number)
            try:
                code = process.wait(STOP_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.terminate()
                code = process.wait()
    return code if code >= 0 else 128 - code


def check_submitted_storage(storage: Path) -> None:
    """Raise UserError where a submitted job would write into a folder that goes with it."""
    folders = "name a folder that all machines of the cluster see: statten submit ... --storage /shared/runs"
    if not storage.is_absolute():
        raise UserError(f"--storage: the cluster sets no $STATTEN_STORAGE, and {storage} would be lost with the job; {folders}")
    if not storage.is_dir() and not storage.parent.is_dir():
        raise UserError(f"--storage: there is no {storage.parent} on the cluster to make {storage.name} in; {folders}")
