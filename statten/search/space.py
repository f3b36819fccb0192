"""What a sweep may vary: a YAML file whose keys are dotted config paths.

    model.timesteps:  {choices: [2, 4, 8]}
    model.block_size: {divisors_of: model.timesteps}     # only valid blocks are ever proposed
    model.depth:      {int: [1, 4]}
    model.embed_dim:  {int: [64, 512], step: 64}
    train.lr:         {float: [1.0e-4, 3.0e-3], log: true}

`suggest` draws a point from an Optuna trial, define-by-run. A parameter whose values depend on another carries that in its
Optuna name (`model.block_size|model.timesteps=4`), because Optuna keeps one set of values per name.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from statten.config import Config, ConfigError, field_at, get_field, nearest, read_yaml, with_overrides

# A space with more combinations than this is checked on a sample of so many.
CHECKED = 2000


class Suggests(Protocol):
    """The part of an Optuna trial that a space uses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Choices:
    """One of a list."""

    path: str
    values: tuple[Any, ...]
    parent = None

    def suggest(self, trial: Suggests, point: dict[str, Any]) -> Any:
        return trial.suggest_categorical(self.path, self.values)

    def examples(self, point: dict[str, Any]) -> Iterable[Any]:
        return self.values


@dataclass(frozen=True)
class Divisors:
    """A divisor of another field, from 1 to the field itself."""

    path: str
    parent: str

    def suggest(self, trial: Suggests, point: dict[str, Any]) -> Any:
        name = f"{self.path}|{self.parent}={point[self.parent]}"
        return trial.suggest_categorical(name, tuple(self.examples(point)))

    def examples(self, point: dict[str, Any]) -> Iterable[Any]:
        whole = point[self.parent]
        return [d for d in range(1, whole + 1) if whole % d == 0]


@dataclass(frozen=True)
class IntRange:
    """A whole number from low to high, both included."""

    path: str
    low: int
    high: int
    step: int = 1
    log: bool = False
    parent = None

    def suggest(self, trial: Suggests, point: dict[str, Any]) -> Any:
        return trial.suggest_int(self.path, self.low, self.high, step=self.step, log=self.log)

    def examples(self, point: dict[str, Any]) -> Iterable[Any]:
        return range(self.low, self.high + 1, self.step)


@dataclass(frozen=True)
class FloatRange:
    """A number from low to high."""

    path: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    parent = None

    def suggest(self, trial: Suggests, point: dict[str, Any]) -> Any:
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    def examples(self, point: dict[str, Any]) -> Iterable[Any]:
        return (self.low, self.high)


Dimension = Choices | Divisors | IntRange | FloatRange
KINDS = {"choices": (), "divisors_of": (), "int": ("step", "log"), "float": ("step", "log")}


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep, parents before those that depend on them, around a base config."""

    dimensions: tuple[Dimension, ...]
    base: Config
    tree: dict[str, Any]

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Draw a point: dotted path to value."""
        point: dict[str, Any] = {}
        for dimension in self.dimensions:
            point[dimension.path] = dimension.suggest(trial, self._known(dimension, point))
        return point

    def config(self, point: dict[str, Any]) -> Config:
        """The base config at a point."""
        return with_overrides(self.base, point)

    def dump(self) -> str:
        """YAML text that `load_space` reads back."""
        return yaml.safe_dump(self.tree, sort_keys=False, default_flow_style=None, width=120)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination; of a continuous dimension the two ends."""

        def grow(point: dict[str, Any], rest: tuple[Dimension, ...]) -> Iterator[dict[str, Any]]:
            if not rest:
                yield point
                return
            for value in rest[0].examples(self._known(rest[0], point)):
                yield from grow({**point, rest[0].path: value}, rest[1:])

        return grow({}, self.dimensions)

    def random_point(self, generator: random.Random) -> dict[str, Any]:
        """A combination at random."""
        point: dict[str, Any] = {}
        for dimension in self.dimensions:
            point[dimension.path] = generator.choice(list(dimension.examples(self._known(dimension, point))))
        return point

    def _known(self, dimension: Dimension, point: dict[str, Any]) -> dict[str, Any]:
        """The point, with the base's value of a parent that is not searched."""
        parent = dimension.parent
        return point if parent is None or parent in point else {**point, parent: get_field(self.base, parent)}


def load_space(path: Path, base: Config) -> Space:
    """Read a space file and check it around a base config.

    Raises:
        ConfigError: every mistake of the file in a sentence of its own: unknown fields, values that a field refuses, an
            empty range, and combinations that break a rule.
    """
    return make_space(read_yaml(path), base, str(path))


def make_space(tree: dict[str, Any], base: Config, source: str = "space") -> Space:
    """A space from a mapping; see `load_space`."""
    if not tree:
        raise ConfigError(f"{source}: names no field to search; add a line such as model.depth: {{int: [1, 4]}}")
    dimensions, problems = [], []
    for path, rule in tree.items():
        try:
            dimension = _dimension(str(path), rule)
            if not (isinstance(dimension, Divisors) and dimension.parent in tree):
                _check_values(dimension, base)
            dimensions.append(dimension)
        except ConfigError as error:
            problems += [f"{source}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    order = list(tree)
    dimensions.sort(
        key=lambda d: (order.index(d.parent or d.path) if d.parent in tree else order.index(d.path), bool(d.parent))
    )
    space = Space(tuple(dimensions), base, tree)
    _check_combinations(space, source)
    return space


def _dimension(path: str, rule: Any) -> Dimension:
    field_at(path)
    if path.startswith(("scale.", "search.")):
        raise ConfigError(f"{path}: says how a sweep runs and cannot be searched; search fields of data, model or train")
    if not isinstance(rule, dict) or not rule:
        raise ConfigError(f"{path}: must be one of {{choices: [...]}}, {{divisors_of: ...}}, {{int: [low, high]}}, "
                          f"{{float: [low, high]}}, but got {rule!r}")  # fmt: skip
    kind, *options = rule
    if kind not in KINDS:
        raise ConfigError(f"{path}: {kind!r} is no kind of range; {nearest(str(kind), KINDS)}")
    for option in options:
        if option not in KINDS[kind]:
            allowed = f"; {nearest(str(option), KINDS[kind])}" if KINDS[kind] else f"; {kind} takes none"
            raise ConfigError(f"{path}: {option!r} is no option of {kind}{allowed}")
    value = rule[kind]
    if kind == "choices":
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{path}: choices must be a list of at least one value, but got {value!r}")
        if any(isinstance(v, list | dict) for v in value):
            raise ConfigError(f"{path}: choices must be numbers, texts, true, false or null, but got {value!r}")
        return Choices(path, tuple(value))
    if kind == "divisors_of":
        if not isinstance(value, str):
            raise ConfigError(f"{path}: divisors_of must name a field such as model.timesteps, but got {value!r}")
        field_at(value)
        return Divisors(path, value)
    return _range(path, kind, value, rule.get("step"), rule.get("log", False))


def _range(path: str, kind: str, value: Any, step: Any, log: Any) -> Dimension:
    numbers = int if kind == "int" else (int, float)
    pair = isinstance(value, list) and len(value) == 2
    if not pair or any(isinstance(v, bool) or not isinstance(v, numbers) for v in value):
        kind_of = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"{path}: {kind} must be [low, high] in {kind_of}, but got {value!r}")
    low, high = value
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ConfigError(f"{path}: the range is empty: low must be at most high, but got [{low}, {high}]")
    if not isinstance(log, bool):
        raise ConfigError(f"{path}: log must be true or false, but got {log!r}")
    if log and low <= 0:
        raise ConfigError(f"{path}: a log range must start above 0, but got [{low}, {high}]")
    if log and step is not None:
        raise ConfigError(f"{path}: step and log exclude each other")
    if step is not None and (isinstance(step, bool) or not isinstance(step, numbers) or not step > 0):
        raise ConfigError(f"{path}: step must be above 0, but got {step!r}")
    if kind == "int":
        # The last value that the steps reach; Optuna would lower it with a warning.
        step = step or 1
        return IntRange(path, int(low), int(low) + int(high - low) // step * step, step, log)
    return FloatRange(path, float(low), float(high), step, log)


def _check_values(dimension: Dimension, base: Config) -> None:
    """Each value must be one that the field takes by itself; rules between fields are for `_check_combinations`."""
    known = {dimension.parent: get_field(base, dimension.parent)} if dimension.parent else {}
    values = list(itertools.islice(dimension.examples(known), CHECKED))
    for value in [values[0], values[-1]] if isinstance(dimension, IntRange) else values:
        try:
            with_overrides(base, {dimension.path: value})
        except ConfigError as error:
            own = [p for p in error.problems if p.startswith(f"{dimension.path}:")]
            if own:
                raise ConfigError(own) from None


def _check_combinations(space: Space, source: str) -> None:
    points = list(itertools.islice(space.points(), CHECKED + 1))
    if len(points) > CHECKED:
        generator = random.Random(0)
        points = [space.random_point(generator) for _ in range(CHECKED)]
    for point in points:
        try:
            space.config(point)
        except ConfigError as error:
            shown = ", ".join(f"{path}={value}" for path, value in point.items())
            hint = ""
            if "`block_size`" in error.problems[0]:
                hint = "; write model.block_size: {divisors_of: model.timesteps}"
            elif "`embed_dim`" in error.problems[0]:
                hint = "; give model.embed_dim a start and a step that are multiples of 8 and of num_heads"
            raise ConfigError(f"{source}: proposes an invalid combination ({shown}): {error.problems[0]}{hint}") from None
