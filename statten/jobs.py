"""Job files: a command, what it works on, its overrides, resources and surroundings, in one YAML file.

    command: train                      # train, tune, promote or evaluate
    recipe: cifar10_2_512               # train, tune: a recipe's name or a YAML file
    target: my-sweep                    # promote, evaluate: a run or sweep
    space: search_spaces/statten.yaml   # tune; a list is merged
    name: first-try                     # of the new folder; default: numbered
    storage: /shared/runs               # folder of all runs
    overrides: {data.root: /data, train.epochs: 100}
    resources: {workers: 4, device: cuda}            # fields of the config's part `scale`
    runtime:
      packages: ["numpy>=2"]                         # must be installed where it runs
      environment: {OMP_NUM_THREADS: "1"}            # set before the command starts

A job file is one command line, `arguments()`, so it does what the command does and fails with the same sentences.
"""

import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BeforeValidator, Field, model_validator

from statten.config import (
    ConfigError,
    Int,
    Part,
    ScaleConfig,
    UserError,
    load_config,
    nearest,
    read_yaml,
    validate_part,
)


class Runtime(Part):
    """What must be there, or is set, where the job runs."""

    packages: list[str] = Field(default_factory=list)
    """Requirements as pip writes them, such as numpy>=2."""
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
        if problems:
            raise ConfigError(problems)
        return self


class JobFile(Part):
    """One job."""

    command: Literal["train", "tune", "promote", "evaluate"]
    """What is done."""
    recipe: str | None = None
    """Recipe or YAML file of `train` and `tune`."""
    target: str | None = None
    """Run or sweep of `promote` and `evaluate`."""
    space: Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] | None = None
    """Search-space file of `tune`, or several that are merged."""
    trials: Int | None = Field(None, ge=1)
    """Number of trials of `tune`; empty means `search.trials`."""
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

    @model_validator(mode="after")
    def _rules(self) -> "JobFile":
        if problems := list(self._problems()):
            raise ConfigError(problems)
        return self

    def _problems(self) -> Iterator[str]:
        needed = {"train": ["recipe"], "tune": ["recipe", "space"]}.get(self.command, ["target"])
        allowed = [*needed, *{"tune": ["trials", "name"], "evaluate": []}.get(self.command, ["name"])]
        for field in ("recipe", "target", "space", "trials", "name"):
            value = getattr(self, field)
            if field in needed and value is None:
                yield f"`{field}` must be given for command {self.command}"
            elif field not in allowed and value is not None:
                yield f"`{field}` has no place in a job with command {self.command}, but got {value}; leave it out"
        for field in self.resources:
            if field not in ScaleConfig.model_fields:
                yield f"resources.{field}: no such field of the config's part scale; {nearest(field, ScaleConfig.model_fields)}"
            elif f"scale.{field}" in self.overrides:
                yield f"resources.{field} and overrides.scale.{field} are the same field; leave one of them out"

    @property
    def all_overrides(self) -> dict[str, Any]:
        """Overrides with the resources among them."""
        return {**self.overrides, **{f"scale.{field}": value for field, value in self.resources.items()}}

    def arguments(self) -> list[str]:
        """The command line that this job is, without `statten`."""
        subject = self.recipe if self.command in ("train", "tune") else self.target
        line = [self.command, str(subject)]
        for path, value in self.all_overrides.items():
            line += ["--set", f"{path}={json.dumps(value)}"]
        for field in ("space", "trials", "name", "storage"):
            if (value := getattr(self, field)) is not None:
                for one in value if isinstance(value, list) else [value]:
                    line += [f"--{field}", str(one)]
        return line


def load_job(path: Path) -> JobFile:
    """Read and check a job file, its recipe and overrides included; raises UserError with every problem."""
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
            problems.append(f"runtime.packages: needs {requirement}, but {found}; type: pip install '{requirement}'")
    if problems:
        raise UserError(problems)
    os.environ.update(job.runtime.environment)
