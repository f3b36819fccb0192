"""The lines of a search space: kinds of dimensions, and how each is read from its rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any

from statten.config import field_at
from statten.errors import ConfigError, nearest
from statten.space.domains import Choices, Domain, Grid, Range, same
from statten.space.expressions import Expression, literal, parse, parse_condition

# Divisors of more would take long to find; a list of more is no choice; a range of more steps is not told apart in floats.
LARGEST, MOST_CHOICES, MOST_STEPS = 10**9, 1000, 2**53
COUPLE = "couple."
CONSTRAINT = "constraint"


@dataclass(frozen=True)
class Dimension:
    """One line of a space: some fields, and where they exist. Without a domain its fields are not searched."""

    name: str
    paths: tuple[str, ...]
    condition: Expression | None = field(default=None, kw_only=True)

    @property
    def parents(self) -> tuple[str, ...]:
        """Fields that its values depend on."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Fields that must be known before it is asked for."""
        return (*self.parents, *(self.condition.fields if self.condition else ()))

    def fields(self, value: Any) -> dict[str, Any]:
        """What a value of it sets."""
        return {self.paths[0]: value}

    def value(self, known: Mapping[str, Any]) -> Any:
        """Its value, given its fields; None where there is none."""
        return known[self.paths[0]]


@dataclass(frozen=True)
class Plain(Dimension):
    """Values that depend on nothing: choices, int, float."""

    values: Domain

    def domain(self, known: Mapping[str, Any]) -> Domain:
        """All of them."""
        return self.values


@dataclass(frozen=True)
class Divisors(Dimension):
    """A divisor of another field, from 1 to the field itself."""

    of: str

    @property
    def parents(self) -> tuple[str, ...]:
        return (self.of,)

    def domain(self, known: Mapping[str, Any]) -> Domain:
        """The divisors of the field as it is now."""
        whole = known[self.of]
        if isinstance(whole, bool) or not isinstance(whole, int) or whole < 1:
            raise ConfigError(f"{self.name}: divisors_of must name a whole number above 0, but {self.of} is {literal(whole)}")
        if whole > LARGEST:
            raise ConfigError(f"{self.name}: divisors_of must name a number up to {LARGEST:,}, but {self.of} is {whole:,}")
        return Choices(_divisors(whole))


@dataclass(frozen=True)
class Multiples(Dimension):
    """A whole number from low to high that is a multiple of an expression."""

    low: int
    high: int
    of: Expression

    @property
    def parents(self) -> tuple[str, ...]:
        return self.of.fields

    def domain(self, known: Mapping[str, Any]) -> Domain:
        """The multiples of the expression as it is now."""
        step = read(self.name, "multiple_of", self.of, known)
        where = f" where {self.of.shown(known)}" if self.of.fields else ""
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise ConfigError(
                f"{self.name}: multiple_of must be a whole number above 0, but {self.of.text} is {literal(step)}{where}"
            )
        low, high = -(-self.low // step) * step, self.high // step * step
        if low > high:
            close = low if high < 1 or low - self.high <= self.low - high else high
            raise ConfigError(
                f"{self.name}: no multiple of {self.of.text} = {step} lies in [{self.low}, {self.high}]{where}; "
                f"the nearest is {close}"
            )
        return Grid(low, high, step)


@dataclass(frozen=True)
class Couple(Dimension):
    """Fields that move together: one of some rows of values. Optuna sees a row as a text."""

    rows: tuple[tuple[Any, ...], ...]

    def domain(self, known: Mapping[str, Any]) -> Domain:
        """The rows."""
        return Choices(tuple(map(self._text, self.rows)))

    def fields(self, value: Any) -> dict[str, Any]:
        """What a row sets."""
        row = next(row for row in self.rows if self._text(row) == value)
        return dict(zip(self.paths, row, strict=True))

    def value(self, known: Mapping[str, Any]) -> Any:
        """The row that the fields are, if any."""
        values = [known[path] for path in self.paths]
        return next((self._text(row) for row in self.rows if all(map(same, row, values))), None)

    def _text(self, row: tuple[Any, ...]) -> str:
        return " ".join(
            f"{path}={value if isinstance(value, str) else literal(value)}" for path, value in zip(self.paths, row, strict=True)
        )


@dataclass(frozen=True)
class Derived(Dimension):
    """A constant, or a field that follows others."""

    source: Any

    @property
    def parents(self) -> tuple[str, ...]:
        return self.source.fields if isinstance(self.source, Expression) else ()

    def now(self, known: Mapping[str, Any]) -> Any:
        """What it is, given what it follows."""
        return read(self.name, "equals", self.source, known) if isinstance(self.source, Expression) else self.source


@cache
def _divisors(whole: int) -> tuple[int, ...]:
    small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
    return tuple(sorted({*small, *(whole // d for d in small)}))


Searched = Plain | Divisors | Multiples | Couple


def read(name: str, word: str, expression: Expression, known: Mapping[str, Any], truth: bool = False) -> Any:
    """The value of an expression; an error names the line and the word that it stands behind."""
    try:
        value = expression.of(known)
    except ConfigError as error:
        raise ConfigError([f"{name}: {word}: {problem}" for problem in error.problems]) from None
    if truth and not isinstance(value, bool):
        raise ConfigError(f"{name}: {word} must be true or false, but {expression.text} is {literal(value)}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# From YAML.

KINDS = {
    "choices": (),
    "divisors_of": (),
    "int": ("step", "log", "multiple_of"),
    "float": ("step", "log"),
    "constant": (),
    "equals": (),
}
FORMS = "{choices: [...]}, {divisors_of: ...}, {int: [low, high]}, {float: [low, high]}, {constant: ...}, {equals: ...}"


def make_dimension(name: str, rule: Any) -> Dimension:
    """A line of a space file; raises ConfigError with the rule that it breaks."""
    coupled = name.startswith(COUPLE)
    if not coupled:
        _check_path(name)
    if not isinstance(rule, dict) or not rule:
        forms = "{choices: [{field: value, ...}, ...]}" if coupled else f"one of {FORMS}"
        raise ConfigError(f"{name}: must be {forms}, but got {literal(rule)}")
    rule = dict(rule)
    condition = None
    if "if" in rule:
        try:
            condition = parse_condition(rule.pop("if"))
        except ConfigError as error:
            raise ConfigError([f"{name}: if: {problem}" for problem in error.problems]) from None
    kind = _kind(name, rule)
    value = rule[kind]
    if coupled:
        return _couple(name, kind, value, condition)
    if kind == "choices":
        return Plain(name, (name,), _choices(name, value), condition=condition)
    if kind == "constant":
        if isinstance(value, list | dict):
            raise ConfigError(f"{name}: constant must be a number, a text, true, false or null, but got {value!r}")
        return Derived(name, (name,), value, condition=condition)
    if kind == "equals":
        return Derived(name, (name,), _expression(name, "equals", value), condition=condition)
    if kind == "divisors_of":
        if not isinstance(value, str):
            raise ConfigError(f"{name}: divisors_of must name a field such as model.timesteps, but got {value!r}")
        try:
            field_at(value)
        except ConfigError as error:
            raise ConfigError([f"{name}: divisors_of: {problem}" for problem in error.problems]) from None
        return Divisors(name, (name,), value, condition=condition)
    low, high, step, log = _range(name, kind, value, rule)
    if "multiple_of" in rule:
        return Multiples(name, (name,), low, high, _expression(name, "multiple_of", rule["multiple_of"]), condition=condition)
    values = Range(low, high, log) if kind == "float" and step is None else Grid(low, high, step or 1, log)
    return Plain(name, (name,), values, condition=condition)


def _check_path(path: str) -> None:
    if (hint := nearest(path, [CONSTRAINT])).startswith("did you mean"):
        raise ConfigError(f"{path}: no such field; {hint}")
    field_at(path)
    if path.startswith(("scale.", "search.", "log.")):
        raise ConfigError(f"{path}: says how a sweep runs and cannot be searched; search fields of data, model or train")


def _kind(name: str, rule: dict[str, Any]) -> str:
    """The word of a rule that says what it is; the others must be options of it."""
    kinds = [word for word in rule if word in KINDS]
    if not rule:
        raise ConfigError(f"{name}: must have values beside `if`: one of {FORMS}")
    if not kinds:
        word = next(iter(rule))
        raise ConfigError(f"{name}: {word!r} is no kind of range; {nearest(str(word), KINDS)}")
    if len(kinds) > 1:
        raise ConfigError(f"{name}: must be one of {' and '.join(kinds)}, not both")
    for option in rule:
        if option != kinds[0] and option not in KINDS[kinds[0]]:
            options = (*KINDS[kinds[0]], "if")
            raise ConfigError(f"{name}: {option!r} is no option of {kinds[0]}; {nearest(str(option), options)}")
    return kinds[0]


def _expression(name: str, word: str, text: Any) -> Expression:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError([f"{name}: {word}: {problem}" for problem in error.problems]) from None


def _choices(name: str, values: Any) -> Choices:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}: choices must be a list of at least one value, but got {values!r}")
    _check_few(name, values)
    if any(isinstance(v, list | dict) for v in values):
        raise ConfigError(
            f"{name}: choices must be numbers, texts, true, false or null, but got {values!r}; fields that move together go "
            f"under a label such as {COUPLE}size"
        )
    for i, value in enumerate(values):
        if any(same(value, other) for other in values[:i]):
            raise ConfigError(f"{name}: choices must differ, but {literal(value)} is given twice")
    return Choices(tuple(values))


def _check_few(name: str, choices: list[Any]) -> None:
    if len(choices) > MOST_CHOICES:
        raise ConfigError(f"{name}: choices must be at most {MOST_CHOICES}, but are {len(choices)}; write int: [low, high]")


def _couple(name: str, kind: str, rows: Any, condition: Expression | None) -> Couple:
    form = "{choices: [{model.depth: 2, model.embed_dim: 256}, {model.depth: 8, model.embed_dim: 128}]}"
    if kind != "choices" or not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ConfigError(f"{name}: fields that move together must be given as {form}")
    _check_few(name, rows)
    paths = tuple(map(str, rows[0]))
    for path in paths:
        try:
            _check_path(path)
        except ConfigError as error:
            raise ConfigError([f"{name}: {problem}" for problem in error.problems]) from None
    made: list[tuple[Any, ...]] = []
    for row in rows:
        if set(row) != set(paths):
            raise ConfigError(
                f"{name}: every choice must set the same fields {', '.join(paths)}, but got {', '.join(map(str, row))}"
            )
        values = tuple(row[path] for path in paths)
        if any(isinstance(value, list | dict) for value in values):
            raise ConfigError(f"{name}: values must be numbers, texts, true, false or null, but got {row!r}")
        if any(all(map(same, values, other)) for other in made):
            raise ConfigError(f"{name}: choices must differ, but {row!r} is given twice")
        made.append(values)
    return Couple(name, paths, tuple(made), condition=condition)


def _range(name: str, kind: str, value: Any, rule: Mapping[str, Any]) -> tuple[Any, Any, Any, bool]:
    """Low, high, step and log of an int or float rule."""
    numbers = int if kind == "int" else (int, float)
    pair = isinstance(value, list) and len(value) == 2
    if not pair or any(isinstance(v, bool) or not isinstance(v, numbers) for v in value):
        kind_of = "whole numbers" if kind == "int" else "numbers"
        raise ConfigError(f"{name}: {kind} must be [low, high] in {kind_of}, but got {value!r}")
    (low, high), step, log = value, rule.get("step"), rule.get("log", False)
    if not math.isfinite(high - low):
        raise ConfigError(f"{name}: low, high and the way between them must be finite, but got [{low}, {high}]")
    if low > high:
        raise ConfigError(f"{name}: the range is empty: low must be at most high, but got [{low}, {high}]")
    if not isinstance(log, bool):
        raise ConfigError(f"{name}: log must be true or false, but got {log!r}")
    if log and low <= 0:
        raise ConfigError(f"{name}: a log range must start above 0, but got [{low}, {high}]")
    if "multiple_of" in rule and (log or step is not None):
        raise ConfigError(f"{name}: multiple_of and {'log' if log else 'step'} exclude each other")
    if log and step is not None:
        raise ConfigError(f"{name}: step and log exclude each other")
    if step is not None and (isinstance(step, bool) or not isinstance(step, numbers) or not 0 < step < math.inf):
        raise ConfigError(f"{name}: step must be above 0, but got {step!r}")
    if (high - low) / (step or 1) > MOST_STEPS and (kind == "int" or step is not None):
        raise ConfigError(f"{name}: must have at most 2**53 steps, but got [{low}, {high}]; give it a larger step")
    if kind == "float":
        low, high, step = float(low), float(high), None if step is None else float(step)
    if step is not None:
        # The last value that the steps reach; Optuna would lower it with a warning.
        start, width = Decimal(str(low)), Decimal(str(step))
        high = type(low)(start + (Decimal(str(high)) - start) // width * width)
    return low, high, step, log
