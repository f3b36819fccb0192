"""The sweep folder: many runs around one Optuna study, which is the truth about them.

<storage>/<sweep>/
    sweep.json        kind and creation
    config.yaml       the base config
    space.yaml        what is searched
    study.journal     the Optuna study (one line per event; optuna-dashboard opens it while the sweep runs)
    environment.json  versions, commit, hardware
    splits.json       indices of the train, validation and test parts, the same for all trials
    trials/0000/      a run folder per trial
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statten.config import Config, SearchConfig, UserError, dump_config, get_field
from statten.files import new_folder, write_json, write_text
from statten.runs import Run, RunFolder, check_name, exists, now
from statten.search.space import Space, load_space

if TYPE_CHECKING:
    import optuna

# In the table and in summaries a field goes by its short name.
SHORT = {"model.timesteps": "T", "model.block_size": "b", "model.depth": "depth", "model.embed_dim": "dim"}


def short(path: str) -> str:
    """A column title for a dotted path."""
    return SHORT.get(path, path.rpartition(".")[2])


class Sweep(RunFolder):
    """A sweep on disk."""

    marker = "sweep.json"
    noun = "sweep"

    @classmethod
    def create(cls, path: Path, config: Config, space: Space, extra: dict[str, Any] | None = None) -> "Sweep":
        """Make the folder, whole or not at all; raises UserError when the name is taken."""
        check_name(path.name)
        try:
            with new_folder(path) as aside:
                write_json(aside / cls.marker, {"kind": "sweep", "created": now(), "study": path.name}, durable=False)
                write_text(aside / "config.yaml", dump_config(config), durable=False)
                write_text(aside / "space.yaml", space.dump(), durable=False)
                for name, content in (extra or {}).items():
                    write_json(aside / name, content, durable=False)
                (aside / "trials").mkdir()
        except FileExistsError:
            raise exists(path) from None
        return cls(path)

    @property
    def space(self) -> Space:
        """What is searched."""
        return load_space(self.path / "space.yaml", self.config)

    def study(self) -> "optuna.Study":
        """Open the study for reading and writing, without a sampler; the pruner comes from the config."""
        import optuna
        from optuna.study import StudyDirection

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = self._storage()
        search, name = self.config.search, self.info["study"]  # the folder may have been renamed since
        if name not in {study.study_name for study in storage.get_all_studies()}:
            directions = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
            optuna.create_study(storage=storage, study_name=name, direction=directions[search.mode])
        return optuna.load_study(study_name=name, storage=storage, pruner=_pruner(search))

    def _storage(self) -> "optuna.storages.JournalStorage":
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        path = str(self.path / "study.journal")
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))

    def trial(self, number: int) -> Run:
        """The run folder of a trial."""
        return Run(self.path / "trials" / f"{number:04d}")

    def best_trial(self) -> "optuna.trial.FrozenTrial":
        """The best finished trial; raises UserError when there is none."""
        try:
            return self.study().best_trial
        except ValueError:
            raise UserError(
                f"{self.path}: no trial is finished yet; finish the sweep with: statten resume {self.name}"
            ) from None

    def best(self) -> dict[str, Any]:
        """The best trial as a document: trial, config, metrics, checkpoint."""
        found = self.best_trial()
        run = self.trial(found.number)
        result = run.result or {}
        return {
            "sweep": str(self.path),
            "trial": found.number,
            "value": found.value,
            "point": found.user_attrs["point"],
            "config": run.config.model_dump(mode="json"),
            "metrics": result.get("best", {}),
            "checkpoint": str(run.best_checkpoint()),
        }

    def rows(self, study: "optuna.Study | None" = None) -> Iterator[tuple["optuna.trial.FrozenTrial", dict[str, Any]]]:
        """Each trial with its point."""
        for trial in (study or self.study()).get_trials(deepcopy=False):
            yield trial, trial.user_attrs.get("point", {})


def describe(point: dict[str, Any], config: Config | None = None) -> str:
    """T=4 b=2 depth=2 dim=64."""
    return " ".join(f"{short(path)}={_value(value)}" for path, value in (point or _four(config)).items())


def _four(config: Config | None) -> dict[str, Any]:
    return {path: get_field(config, path) for path in SHORT} if config else {}


def _value(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _pruner(search: SearchConfig) -> "optuna.pruners.BasePruner":
    from optuna.pruners import NopPruner, SuccessiveHalvingPruner

    if search.scheduler == "none":
        return NopPruner()
    # Optuna's successive halving is asynchronous, and keeps its rungs in the study, where a resumed sweep finds them.
    return SuccessiveHalvingPruner(min_resource=search.grace_epochs, reduction_factor=search.reduction_factor)
