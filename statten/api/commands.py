"""train, tune, promote and evaluate, as one types them in a notebook.

What a target or a new name means is said here once: a name stands for a folder of the storage, a path for itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from statten.cluster import trainer
from statten.config import Config, load_config
from statten.data import resolved
from statten.errors import user_path
from statten.evaluation import evaluator
from statten.metrics.energy import Conventions
from statten.search import launch, promotion
from statten.search.sweep import Sweep
from statten.space.loading import load_space, make_space, space_file
from statten.space.space import Space
from statten.storage.run import Run, RunFolder, folder_for, locate, storage_folder

Overrides = Iterable[str] | Mapping[str, Any]
"""`{"model.depth": 4}`, or `["model.depth=4"]` as after --set."""
Target = str | Path | RunFolder
"""A run or sweep: its name in the storage, its path, or the object itself."""
SpaceLike = str | Path | Mapping[str, Any] | Space | Sequence[str | Path]


def train(
    config: Config | str | Path, name: str | Path | None = None, *, overrides: Overrides = (), storage: str | Path | None = None
) -> Run:
    """Train one run to its end, on Ray Train workers.

    Args:
        config: a config, a recipe's name or a YAML file.
        name: name of the new run in the storage, or the path of its folder; default: the recipe's name and a number.
        overrides: fields of the config to change.
        storage: folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs.

    Returns:
        The run: `path`, `config`, `metrics()` by epoch, `result`, `best_checkpoint()`.

    Raises:
        UserError: something in the config, the name or the machine; nothing is written then.
        Failed: training did not reach its end.

    Example:
        >>> import statten
        >>> run = statten.train("digits", name="first", overrides={"train.epochs": 1, "model.depth": 1})
        >>> run.state, len(run.metrics())
        ('finished', 1)
    """
    loaded = _config(config, overrides)
    return trainer.train(loaded, _new(name, storage, _stem(config, loaded)))


def tune(
    config: Config | str | Path, space: SpaceLike, name: str | Path | None = None, *, trials: int | None = None,
    overrides: Overrides = (), source: Target | None = None, storage: str | Path | None = None,
) -> Sweep:  # fmt: skip
    """Sweep over a search space, with Ray Tune and Optuna.

    Args:
        config: the base of all trials: a config, a recipe's name or a YAML file.
        space: what varies: a file, a name in search_spaces/, several of them, or lines such as
            `{"model.depth": {"int": [1, 4]}}`.
        name: name of the new sweep in the storage, or the path of its folder; default: the recipe's name and a number.
        trials: number of trials, the same as search.trials.
        overrides: fields of the config to change.
        source: a sweep whose trials that fit are taken over.
        storage: folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs.

    Returns:
        The sweep: `best()`, `front()`, `rows()`, `trial(number)`.

    Raises:
        UserError: something in config, space, name or machine; nothing is written then.
        Failed: no trial reached its end.

    Example:
        >>> import statten
        >>> space = {"model.depth": {"choices": [1, 2]}}
        >>> sweep = statten.tune("digits", space, name="small", trials=2, overrides={"train.epochs": 1})
        >>> sweep.best()["trial"] in (0, 1)
        True
    """
    loaded = resolved(_config(config, overrides))  # once, for all trials
    if trials is not None:
        loaded = loaded.replace({"search.trials": trials})
    known = None if source is None else Sweep.open(_found(source, storage))
    return launch.tune(loaded, _space(space, loaded), _new(name, storage, f"{_stem(config, loaded)}-sweep"), known)


def promote(
    target: Target, overrides: Overrides = (), name: str | Path | None = None, *, trial: int | None = None,
    storage: str | Path | None = None,
) -> Run:  # fmt: skip
    """Train a sweep's best trial, or a run, further in a new run, from its own checkpoint.

    Args:
        target: a sweep or a run: its name in the storage, its path, or the object.
        overrides: fields to change, such as train.epochs or model.timesteps; those that own weights must stay.
        name: name of the new run in the storage, or the path of its folder; default: the target's and "-promoted".
        trial: number of the sweep's trial; default: the best one.
        storage: folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs.

    Returns:
        The new run.

    Raises:
        UserError: there is no such target, or something in overrides, name or machine; nothing is written then.
        Failed: training did not reach its end.

    Example:
        >>> import statten
        >>> run = statten.promote("small", {"train.epochs": 1}, name="longer")
        >>> run.info["origin"]["sweep"]
        'small'
    """
    path = _found(target, storage)
    source, recorded = promotion.source_of(path, trial)
    changes = overrides if isinstance(overrides, Mapping) else list(overrides)
    return promotion.promote(source, dict(changes) if isinstance(changes, Mapping) else changes,
                             _new(name, storage, f"{path.name}-promoted"), recorded)  # fmt: skip


def evaluate(
    target: Target, overrides: Overrides = (), *, data: str | None = None, ema: bool = True, large: bool = False,
    workers: int | None = None, rates: bool = True, exact: bool = False, conventions: Conventions | None = None,
    storage: str | Path | None = None, output: str | Path | None = None,
) -> evaluator.Evaluation:  # fmt: skip
    """Evaluate a run's best epoch, a sweep's best trial, a checkpoint, an export or a published file on the test part.

    Args:
        target: a run or sweep (its name in the storage, its path, or the object), a checkpoint folder, a folder that
            `statten export` wrote, or a published `.pth.tar`.
        overrides: fields to change, such as model.timesteps, which owns no weights.
        data: name of the dataset; empty means the one that it was trained on.
        ema: take averaged weights where there are some.
        large: images at 288 pixels, the centre of 320.
        workers: processes that share the samples; the counts do not depend on their number.
        rates: also measure firing rates and energy.
        exact: compute in float64.
        conventions: what the energy ledger counts how.
        storage: folder or URI of all runs; default: $STATTEN_STORAGE, else ./runs.
        output: where the folder of this evaluation goes instead of into the run.

    Returns:
        A dict: top1, top5 (percent), loss, samples, classes (with precision, recall, f1), energy, firing_rates, folder, ...

    Raises:
        UserError: there is no such target, or its data are not there.

    Example:
        >>> import statten
        >>> report = statten.evaluate("first")
        >>> report["samples"], report["class_names"][0]
        (359, '0')
    """
    return evaluator.evaluate(
        _found(target, storage), overrides, data=data, ema=ema, large=large, workers=workers, rates=rates, exact=exact,
        conventions=conventions, storage=storage_folder(storage), output=None if output is None else user_path(output),
    )  # fmt: skip


def _config(config: Config | str | Path, overrides: Overrides) -> Config:
    return config.replace(overrides) if isinstance(config, Config) else load_config(config, overrides)


def _space(space: SpaceLike, base: Config) -> Space:
    if isinstance(space, Space):
        return space
    if isinstance(space, Mapping):
        return make_space(dict(space), base)
    files = [space] if isinstance(space, str | Path) else space
    return load_space([space_file(str(file)) for file in files], base)


def _stem(config: Config | str | Path, loaded: Config) -> str:
    """What a new folder is called before its number."""
    return loaded.data.name if isinstance(config, Config) else Path(config).stem


def _new(name: str | Path | None, storage: str | Path | None, stem: str) -> Path:
    """The new folder that a name, or a path, means."""
    if isinstance(name, Path) or "/" in (name or ""):
        path = user_path(str(name))
        return folder_for(storage_folder(path.parent), path.name, stem)
    return folder_for(storage_folder(storage), name, stem)


def _found(target: Target, storage: str | Path | None) -> Path:
    return target.path if isinstance(target, RunFolder) else locate(target, storage_folder(storage))
