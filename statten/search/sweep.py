"""The sweep folder: many runs around one Optuna study, which is the truth about them.

<storage>/<sweep>/
    sweep.json        kind and creation
    config.yaml       the base config
    space.yaml        what is searched
    study.journal     the Optuna study (one line per event; optuna-dashboard opens it while the sweep runs)
    environment.json  versions, commit, hardware
    splits.json       indices of the train, validation and test parts, the same for all trials
    trials/0000/      a run folder per trial
    sources.json      run folders of trials that were taken over from another sweep
    repeats/          run folders of the best trials under other seeds
"""

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statten.config import Config, constraint, get_field
from statten.errors import UserError, in_shell, user_path
from statten.files import cut_torn_line, write_text
from statten.records.reading import read
from statten.records.runs import Sources
from statten.search.study import JOURNAL, MissingStudy, open_study, with_absolute_database
from statten.space.loading import load_space
from statten.space.space import Space
from statten.storage.run import Run, RunFolder
from statten.storage.supernet import Supernet

if TYPE_CHECKING:
    import optuna

# In the table and in summaries a field goes by its short name.
SHORT = {"model.timesteps": "T", "model.block_size": "b", "model.depth": "depth", "model.embed_dim": "dim"}


def short(path: str) -> str:
    """A column title for a dotted path."""
    return SHORT.get(path, path.rpartition(".")[2])


@dataclass(frozen=True)
class Repeats:
    """A finalist under all its seeds."""

    trial: int
    seeds: list[int]
    values: list[float]
    """First objective under each seed; the sweep's own comes first."""
    mean: float
    stdev: float


class Sweep(RunFolder):
    """A sweep on disk."""

    marker = "sweep.json"
    noun = "sweep"

    @classmethod
    def create(cls, path: Path, config: Config, space: Space, extra: dict[str, Any] | None = None) -> "Sweep":
        """Make the folder and its study, whole or not at all; raises UserError when the name is taken, there or here."""
        config = with_absolute_database(config)

        def add(aside: Path) -> None:
            write_text(aside / "space.yaml", space.dump(), durable=False)
            (aside / "trials").mkdir()
            study = open_study(config.search, path.name, aside / JOURNAL, create=True)
            if study.get_trials(deepcopy=False):
                raise UserError(f"search.storage: {config.search.storage} holds a study called {path.name} already, of another "
                                f"sweep; choose another --name")  # fmt: skip

        return cls._make(path, config, {"study": path.name}, extra, add)

    @cached_property
    def space(self) -> Space:
        """What is searched; read once."""
        return load_space(self.path / "space.yaml", self.config)

    @property
    def trials(self) -> int:
        """Number of trials that it was asked for."""
        return self.config.search.trials or 16  # `tune` writes the number down

    @property
    def ended(self) -> bool:
        """Whether everything that it was asked for is done; a small space may have fewer trials than were asked for."""
        return self.study().user_attrs.get("ended") == self.trials

    def study(self, create: bool = False) -> "optuna.Study":
        """Open the study for reading and writing; the searcher gives it a sampler, and stopping is ours (stopping.py).

        Args:
            create: make an empty one where it is lost, for a writer that brings back its trials; see rebuild.py.

        Raises:
            UserError: there is no study, it is damaged, was made for other objectives, or its database cannot be reached.
        """
        try:
            return open_study(self.config.search, str(self.info.get("study", self.name)), self.path / JOURNAL, create)
        except MissingStudy as error:
            raise UserError(
                f"{self.path}: {error}; make it again from the trials' folders: statten resume {self.typed}"
            ) from None

    @contextmanager
    def writing(self) -> Iterator[str]:
        """As a run's; and mend the study's journal, whose last line may be cut off by a crash or a full disk."""
        with super().writing() as attempt:
            cut_torn_line(self.path / JOURNAL)
            yield attempt

    def trial(self, number: int) -> Run:
        """The run folder of a trial."""
        path = self.path / "trials" / f"{number:04d}"
        if not path.exists():  # taken over from another sweep: its folder stays there
            path = self.sources().get(number, path)
        return Run(path)

    def sources(self) -> dict[int, Path]:
        """Folders of trials that were taken over from another sweep."""
        content = read(self.path / "sources.json", Sources, advice="it must map trials to folders, but is damaged") or {}
        return {int(number): user_path(path) for number, path in content.items()}

    def folders(self) -> dict[int, Run]:
        """All trials that have a folder, by number, here or in another sweep."""
        here = {int(path.name): Run(path) for path in (self.path / "trials").glob("*") if path.name.isdecimal()}
        return {**{number: Run(path) for number, path in self.sources().items()}, **here}

    def disagreement(self, trial: "optuna.trial.FrozenTrial") -> str | None:
        """How a trial of the study and the folder of its number contradict each other; None where they do not."""
        run, point = self.trial(trial.number), trial.user_attrs.get("point")
        if trial.state.is_finished() and point is None:
            return f"trial {trial.number} was not run, but has a folder"
        there = json.loads(json.dumps(self.space.point_of(run.config)))
        point = point or there  # the driver was killed before it was written down
        if differ := [path for path in {**there, **point} if there.get(path) != point.get(path)]:
            shown = ", ".join(f"{path} ({point.get(path)}, and {there.get(path)} in the folder)" for path in differ)
            return f"trial {trial.number} differs in {shown}"
        return None

    def behind(self, trial: "optuna.trial.FrozenTrial") -> str | None:
        """A sentence where a trial is finished in the study, and its folder is older; what the study says is right."""
        run = self.trial(trial.number)
        if trial.state.name != "COMPLETE" or not run.path.exists() or run.ended:
            return None
        return f"trial {trial.number} is finished, but its folder is older; finish that with: {run.resume_command}"

    def contradiction(self, problems: list[str]) -> UserError:
        """The error for a study that contradicts the folders, with the way out."""
        journal, database = self.path / JOURNAL, self.config.search.storage
        aside = (
            f"name another database as search.storage in {self.path / 'config.yaml'}" if database
            else f"set it aside: mv {in_shell(journal)} {in_shell(f'{journal}.old')}"
        )  # fmt: skip
        return UserError(
            f"{self.path}: its study contradicts the trials' folders: {'; '.join(problems)}. To make the study again from the "
            f"folders, {aside}, then: statten resume {self.typed}"
        )

    def checked(self, trial: "optuna.trial.FrozenTrial") -> Run:
        """The run folder of a trial, after a look whether it is the one that the study means; raises UserError if not."""
        run = self.trial(trial.number)
        if run.path.exists() and (problem := self.disagreement(trial)):
            raise self.contradiction([problem])
        if older := self.behind(trial):
            raise UserError(f"{self.path}: {older}")
        return run

    def facts(self) -> list[tuple[str, object]]:
        """What a notebook shows of it."""
        rows = list(self.rows())
        found: list[tuple[str, object]] = [("trials", f"{len(rows)} of {self.trials}")]
        with suppress(UserError):  # no trial is finished yet, or keeps the constraints
            best = self.best_trial()
            values = zip(self.config.search.directions, best.values, strict=True)
            found += [
                ("best trial", f"{best.number}: {describe(best.user_attrs['point'])}"),
                *((n, f"{v:.4g}") for n, v in values),
            ]
        return [*super().facts(), *found]

    def front(self) -> list["optuna.trial.FrozenTrial"]:
        """The Pareto front among finished trials that keep the constraints, by the first objective; of one objective the best.

        Raises UserError when no trial is finished, or none keeps the constraints.
        """
        study = self.study()
        first = study.directions[0].name
        if len(study.directions) > 1:
            found = sorted(study.best_trials, key=lambda t: t.values[0], reverse=first == "MAXIMIZE")
        else:
            done = self.ranked(study)
            means = {number: repeats.mean for number, repeats in self.repeats().items()}
            means = means or {t.number: t.values[0] for t in done}  # the winner is sought among those that were repeated
            pick = max if first == "MAXIMIZE" else min
            found = [pick((t for t in done if t.number in means), key=lambda t: means[t.number])] if done else []
        if not found:
            ended = any(t.state.name == "COMPLETE" for t in study.get_trials(deepcopy=False))
            kept = f"no finished trial keeps {' and '.join(self.config.search.constraints)}"
            raise UserError(
                f"{self.path}: {kept if ended else 'no trial is finished yet'}; go on with: statten "
                + (f"extend {in_shell(self.name)} --trials 8" if ended else f"resume {in_shell(self.name)}")
            )
        return found

    def ranked(self, study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
        """Finished trials that keep the constraints, the best in the first objective first."""
        done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and feasible(t)]
        return sorted(done, key=lambda t: t.values[0], reverse=study.directions[0].name == "MAXIMIZE")

    def best_trial(self) -> "optuna.trial.FrozenTrial":
        """The best finished trial, on a front the one that is best in the first objective; raises like `front`."""
        return self.front()[0]

    def best(self, number: int | None = None) -> dict[str, Any]:
        """The best trial (or the one of a number) as a document: trial, config, metrics, checkpoint, and the front if any."""
        front = self.front()
        found = front[0] if number is None else next(t for t, _ in self.rows() if t.number == number)
        run = self.checked(found)
        document = {
            "sweep": str(self.path),
            "trial": found.number,
            "value": found.values[0],
            "values": dict(zip(self.config.search.directions, found.values, strict=True)),
            "point": found.user_attrs["point"],
            "config": run.config.model_dump(mode="json"),
            "metrics": run.best if run.best.keys() >= {"epoch", "val/top1", "val/loss"} else run.judged(),
            "checkpoint": str(run.best_checkpoint()),
        }
        if len(found.values) > 1:
            document["front"] = [
                {"trial": t.number, **dict(zip(self.config.search.directions, t.values, strict=True)),
                 "point": t.user_attrs["point"]}
                for t in front
            ]  # fmt: skip
        if repeats := self.repeats():
            document["repeats"] = [vars(r) for r in repeats.values()]
        return document

    def repeats(self) -> dict[int, Repeats]:
        """Finalists of which every seed is trained, by trial number; see repeats.py."""
        search = self.config.search
        runs: dict[int, list[Run]] = {}
        for path in sorted((self.path / "repeats").glob("[0-9][0-9][0-9][0-9]*-seed-*[0-9]")):
            runs.setdefault(int(path.name.split("-")[0]), []).append(Run(path))
        done = {}
        for number, others in runs.items():
            if len(others) == search.repeats - 1 and all(run.state == "finished" for run in others):
                seeded = [self.trial(number), *others]
                values = [run.best[search.metric] for run in seeded if search.metric in run.best]
                if len(values) < len(seeded):
                    continue
                seeds = [run.config.train.seed for run in seeded]
                done[number] = Repeats(number, seeds, values, statistics.mean(values), statistics.stdev(values))
        return done

    def rows(self, study: "optuna.Study | None" = None) -> Iterator[tuple["optuna.trial.FrozenTrial", dict[str, Any]]]:
        """Each trial that was run, with its point."""
        for trial in (study or self.study()).get_trials(deepcopy=False):
            if is_run(trial) and trial.state.name != "WAITING":
                yield trial, trial.user_attrs.get("point", {})


def open_folder(path: Path) -> Run | Sweep | None:
    """The run, supernet or sweep in a folder; None where it holds none."""
    return next((kind(path) for kind in (Sweep, Supernet, Run) if (path / kind.marker).is_file()), None)


def is_run(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial was, or will be, trained: others are in the study to say that a configuration was not tried again."""
    return not {"duplicate_of", "put_off", "too_large", "lost"} & set(trial.user_attrs)


def feasible(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial keeps the constraints."""
    return all(violation <= 0 for violation in trial.constraints.values())


def describe(point: dict[str, Any], config: Config | None = None) -> str:
    """T=4 b=2 depth=2 dim=64."""
    return " ".join(f"{short(path)}={_value(value)}" for path, value in (point or _four(config)).items())


def _four(config: Config | None) -> dict[str, Any]:
    return {path: get_field(config, path) for path in SHORT} if config else {}


def _value(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def violation(text: str, metrics: dict[str, float]) -> float:
    """How far a constraint is missed: above 0 when it is."""
    metric, relation, bound = constraint(text)
    value = metrics.get(metric, math.inf)
    return value - bound if relation == "<=" else bound - value if metric in metrics else math.inf
