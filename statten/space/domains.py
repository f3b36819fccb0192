"""The values that one dimension of a search space can take: a list, evenly spaced numbers, or an interval.

Each knows how to be asked of an Optuna trial, and what is left of it when only some of its values are allowed.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# An interval is probed at so many points, and the ends of its allowed part are then found by halving.
PROBES = 33
HALVINGS = 50


class Suggests(Protocol):
    """The part of an Optuna trial that a space uses."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...


def same(left: Any, right: Any) -> bool:
    """Whether two values are one choice: 4 and 4.0 are, 1 and true are not."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


@dataclass(frozen=True)
class Choices:
    """One of some values, which have no order. `param` is what Optuna calls a value."""

    values: tuple[Any, ...]
    size_is_finite = True

    def __len__(self) -> int:
        return len(self.values)

    def items(self) -> Iterable[Any]:
        """Every value."""
        return self.values

    def probes(self) -> Iterable[Any]:
        """Values that stand for all."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        return any(same(value, one) for one in self.values)

    def settled(self, value: Any) -> Any:
        """A value that it holds, as it is written here."""
        return next(one for one in self.values if same(value, one))

    param = settled

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask a trial."""
        return trial.suggest_categorical(name, self.values)

    def distribution(self) -> "BaseDistribution":
        """Optuna's description."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def random(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.choice(self.values)

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 to below 1."""
        return self.values[int(share * len(self.values))]

    def keep(self, allowed: Callable[[Any], bool]) -> "tuple[Domain, str]":
        """What is left, and how its name tells it from the whole."""
        left = tuple(value for value in self.values if allowed(value))
        return (self, "") if len(left) == len(self.values) else (Choices(left), "|" + ",".join(map(str, left)))


@dataclass(frozen=True)
class Grid:
    """Evenly spaced numbers from low to high, both included."""

    low: Any
    high: Any
    step: Any = 1
    log: bool = False
    """Whether small numbers are tried as often as large ones; whole numbers with step 1 only."""
    size_is_finite = True

    def __len__(self) -> int:
        return round((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step))) + 1

    def items(self) -> Iterable[Any]:
        """Every value."""
        return range(self.low, self.high + 1, self.step) if self._whole else map(self._value, range(len(self)))

    probes = items

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        index = round((value - self.low) / self.step)
        return 0 <= index < len(self) and math.isclose(value, self._value(index), rel_tol=1e-9, abs_tol=1e-9 * self.step)

    def settled(self, value: Any) -> Any:
        """A value that it holds, free of the last digits' noise."""
        return self._value(round((value - self.low) / self.step))

    param = settled

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask a trial."""
        if self._whole:
            return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)
        return self.settled(trial.suggest_float(name, self.low, self.high, step=self.step))

    def distribution(self) -> "BaseDistribution":
        """Optuna's description."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self._whole:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step)
        return FloatDistribution(self.low, self.high, step=self.step)

    def random(self, generator: random.Random) -> Any:
        """A value at random."""
        return self.at(generator.random())

    def at(self, share: float) -> Any:
        """The value at a share of the way, from 0 to below 1."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            return min(max(round(math.exp(low + share * (high - low))), self.low), self.high)
        return self._value(int(share * len(self)))

    def keep(self, allowed: Callable[[Any], bool]) -> "tuple[Domain, str]":
        """What is left, and how its name tells it from the whole; evenly spaced numbers stay so where they can."""
        left = [value for value in self.items() if allowed(value)]
        if len(left) == len(self):
            return self, ""
        if not left:
            return Choices(()), "|"
        gaps = {round((b - a) / self.step) for a, b in itertools.pairwise(left)} or {1}
        if len(gaps) > 1 or (self.log and gaps != {1}):
            return Choices(tuple(left)), "|" + ",".join(map(str, left))
        step = type(self.step)(Decimal(str(self.step)) * gaps.pop())
        return Grid(left[0], left[-1], step, self.log), f"|{left[0]}..{left[-1]}" + (f":{step}" if step != self.step else "")

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int)

    def _value(self, index: int) -> Any:
        if self._whole:
            return self.low + index * self.step
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step)))  # 0.1 + 2 * 0.1 is 0.3, as one would write it


@dataclass(frozen=True)
class Range:
    """Any number from low to high."""

    low: float
    high: float
    log: bool = False

    @property
    def size_is_finite(self) -> bool:
        """Whether it is a single number."""
        return self.low == self.high

    def __len__(self) -> int:
        return 1 if self.size_is_finite else 2

    def items(self) -> Iterable[Any]:
        """Its ends."""
        return (self.low,) if self.size_is_finite else (self.low, self.high)

    def probes(self) -> list[float]:
        """Numbers that stand for all, the ends among them."""
        return [self.at(i / (PROBES - 1)) for i in range(PROBES)] if self.low < self.high else [self.low]

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        return not isinstance(value, bool) and isinstance(value, int | float) and self.low <= value <= self.high

    def settled(self, value: Any) -> Any:
        """A value that it holds."""
        return value

    def param(self, value: Any) -> Any:
        """What Optuna calls a value."""
        return float(value)

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask a trial."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def distribution(self) -> "BaseDistribution":
        """Optuna's description."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def random(self, generator: random.Random) -> Any:
        """A value at random."""
        return self.at(generator.random())

    def at(self, share: float) -> float:
        """The number at a share of the way, from 0 to 1."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        # Rounded, so that a share found from a number leads back to the same number.
        return min(max(float(f"{value:.12g}"), self.low), self.high)

    def keep(self, allowed: Callable[[Any], bool]) -> "tuple[Domain, str]":
        """What is left: the longest run of allowed numbers, asked for as a share of it, so that one name serves all runs."""
        runs = self.runs(allowed)
        if not runs:
            return Choices(()), "|"
        longest, _ = max(runs, key=lambda run: run[1])
        return replace(longest, pieces=len(runs)), "|share"

    def runs(self, allowed: Callable[[Any], bool]) -> list[tuple["Share", int]]:
        """The pieces whose numbers are allowed, each with its number of probes."""
        probes = self.probes()
        verdicts = [allowed(probe) for probe in probes]
        runs, start = [], 0
        for i, verdict in enumerate([*verdicts, False]):
            if not verdict:
                if i > start:
                    low = probes[0] if start == 0 else self._edge(allowed, probes[start], probes[start - 1])
                    high = probes[-1] if i == len(probes) else self._edge(allowed, probes[i - 1], probes[i])
                    runs.append((Share(low, high, self.log), i - start))
                start = i + 1
        return runs

    @staticmethod
    def _edge(allowed: Callable[[Any], bool], inside: float, outside: float) -> float:
        """The last allowed number on the way from an allowed one to one that is not."""
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if allowed(middle) else (inside, middle)
        return inside


@dataclass(frozen=True)
class Share(Range):
    """What a constraint leaves of an interval. Optuna is asked for the share of the way from its low to its high end: the
    ends move with other fields, and under one name Optuna knows one range only."""

    pieces: int = field(default=1, compare=False)
    """Into how many pieces the constraint divides the interval; this is the longest."""

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it; its ends are found by halving, so only nearly."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (self.low <= value <= self.high or any(math.isclose(value, end) for end in (self.low, self.high)))

    def param(self, value: Any) -> Any:
        """What Optuna calls a value."""
        if self.size_is_finite:
            return 0.0
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def suggest(self, trial: Suggests, name: str) -> Any:
        """Ask a trial."""
        return self.at(trial.suggest_float(name, 0.0, 1.0))

    def distribution(self) -> "BaseDistribution":
        """Optuna's description."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(0.0, 1.0)


Domain = Choices | Grid | Range
