"""A job file or a command, checked here with everything that it names before anything is sent to a cluster."""

import os
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from statten.config import SHORT_FORMS, Config, load_config, parse_overrides, recipe_names, with_short_forms
from statten.errors import user_path
from statten.jobs.client import Submission
from statten.jobs.file import RESUMABLE, Runtime, load_job
from statten.space.loading import space_file
from statten.storage.run import check_name
from statten.storage.store import check_uri

# What is checked here, before anything is sent.


def from_file(
    path: Path, folder: Path, overrides: list[str] | None = None, name: str | None = None, storage: str | None = None
) -> Submission:
    """Check a job file with everything that it names, for a cluster.

    Args:
        path: the job file.
        folder: the working directory that will travel.
        overrides: further overrides, as `run` takes them.
        name: of the job and its folder; default: the one in the file, else the file's own.
        storage: default: the one in the file, $STATTEN_STORAGE, or else the cluster's.

    Raises:
        UserError: a sentence for each mistake.
    """
    job = load_job(path)
    more = parse_overrides(overrides or [])
    config = None if job.recipe is None else load_config(job.recipe, {**job.all_overrides, **more})
    name = name or job.name or path.stem
    check_name(name)
    line = ["run", _relative(path, folder), "--resume"]
    if job.command in RESUMABLE:
        line += ["--name", name]
    for override in overrides or []:
        line += ["--set", override]
    files, root = [("job file", path)], {**job.overrides, **more}.get("data.root")
    if config is not None and job.recipe is not None:
        files, root = files + _files(job.recipe, job.space or [], config), config.data.root
    where = _absolute(storage or job.storage or os.environ.get("STATTEN_STORAGE"))
    line += ["--storage", where] if where else []
    line += _absolute_root(root)
    return Submission(name, _entrypoint(line), job.runtime, tuple(files), _stays(where, root))


def from_command(words: list[str], command: str, parameters: dict[str, Any]) -> Submission:
    """Check a plain command for a cluster.

    Args:
        words: the command line, without `statten`.
        command: its first word.
        parameters: what the command line's own parser made of it.
    """
    line, recipe = list(words), parameters.get("recipe")
    short = {name: parameters.get(name) for name in SHORT_FORMS} if "epochs" in parameters else {}
    overrides = with_short_forms(parameters.get("overrides") or [], short)
    files, root = [], overrides.get("data.root")
    stem = str(parameters.get("target") or "job")
    if recipe is not None:
        config = load_config(recipe, overrides)
        files, root, stem = _files(recipe, parameters.get("space") or [], config), config.data.root, recipe
    name = parameters.get("name")
    if name is None:
        name = f"{Path(stem).name.partition('.')[0]}-{command}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        line += ["--name", name] if command in RESUMABLE else []
    check_name(name)
    if command in RESUMABLE and not parameters.get("again"):
        line.append("--resume")
    given = parameters.get("storage")
    where = str(given) if given else os.environ.get("STATTEN_STORAGE")
    if "storage" in parameters and where and not (given and _is_absolute(where)):
        where = _absolute(where)
        line += ["--storage", str(where)]
    if "overrides" in parameters:
        line += _absolute_root(root, short.get("data") is not None)
    return Submission(name, _entrypoint(line), Runtime(), tuple(files), _stays(where, root))


def _files(recipe: str, spaces: list[str], config: Config) -> list[tuple[str, Path]]:
    """The files that a training or sweep reads, its search space checked."""
    files = [] if recipe in recipe_names() else [("recipe", user_path(recipe))]
    if spaces:
        from statten.space.loading import load_space

        paths = [space_file(space) for space in spaces]
        load_space(paths, config)
        files += [("space", path) for path in paths]
    return files


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(path)  # `travelling` has the sentence


def _is_absolute(storage: str) -> bool:
    return storage.startswith("/") or re.match(r"[a-z0-9]+:/", storage) is not None


def _absolute(storage: str | None) -> str | None:
    check_uri(storage or "")
    return storage if storage is None or _is_absolute(storage) else str(user_path(storage).absolute())


def _absolute_root(root: str | None, short: bool = False) -> list[str]:
    """What makes a data folder, relative or in the home folder, one that does not depend on where the job runs.

    An override, or where --data was typed a second one, for the last counts.
    """
    if root is None or (_is_absolute(root) and not Path(root).is_relative_to(user_path("~"))):
        return []
    path = user_path(root).absolute()
    return ["--data", str(path)] if short else ["--set", f"data.root={path}"]


def _entrypoint(line: list[str]) -> str:
    return "python -m statten.cli " + shlex.join(line)


def _stays(*paths: str | None) -> tuple[Path, ...]:
    return tuple(user_path(path) for path in paths if path is not None)
