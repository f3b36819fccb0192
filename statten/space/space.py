"""What a sweep may vary: a YAML file whose keys are dotted config paths.

    model.timesteps:  {choices: [2, 4, 8]}
    model.block_size: {divisors_of: model.timesteps}                    # only valid blocks are ever proposed
    model.num_heads:  {choices: [4, 8]}
    model.embed_dim:  {int: [64, 512], multiple_of: 8 * model.num_heads}
    train.lr:         {float: [1.0e-4, 3.0e-3], log: true}              # int and float also take a step
    model.drop_path:  {float: [0.0, 0.3], if: model.depth > 2}          # elsewhere the base's value holds
    data.frames:      {equals: model.timesteps}                         # follows, and is not searched
    train.optimizer:  {constant: lamb}                                  # neither is this
    couple.size:                                                        # fields that move together, under a free label
      choices: [{model.depth: 2, model.mlp_ratio: 4}, {model.depth: 8, model.mlp_ratio: 2}]
    constraint: [model.depth * model.embed_dim <= 2048]                 # or one text

`suggest` draws a point - searched field to value - from an Optuna trial, define-by-run, and only points that satisfy every
constraint can come of it. Optuna keeps one set of values per name, so a parameter whose values depend on others says so in
its name: `model.block_size|model.timesteps=4`; `model.embed_dim|64..256` where a constraint leaves a part of the values;
`train.min_lr|share` where it leaves a part of an interval, asked for as a share of that part.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from statten.config import Config, dump_yaml, get_field, with_overrides
from statten.errors import ConfigError, UserError
from statten.space.dimensions import CONSTRAINT, Couple, Derived, Dimension, Divisors, Plain, Searched, read
from statten.space.domains import Choices, Domain, Grid, Range, Suggests
from statten.space.expressions import Expression

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]
Choose = Callable[[Dimension, str, Domain], Any]
# A constraint is tried on every value of the dimensions that it ties together.
MOST_VALUES = 10_000
# Combinations that are tried for one point, and counted: seconds.
MOST_TRIES = 1_000_000
# Where, how long and how often a run is kept, not what it is: `from_config` does not compare them, nor the seed.
NOT_COMPARED = (
    "data.root", "data.download", "data.workers", "data.skip_corrupt", "train.eval_batch_size", "train.seed",
    "train.checkpoint_every_steps", "train.keep_checkpoints",
)  # fmt: skip


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep, each after those that it depends on, around a base config."""

    dimensions: tuple[Dimension, ...]
    constraints: tuple[Expression, ...]
    base: Config
    tree: dict[str, Any]
    notes: tuple[str, ...] = ()

    # -- what sweeps use ----------------------------------------------------------------------------------------------

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Searched fields, in the order of the file."""
        by_name = {d.name: d.paths for d in self.searched}
        return tuple(path for name in self.tree for path in by_name.get(str(name), ()))

    def suggest(self, trial: Suggests) -> Point:
        """Draw a point: dotted path to value; a field whose condition does not hold is left out."""
        return self.walk(lambda dimension, name, domain: domain.suggest(trial, name))

    def config(self, point: Point) -> Config:
        """The base config at a point, with constants and the fields that follow."""
        return with_overrides(self.base, self._settled(point))

    def dump(self) -> str:
        """YAML text that `load_space` reads back; what was merged from where stands on top."""
        return "".join(f"# {' '.join(note.split())}\n" for note in self.notes) + dump_yaml(self.tree, flow=None)

    def count(self) -> int | None:
        """Exact number of points; None where a continuous dimension makes them infinitely many."""
        return self._count

    @cached_property
    def _count(self) -> int | None:
        known: dict[tuple[int, tuple[Any, ...]], int | None] = {}
        self.tries[0] = 0

        def ways(i: int, point: Point) -> int | None:
            self._try()
            if i == len(self.dimensions):
                return 1
            key = self._key(i, point)
            if key not in known:
                known[key] = self._ways(i, point, ways)
            return known[key]

        return ways(0, dict(self.base_values))

    def points(self) -> Iterator[Point]:
        """Every point, once; raises UserError where they are infinitely many."""
        if self.count() is None:
            raise UserError(
                f"{', '.join(self.continuous)}: a continuous range cannot be enumerated; give it a step, or choices"
            )
        return self.corners()

    def corners(self) -> Iterator[Point]:
        """Every combination; of a continuous dimension the two ends."""

        def grow(i: int, point: Point, known: Point) -> Iterator[Point]:
            if i == len(self.dimensions):
                self.tries[0] = 0
                yield self._ordered(point)
                return
            question = self._question(i, known)
            if question is None:
                yield from grow(i + 1, point, self._after(i, known))
                return
            for value in question[1].items():
                fields = self._searched(i).fields(value)
                yield from grow(i + 1, {**point, **fields}, {**known, **fields})

        return grow(0, {}, dict(self.base_values))

    def random_point(self, generator: random.Random) -> Point:
        """A point at random."""
        return self.walk(lambda dimension, name, domain: domain.random(generator))

    def params(self, point: Point) -> dict[str, Any]:
        """The names and values of Optuna parameters for which `suggest` returns this point.

        Raises:
            UserError: the point is not in the space.
        """
        return {name: domain.param(value) for name, domain, value in self._answers(point)}

    def distributions(self, point: Point) -> dict[str, "BaseDistribution"]:
        """Optuna's description of each of the parameters at a point; raises UserError as `params` does."""
        return {name: domain.distribution() for name, domain, _ in self._answers(point)}

    def contains(self, point: Point) -> bool:
        """Whether `suggest` can return the point."""
        try:
            self._answers(point)
        except UserError:
            return False
        return True

    def from_config(self, config: Config) -> Point | None:
        """The point at which a whole config lies; None where it lies outside, or is not the base's at that point."""
        try:
            point = self.point_of(config)
            return None if self.differing(config, point) else point
        except UserError:
            return None

    def differing(self, config: Config, point: Point) -> list[str]:
        """Fields of data, model and train in which a config is not the base at a point.

        Left out are the seed, and those that only say where a run is kept.
        """
        there, here = _compared(self.config(point)), _compared(config)
        return [field for field in there if there[field] != here[field]]

    def point_of(self, config: Config) -> Point:
        """The point of a config's searched fields, whatever the others are; raises UserError where it lies outside."""

        def choose(dimension: Dimension, name: str, domain: Domain) -> Any:
            value = dimension.value({path: _at(config, path) for path in dimension.paths})
            if not domain.holds(value):
                raise UserError(f"{name}: {value!r} is outside")
            return domain.settled(value)

        return self.walk(choose)

    # -- what samplers ask for ----------------------------------------------------------------------------------------

    @cached_property
    def searched(self) -> tuple[Searched, ...]:
        """Dimensions that are asked for, without constants and fields that follow."""
        return tuple(dimension for dimension in self.dimensions if isinstance(dimension, Searched))

    @cached_property
    def steady(self) -> tuple[str, ...]:
        """Names of dimensions that are always there with the same values, more than one."""
        return tuple(d.name for d in self.searched if d.name not in self.conditional and len(d.domain(self.base_values)) > 1)

    @cached_property
    def continuous(self) -> tuple[str, ...]:
        """Names of dimensions with infinitely many values."""
        return tuple(d.name for d in self.dimensions if isinstance(d, Plain) and not d.values.size_is_finite)

    @cached_property
    def unordered(self) -> tuple[str, ...]:
        """Names of dimensions whose values have no order: choices, divisors, couples."""
        return tuple(
            d.name
            for d in self.dimensions
            if isinstance(d, Divisors | Couple) or (isinstance(d, Plain) and isinstance(d.values, Choices))
        )

    @cached_property
    def conditional(self) -> tuple[str, ...]:
        """Names of dimensions that are not always there, or whose values are not always the same."""
        fixed = {d.name for d in self.dimensions if isinstance(d, Plain | Couple) and d.condition is None}
        tied = {self.dimensions[i].name for i in self.tied}
        return tuple(d.name for d in self.searched if d.name not in fixed or (d.name in tied and d.name not in self.continuous))

    # -- one dimension after the other --------------------------------------------------------------------------------

    @cached_property
    def base_values(self) -> Point:
        """The base's values of all fields that expressions read or dimensions set."""
        paths = {path for d in self.dimensions for path in (*d.paths, *d.reads)}
        paths |= {path for constraint in self.constraints for path in constraint.fields}
        return {path: _at(self.base, path) for path in paths}

    @cached_property
    def _closing(self) -> tuple[tuple[Expression, ...], ...]:
        """For each dimension the constraints that it decides: all other fields of theirs are known before it."""
        last = {path: i for i, dimension in enumerate(self.dimensions) for path in dimension.paths}
        at: list[list[Expression]] = [[] for _ in self.dimensions]
        for constraint in self.constraints:
            at[max(last[path] for path in constraint.fields if path in last)].append(constraint)
        return tuple(map(tuple, at))

    @cached_property
    def tied(self) -> frozenset[int]:
        """Dimensions that can decide, themselves or through others, whether a constraint holds."""
        needed = {path for constraint in self.constraints for path in constraint.fields}
        tied = set()
        for i in reversed(range(len(self.dimensions))):
            if needed.intersection(self.dimensions[i].paths):
                tied.add(i)
                needed.update(self.dimensions[i].reads)
        return frozenset(tied)

    @cached_property
    def _reads(self) -> tuple[tuple[str, ...], ...]:
        """For each dimension the fields set before it that it or a later one reads."""
        reads: list[tuple[str, ...]] = []
        wanted: set[str] = set()
        for i in reversed(range(len(self.dimensions))):
            wanted.update(self.dimensions[i].reads, *(constraint.fields for constraint in self._closing[i]))
            before = {path for d in self.dimensions[:i] for path in d.paths}
            reads.append(tuple(sorted(wanted & before)))
        return tuple(reversed(reads))

    @cached_property
    def _memory(self) -> dict[Any, Any]:
        """What was found out about dimensions in a context: narrowed domains, and whether the rest can be completed."""
        return {}

    @cached_property
    def tries(self) -> list[int]:
        """One number: combinations that were tried since the last point."""
        return [0]

    def _try(self) -> None:
        self.tries[0] += 1
        if self.tries[0] > MOST_TRIES:
            names = ", ".join(d.name for i, d in enumerate(self.dimensions) if i in self.tied or d.parents or d.condition)
            raise ConfigError(f"{names}: depend on each other in more than {MOST_TRIES:,} combinations; give them fewer values")

    def _key(self, i: int, known: Point) -> tuple[int, tuple[Any, ...]]:
        return i, tuple(known[path] for path in self._reads[i])

    def _remember(self, key: Any, find: Callable[[], Any]) -> Any:
        if key not in self._memory:
            if len(self._memory) > 100_000:  # contexts of continuous fields never come again
                self._memory.clear()
            self._memory[key] = find()
        return self._memory[key]

    def _searched(self, i: int) -> Searched:
        dimension = self.dimensions[i]
        assert isinstance(dimension, Searched), dimension
        return dimension

    def _domain(self, i: int, known: Point) -> Domain:
        """The values of a dimension here, before constraints."""
        domain = self._searched(i).domain(known)
        if i in self.tied and not isinstance(domain, Range) and len(domain) > MOST_VALUES:
            raise ConfigError(
                f"{self.dimensions[i].name}: must have at most {MOST_VALUES} values beside a constraint, but has "
                f"{len(domain)}; give it a larger step"
            )
        return domain

    def _is_there(self, i: int, known: Point) -> bool:
        dimension = self.dimensions[i]
        return dimension.condition is None or read(dimension.name, "if", dimension.condition, known, truth=True)

    def _after(self, i: int, known: Point) -> Point:
        """What is known after a dimension that nobody is asked for: derived, or not there."""
        dimension = self.dimensions[i]
        if isinstance(dimension, Derived) and self._is_there(i, known):
            return {**known, **dimension.fields(dimension.now(known))}
        return known

    def _question(self, i: int, known: Point) -> tuple[str, Domain] | None:
        """The Optuna name of a dimension and its allowed values here; None where there is nothing to ask."""
        dimension = self.dimensions[i]
        if isinstance(dimension, Derived) or not self._is_there(i, known):
            return None
        name, domain = dimension.name, self._domain(i, known)
        if dimension.parents:
            name += "|" + ",".join(f"{path}={known[path]}" for path in dimension.parents)
        if i not in self.tied:
            return name, domain
        domain, suffix = self._remember(
            ("left", *self._key(i, known)), lambda: domain.keep(lambda value: self._allows(i, value, known))
        )
        return name + suffix, domain

    def _allows(self, i: int, value: Any, known: Point) -> bool:
        """Whether a value breaks no constraint and leaves later dimensions something that breaks none."""
        self._try()
        known = {**known, **self._searched(i).fields(value)}
        return self._holds(i, known) and self.can_complete(i + 1, known)

    def _holds(self, i: int, known: Point) -> bool:
        return all(read(CONSTRAINT, c.text, c, known, truth=True) for c in self._closing[i])

    def can_complete(self, i: int, known: Point) -> bool:
        """Whether the dimensions from `i` on can be completed."""
        while i < len(self.dimensions) and i not in self.tied:
            i += 1
        if i == len(self.dimensions):
            return True
        return self._remember(("open", *self._key(i, known)), lambda: self._completes(i, known))

    def _completes(self, i: int, known: Point) -> bool:
        if isinstance(self.dimensions[i], Derived) or not self._is_there(i, known):
            known = self._after(i, known)
            return self._holds(i, known) and self.can_complete(i + 1, known)
        return any(self._allows(i, value, known) for value in self._domain(i, known).probes())

    def _ways(self, i: int, known: Point, ways: Callable[[int, Point], int | None]) -> int | None:
        """Number of points from a dimension on."""
        question = self._question(i, known)
        if question is None:
            return ways(i + 1, self._after(i, known))
        dimension, (_, domain) = self._searched(i), question
        if not domain.size_is_finite:
            return None
        later = self._reads[i + 1] if i + 1 < len(self.dimensions) else ()
        if not set(dimension.paths).intersection(later):  # nothing depends on it
            rest = ways(i + 1, {**known, **dimension.fields(next(iter(domain.items())))})
            return None if rest is None else len(domain) * rest
        total = 0
        for value in domain.items():
            rest = ways(i + 1, {**known, **dimension.fields(value)})
            if rest is None:
                return None
            total += rest
        return total

    def walk(self, choose: Choose) -> Point:
        """A point, with the value of each dimension as `choose` has it."""
        known, point = dict(self.base_values), Point()
        self.tries[0] = 0
        for i in range(len(self.dimensions)):
            question = self._question(i, known)
            if question is None:
                known = self._after(i, known)
                continue
            if not len(question[1]):
                raise ConfigError(f"{CONSTRAINT}: leaves {question[0]} nothing to choose from at {shown_point(point)}")
            dimension = self._searched(i)
            fields = dimension.fields(choose(dimension, *question))
            known.update(fields)
            point.update(fields)
        return self._ordered(point)

    def _answers(self, point: Point) -> list[tuple[str, Domain, Any]]:
        """Name, domain and value of every dimension at a point; raises UserError where the point is not in the space."""
        answers: list[tuple[str, Domain, Any]] = []

        def choose(dimension: Dimension, name: str, domain: Domain) -> Any:
            if missing := [path for path in dimension.paths if path not in point]:
                raise UserError(f"{missing[0]}: must be given at {shown_point(point)}")
            value = dimension.value(point)
            if not domain.holds(value):
                shown = shown_point({path: point[path] for path in dimension.paths})
                raise UserError(f"{name}: {shown} is outside the space, which has {_some(domain)}")
            answers.append((name, domain, value))
            return domain.settled(value)

        walked = self.walk(choose)
        if extra := [path for path in point if path not in walked]:
            raise UserError(f"{extra[0]}: is not searched at {shown_point(point)}")
        return answers

    def _settled(self, point: Point) -> Point:
        """A point with constants and the fields that follow."""
        known, settled = {**self.base_values, **point}, dict(point)
        for i, dimension in enumerate(self.dimensions):
            if isinstance(dimension, Derived) and self._is_there(i, known):
                fields = dimension.fields(dimension.now(known))
                known.update(fields)
                settled.update(fields)
        return settled

    def _ordered(self, point: Point) -> Point:
        return {path: point[path] for path in self.paths if path in point}


def _at(config: Config, path: str) -> Any:
    """The value at a dotted path; None for a place of `model.neuron` where one kind stands for all."""
    try:
        return get_field(config, path)
    except AttributeError:
        return None


def _compared(config: Config) -> dict[str, Any]:
    parts = config.model_dump(include={"data", "model", "train"})
    return {
        f"{part}.{key}": v for part, fields in parts.items() for key, v in fields.items() if f"{part}.{key}" not in NOT_COMPARED
    }


def shown_point(point: Point) -> str:
    return "(" + ", ".join(f"{path}={value}" for path, value in point.items()) + ")"


def _some(domain: Domain) -> str:
    if isinstance(domain, Choices):
        return ", ".join(map(str, domain.values))
    return f"[{domain.low:g}, {domain.high:g}]" + (f" in steps of {domain.step:g}" if isinstance(domain, Grid) else "")
