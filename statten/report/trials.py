"""A sweep's trials as plain values: what is drawn, and what goes to trials.csv and trials.json."""

import csv
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from statten.config import load_config, recipe_names
from statten.display import numeral, state_word
from statten.display.units import EnergyUnit
from statten.errors import UserError
from statten.metrics.labels import label
from statten.search.sweep import Sweep, is_run, short
from statten.storage.run import Run, best_row, written

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

NOT_RUN = {
    "duplicate_of": "the same configuration as another trial",
    "too_large": "too large for the memory",
    "put_off": "fewer timesteps went first",
    "lost": "not in the study any more, and without a folder",
}
"""Why a trial was proposed and not trained, by its user attribute."""
ENERGY = "energy_uj"
"""The metric of which a page chooses the unit."""
STATES = {state: state_word(state) for state in ("complete", "pruned", "fail", "running", "unfinished", "waiting")}
"""States of a trial as a person reads them."""


@dataclass(frozen=True)
class Objective:
    """One of the values that a sweep looks for."""

    name: str
    """The metric, such as val/top1."""
    maximize: bool
    """Whether more is better."""
    unit: EnergyUnit | None = None
    """What its values are in, of an energy that is not in the metric's own unit."""

    @property
    def label(self) -> str:
        """What an axis or a column calls it, with its unit."""
        return f"energy per sample ({self.unit.name})" if self.unit else label(self.name)


PAUSE = 5.0
"""Seconds between two epochs, and a tenth of the later one, from which on they count as interrupted."""


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    state: str
    """complete, pruned, fail, running (unfinished where no process trains it) or waiting."""
    reason: str | None
    """Why it was stopped or failed."""
    point: dict[str, Any]
    """Its fields, {dotted path: value}."""
    values: list[float] | None
    """Its objectives; of a stopped trial the last value of the first, where there is one."""
    intermediate: dict[int, float]
    """The first objective after each epoch."""
    constraints: dict[str, float]
    """Above 0 where one is broken."""
    distributions: dict[str, "BaseDistribution"]
    """What its fields were drawn from, by Optuna's own names."""
    run: Run
    """Its folder."""
    taken_over: bool
    """Whether another sweep trained it."""
    began: datetime | None
    ended: datetime | None
    epochs: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each epoch."""

    @property
    def seconds(self) -> float:
        """Time of training and validation."""
        return sum(row.get("seconds", 0.0) for row in self.epochs)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the best epoch; empty before the first one."""
        return best_row(self.epochs) if self.epochs else {}

    @property
    def worked(self) -> list[tuple[datetime, datetime]]:
        """From when to when it was trained, in the order of time; what is between was waiting, or an interruption."""
        spans: list[tuple[datetime, datetime]] = []
        for row in self.epochs:
            seconds = row.get("seconds", 0.0)
            # An older version did not write down when an epoch ended; what is no time in this century is damaged.
            if not (0 < row.get("time", 0) < 4e9 and 0 <= seconds < 1e9):
                continue
            end = datetime.fromtimestamp(row["time"])
            begin = end - timedelta(seconds=seconds)
            if spans and (begin - spans[-1][1]).total_seconds() <= PAUSE + seconds / 10:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((begin, end))
        if not spans and self.epochs and self.began and 0 <= self.seconds < 1e9:
            spans = [(self.began, self.began + timedelta(seconds=self.seconds))]
        return spans

    def value(self, index: int, objective: Objective) -> float | None:
        """An objective's value, or what the best epoch of an unfinished trial gave."""
        if self.state == "complete" and self.values:
            return self.values[index]
        return self.metrics.get(objective.name)


class SweepTrials:
    """Everything that a report needs of a sweep, read once; the sweep may be running."""

    def __init__(
        self, sweep: Sweep, rows: list[TrialRow], objectives: list[Objective], not_run: dict[str, int],
        unit: EnergyUnit | None = None,
    ):  # fmt: skip
        self.sweep, self.config, self.rows, self.objectives, self.unit = sweep, sweep.config, rows, objectives, unit
        self.not_run = not_run
        """How many proposals were not trained, by why."""

    @classmethod
    def read(cls, sweep: Sweep) -> "SweepTrials":
        """All trials of a sweep, with its own objectives."""
        objectives = [Objective(name, direction == "max") for name, direction in sweep.config.search.directions.items()]
        trials = sweep.study().get_trials(deepcopy=False)
        alive = written(sweep.path)
        rows = [_row(sweep, trial, objectives[0].name, alive) for trial in trials if is_run(trial)]
        not_run = Counter(why for trial in trials if not is_run(trial) for why in trial.user_attrs if why in NOT_RUN)
        return cls(sweep, rows, objectives, dict(not_run))

    def in_one_unit(self) -> "SweepTrials":
        """The same trials with energies in the unit that suits them all, as pages and pictures show them."""
        unit = EnergyUnit.of([1e6 * epoch[ENERGY] for row in self.rows for epoch in row.epochs if ENERGY in epoch])
        factor = 1e6 / unit.pj
        objectives = [replace(o, unit=unit) if o.name == ENERGY else o for o in self.objectives]
        scales = [factor if o.unit else 1.0 for o in objectives]
        rows = [
            replace(
                row,
                epochs=[epoch | {ENERGY: factor * epoch[ENERGY]} if ENERGY in epoch else epoch for epoch in row.epochs],
                values=[scale * value for scale, value in zip(scales, row.values, strict=False)] if row.values else None,
                intermediate={epoch: scales[0] * value for epoch, value in row.intermediate.items()},
            )
            for row in self.rows
        ]
        return SweepTrials(self.sweep, rows, objectives, self.not_run, unit)

    @cached_property
    def fields(self) -> list[str]:
        """Dotted paths of all points, in the order of the space."""
        return list(dict.fromkeys(path for row in self.rows for path in row.point))

    @cached_property
    def searched(self) -> list[str]:
        """The fields that differ between trials."""
        return [path for path in self.fields if len({repr(row.point.get(path)) for row in self.rows}) > 1]

    @cached_property
    def differing(self) -> list[str]:
        """The fields that differ between finished trials."""
        return [p for p in self.searched if len({repr(row.point[p]) for row in self.complete if p in row.point}) > 1]

    @cached_property
    def names(self) -> dict[str, str]:
        """Short names of the fields; two that would be called the same keep their paths."""
        times = Counter(short(path) for path in self.fields)
        return {path: short(path) if times[short(path)] == 1 else path for path in self.fields}

    @cached_property
    def complete(self) -> list[TrialRow]:
        """The finished trials."""
        return [row for row in self.rows if row.state == "complete"]

    @cached_property
    def front(self) -> list[TrialRow]:
        """The best finished trial, or of several objectives the Pareto front; one trial of each configuration."""
        rows = {row.number: row for row in self.rows}
        try:
            best = [rows[trial.number] for trial in self.sweep.front() if trial.number in rows]
        except UserError:  # none is finished, or none keeps the constraints
            return []
        return different(best)

    @cached_property
    def base(self) -> TrialRow | None:
        """The trial that is the base config itself: the recipe as it was given, published or not."""
        point = self.sweep.space.from_config(self.config)
        same = [row for row in self.rows if row.point == point]
        return next((row for row in same if row.state == "complete"), same[0] if same else None)

    @cached_property
    def recipe(self) -> str | None:
        """Name of the recipe that has the base config's model and data, if any."""
        model, data = self.config.model, self.config.data.name
        recipes = (name for name in recipe_names() if (c := load_config(name)).model == model and c.data.name == data)
        return next(recipes, None)

    @cached_property
    def base_name(self) -> str:
        """What the base config's point is called: by its recipe, where it is one."""
        name = f"recipe {self.recipe}" if self.recipe else "base config"
        return name + (f" (trial {self.base.number})" if self.base else "")

    def describe(self, row: TrialRow) -> str:
        """A point in short: T=4 b=2 depth=2 dim=64."""
        return " ".join(f"{self.names[path]}={shown(value)}" for path, value in row.point.items())

    def study(self, objective: int | None = None, only: Collection[int] | None = None, curves: bool = False) -> "optuna.Study":
        """An Optuna study in memory whose parameters have short names, for Optuna's own plots.

        In the sweep's study a conditional field has a name for each case (`model.block_size|model.timesteps=4`), which would
        scatter it over several plots.

        Args:
            objective: index of the only objective; all of them without it.
            only: numbers of the trials to take. The others leave empty places, so that the numbers stay.
            curves: with the values after each epoch, which only one plot needs: Optuna copies them with every look at a trial.
        """
        from optuna.trial import TrialState, create_trial

        found = self.objectives if objective is None else [self.objectives[objective]]
        rows = {row.number: row for row in self.rows if only is None or row.number in only}
        trials = []
        for number in range(max(rows, default=-1) + 1):
            row = rows.get(number)
            if row is None or row.state == "waiting":
                trials.append(create_trial(state=TrialState.WAITING))
                continue
            params = {self.names[p]: _choice(row.point[p]) for p in self.searched if p in row.point}
            values = row.values if row.state == "complete" and row.values else None
            trial = create_trial(
                state=TrialState.RUNNING if row.state == "unfinished" else TrialState[row.state.upper()],
                values=values if values is None or objective is None else [values[objective]],
                params=params,
                distributions={name: self._distributions[name] for name in params},
                user_attrs={"reason": row.reason} if row.reason else {},
                intermediate_values=row.intermediate if curves else None,
                constraints=row.constraints or None,
            )
            trial.datetime_start, trial.datetime_complete = row.began, row.ended
            trials.append(trial)
        return memory_study(found, trials)

    def against_energy(self) -> "SweepTrials | None":
        """The same trials with several objectives: with one, energy per sample is the second; None where none reports it."""
        if len(self.objectives) > 1:
            return self
        rows = [
            replace(row, values=[row.values[0], row.metrics[ENERGY]]) if row.values and row.state == "complete" else row
            for row in self.rows
            if row.state != "complete" or ENERGY in row.metrics
        ]
        if not any(row.state == "complete" for row in rows):
            return None
        other = SweepTrials(self.sweep, rows, [*self.objectives, Objective(ENERGY, False, self.unit)], self.not_run)
        numbers = {trial.number for trial in other.study().best_trials}
        other.front = different([row for row in rows if row.number in numbers])
        return other

    def ticks(self, path: str) -> list[int]:
        """The values of a field for an axis, where they are few whole numbers; else none."""
        values = sorted({row.point[path] for row in self.complete if path in row.point}, key=repr)
        few = len(values) <= 8 and all(type(value) is int for value in values)
        return sorted(values) if few and (self.is_categorical(path) or len(values) <= 4) else []

    def is_categorical(self, path: str) -> bool:
        """Whether a field is one of several choices."""
        return type(self._distributions[self.names[path]]).__name__ == "CategoricalDistribution"

    def is_log(self, path: str) -> bool:
        """Whether a number was searched by its logarithm."""
        return getattr(self._distributions[self.names[path]], "log", False)

    @cached_property
    def _distributions(self) -> dict[str, "BaseDistribution"]:
        """Of each field under its short name: the kind that the study has, over the values that occur."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        known = {name.partition("|")[0]: d for row in self.rows for name, d in row.distributions.items()}
        made: dict[str, BaseDistribution] = {}
        for path in self.searched:
            values = {_choice(row.point[path]) for row in self.rows if path in row.point}
            first = known.get(path)  # none for fields that move together, which have one name in the study
            if isinstance(first, FloatDistribution | IntDistribution):
                made[self.names[path]] = type(first)(min(values), max(values), log=first.log)
            else:
                made[self.names[path]] = CategoricalDistribution(sorted(values, key=lambda v: (isinstance(v, str), v)))
        return made


def common_reason(ended: Iterable[tuple[str, str | None]]) -> str | None:
    """A sentence where most of the stopped trials, or of the failed ones, have one reason but for its numbers and layers.

    Args:
        ended: state and reason of every trial.
    """
    ended = list(ended)
    for state, verb in (("pruned", "were stopped"), ("fail", "failed")):
        kinds = Counter(kind_of(reason) for found, reason in ended if found == state)
        for kind, number in kinds.most_common(1):
            if kind and number > 1 and number > kinds.total() / 2:
                return f"{number} of {len(ended)} trials {verb} for the same reason: {kind}"
    return None


def kind_of(reason: str | None) -> str:
    """A reason without its numbers and layers, by which those that are alike are counted together."""
    kind = re.sub(r"(?<=layer )\S+|(?<![\w/.])\d[\d.]*(e[+-]?\d+)?", "…", reason or "")
    return kind.removeprefix("stopped at epoch …: ")


def different(rows: list[TrialRow]) -> list[TrialRow]:
    """The first trial of each configuration."""
    return list({repr(row.point): row for row in reversed(rows)}.values())[::-1]


def memory_study(objectives: list[Objective], trials: "list[optuna.trial.FrozenTrial]") -> "optuna.Study":
    """A study in memory of trials that are known already."""
    import optuna

    sense = optuna.study.StudyDirection
    study = optuna.create_study(directions=[sense.MAXIMIZE if o.maximize else sense.MINIMIZE for o in objectives])
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # set_metric_names
        study.set_metric_names([objective.label for objective in objectives])
    return study


def _row(sweep: Sweep, trial: "optuna.trial.FrozenTrial", metric: str, alive: bool) -> TrialRow:
    run = sweep.trial(trial.number)
    epochs = run.metrics()
    curve = {int(row["epoch"]): row[metric] for row in epochs if math.isfinite(row.get(metric, math.nan))}
    return TrialRow(
        number=trial.number,
        state="unfinished" if trial.state.name == "RUNNING" and not alive else trial.state.name.lower(),
        reason=trial.user_attrs.get("reason"),
        point=trial.user_attrs.get("point", {}),
        values=trial.values,
        intermediate=curve or dict(trial.intermediate_values),  # the folder may know more than the study, or be gone
        constraints=dict(trial.constraints),
        distributions=trial.distributions,
        run=run,
        taken_over="source" in trial.user_attrs,
        began=trial.datetime_start,
        ended=trial.datetime_complete,
        epochs=epochs,
    )


def _choice(value: Any) -> Any:
    """A value that Optuna's plots can take."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)


def shown(value: Any) -> str:
    """A value in a table: four digits of a number, a dash for none."""
    return numeral(value) if value is None or isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Exports.


def documents(trials: SweepTrials) -> list[dict[str, Any]]:
    """Every trial as a document; a value is None where there is none."""
    return [
        {
            "number": row.number,
            "state": row.state,
            "reason": row.reason,
            "point": row.point,
            "values": {o.name: row.values[i] if row.state == "complete" and row.values else None
                       for i, o in enumerate(trials.objectives)},
            "metrics": row.metrics,
            "epochs": len(row.epochs),
            "seconds": row.seconds,
            "run": str(row.run.path),
            "taken_over": row.taken_over,
        }
        for row in trials.rows
    ]  # fmt: skip


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The documents as CSV: fields by their paths, objectives as `objective:NAME`, the best epoch's metrics as `best:NAME`."""
    first, last = ("number", "state", "reason"), ("epochs", "seconds", "run", "taken_over")
    flat = [
        {
            **{name: row[name] for name in first},
            **row["point"],
            **{f"objective:{name}": value for name, value in row["values"].items()},
            **{name: row[name] for name in last},
            **{f"best:{name}": value for name, value in row["metrics"].items()},
        }
        for row in rows
    ]
    columns = list(dict.fromkeys(name for line in flat for name in line)) or [*first, *last]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
