"""When a trial is not worth training on: every rule is a function of what the study knows, and gives its reason or None.

A resumed sweep decides as the one before it would have, because nothing is kept outside the study and the run folders.
`best` below is a trial's best value of the first objective up to an epoch, with its sign turned so that larger is better.

ASHA: Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020. Hyperband: Li et al., JMLR 2018.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from statten.config import SearchConfig

Row = Mapping[str, float]
"""Metrics of one epoch."""
FINISHED_FOR_FRONT = 4
"""Finished trials from which one can say how much others still improved after an epoch."""
SETTLING_STEPS = 100
"""Optimizer steps before which a silent layer is no dead one: weights move fast, and BatchNorm's running statistics, by which
validation runs, are those of the last 1/momentum = 10 steps. An epoch of a small dataset has few."""


@dataclass(frozen=True)
class Rival:
    """Another trial of the sweep."""

    number: int
    values: Mapping[int, float]
    """First objective by epoch."""


@dataclass(frozen=True)
class Done:
    """A trial that was trained to its end, and may be on the front."""

    rows: Sequence[Row]
    values: Sequence[float]
    """Objectives in their order."""


def underperforming(search: SearchConfig, epochs: int, me: Rival, rivals: Iterable[Rival]) -> str | None:
    """Why the first objective is too poor to go on, by `search.stopping`: asha, hyperband or median.

    Args:
        rivals: the sweep's trials; they are not looked at after an epoch at which nobody is stopped.
    """
    epoch, eta, grace, brackets = max(me.values), search.reduction_factor, search.grace_epochs, 1
    sign = 1 if search.directions[search.metric] == "max" else -1
    if search.stopping == "hyperband":
        brackets = 1 + max(0, int(math.log(max(1, epochs / grace), eta) + 1e-9))
        grace *= eta ** (me.number % brackets)
    if epoch < grace or (search.stopping != "median" and not _is_rung(epoch, grace, eta)):
        return None
    own = _best(me, epoch, sign)
    others = [
        _best(rival, epoch, sign)
        for rival in rivals
        if rival.number != me.number and rival.number % brackets == me.number % brackets and max(rival.values) >= epoch
    ]
    if search.stopping == "median":
        if len(others) < search.startup_trials or own >= statistics.median(others):
            return None
        return f"stopped at epoch {epoch}: {search.metric} {sign * own:.4g} is below the median of {len(others)} trials"
    kept = max(1, (len(others) + 1) // eta)
    if sum(value > own for value in others) < kept:
        return None
    return (
        f"stopped at epoch {epoch}: {search.metric} {sign * own:.4g} is not among the best {kept} of {len(others) + 1} "
        f"at this rung"
    )


def _best(rival: Rival, epoch: int, sign: int) -> float:
    return max(sign * value for e, value in rival.values.items() if e <= epoch)


def _is_rung(epoch: int, grace: int, eta: int) -> bool:
    while grace < epoch:
        grace *= eta
    return grace == epoch


def dominated(search: SearchConfig, rows: Sequence[Row], done: Sequence[Done]) -> str | None:
    """Why a trial's best case cannot enter the Pareto front.

    The best case of each objective is its present value, better by the most that any finished trial still gained after the
    same epoch.
    """
    epoch, now = len(rows), rows[-1]
    if epoch < search.grace_epochs or len(done) < FINISHED_FOR_FRONT:
        return None
    signs = [1 if direction == "max" else -1 for direction in search.directions.values()]
    best_case = []
    for index, (metric, sign) in enumerate(zip(search.directions, signs, strict=True)):
        gains = [sign * (d.values[index] - d.rows[epoch - 1][metric]) for d in done if len(d.rows) >= epoch]
        best_case.append(sign * now[metric] + max([0.0, *gains]))
    for d in done:
        values = [sign * value for sign, value in zip(signs, d.values, strict=True)]
        if all(v >= b for v, b in zip(values, best_case, strict=True)) and values != best_case:
            shown = ", ".join(f"{metric} {s * b:.4g}" for metric, s, b in zip(search.directions, signs, best_case, strict=True))
            return f"stopped at epoch {epoch}: even its best case ({shown}) is not on the front"
    return None


def unhealthy(search: SearchConfig, rows: Sequence[Row], classes: int) -> str | None:
    """Why a trial's network cannot recover: in two epochs running a layer is dead or saturated, or the loss far above guessing.

    Epochs that end before SETTLING_STEPS prove nothing, and nor do those of an older version, which have no `steps`.
    """
    epoch, last = len(rows), rows[-2:]
    if epoch <= search.grace_epochs or len(last) < 2 or last[0].get("steps", 0) < SETTLING_STEPS:
        return None
    if all(row["val/loss"] > 10 * math.log(max(classes, 2)) for row in last):
        return f"stopped at epoch {epoch}: it diverges, val/loss {last[1]['val/loss']:.4g} is ten times that of guessing"
    low, high = search.firing_range or (-1.0, 2.0)
    for name, rate in last[1].items():
        if name.startswith("firing_rate/") and all(not low <= row[name] <= high for row in last):
            layer, what = name.removeprefix("firing_rate/"), "dead" if rate < low else "saturated"
            return f"stopped at epoch {epoch}: layer {layer} is {what}, its firing rate is {rate:.2g}"
    return None
