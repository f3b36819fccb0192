"""Where a sweep's Optuna study is kept: a journal in the sweep's folder, or a database; opened, made, and found damaged."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from statten.config import Config, SearchConfig, with_overrides
from statten.errors import UserError, first_line, shown
from statten.records.reading import check
from statten.records.runs import StudyAttributes, Trial

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"


class MissingStudy(UserError):
    """A sweep's study is not where it should be."""


def open_study(search: SearchConfig, name: str, journal: Path, create: bool) -> "optuna.Study":
    """Open the study of a name.

    Args:
        search: its objectives, and the database that it is in, if any.
        name: its name there.
        journal: the file that it is in, where there is no database.
        create: make it where it is not there.

    Raises:
        UserError: it is not there (MissingStudy) or damaged, was made for other objectives, or its database cannot be reached.
    """
    import optuna
    from optuna.study import StudyDirection

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    wanted = [StudyDirection.MAXIMIZE if d == "max" else StudyDirection.MINIMIZE for d in search.directions.values()]
    place = search.storage or str(journal)
    try:
        storage = _open_storage(search.storage, journal, create)
        known = {study.study_name for study in storage.get_all_studies()}
        if name not in known and create:
            with quietly():  # names of the metrics
                optuna.create_study(storage=storage, study_name=name, directions=wanted).set_metric_names([*search.directions])
        elif name not in known:
            raise MissingStudy(f"{place} holds no study {name}")
        study = optuna.load_study(study_name=name, storage=storage, pruner=optuna.pruners.NopPruner())
        for trial in study.get_trials(deepcopy=False):
            _check_trial(trial, len(study.directions), place)
        check(study.user_attrs, StudyAttributes, place)
        directions, names = study.directions, check(study.metric_names or ["?"], list[str], f"{place}: metric names")
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's drivers, and the reader of a damaged journal, raise what they like
        if search.storage is not None:
            raise UserError(f"search.storage: {place} cannot be opened: {first_line(error)}") from None
        again = "rename the file, and `statten resume` makes the study again from the trials' folders"
        raise UserError(f"{place}: cannot be read: {_damage(journal, error)}; {again}") from None
    if directions != wanted or names != [*search.directions]:
        there = ", ".join(f"{metric} {d.name.lower()}" for metric, d in zip(names, directions, strict=False))
        raise UserError(f"{place}: the study {name} was made for other objectives ({there}) than search.objectives "
                        f"({', '.join(search.objectives)}); set them back")  # fmt: skip
    return study


def _check_trial(trial: "optuna.trial.FrozenTrial", objectives: int, place: str) -> None:
    """Raise UserError where a trial is not what this package writes down: Optuna reads what it finds."""
    where = f"{place}: trial {trial.number}"
    found = check({field: getattr(trial, field) for field in Trial.__annotations__}, Trial, where)
    values = found["values"]
    if trial.state.name == "COMPLETE" and (values is None or len(values) != objectives):
        raise UserError(f"{where}: must have {objectives} values, but got {shown(values)}; it is damaged")


def _open_storage(url: str | None, journal: Path, create: bool) -> "optuna.storages.BaseStorage":
    """The journal, or the database; neither is made for one who only reads."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if url is None:
        if not create and not journal.is_file():
            raise MissingStudy(f"{journal.name} is not there")
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
    file = _database_file(url)
    if file is not None and not create and not file.is_file():
        raise MissingStudy(f"the database {file} is not there (search.storage)")
    return RDBStorage(url, skip_table_creation=not create)


def _database_file(url: str) -> Path | None:
    """The file that a SQLite URL names; None for a server and for a database in memory."""
    scheme, _, path = url.partition(":///")
    return (
        Path(path.partition("?")[0]).expanduser()
        if scheme.startswith("sqlite") and not path.startswith((":memory:", "file:")) and path
        else None
    )


def with_absolute_database(config: Config) -> Config:
    """The config with the file of a SQLite database as an absolute path: it means the same from every folder."""
    url = config.search.storage
    if url is None or (file := _database_file(url)) is None:
        return config
    scheme, _, path = url.partition(":///")
    query = path.partition("?")
    return with_overrides(config, {"search.storage": f"{scheme}:///{file.absolute()}{query[1]}{query[2]}"})


def _damage(journal: Path, error: Exception) -> str:
    """What is wrong with a journal."""
    if isinstance(error, OSError):
        return first_line(error)
    for number, line in enumerate(journal.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return f"line {number} is damaged"
    return "its lines contradict each other"


@contextmanager
def quietly() -> Iterator[None]:
    """Without Optuna's warnings that a feature is experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
