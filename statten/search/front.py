"""Fronts of points, how much of the plane they dominate, and a proxy that costs nothing beside them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from statten.config import Config
from statten.metrics.energy import operations
from statten.records.runs import Inherited
from statten.space.space import Space


def objectives(config: Config) -> dict[str, str]:
    """What points are compared by, metric to max or min: the config's objectives where they are several, else loss and energy.

    Loss and not top-1, for of few samples top-1 is full of ties.
    """
    directions = config.search.directions
    return directions if len(directions) > 1 else {"val/loss": "min", "energy_uj": "min"}


def front(values: npt.ArrayLike, directions: Sequence[str]) -> list[int]:
    """Positions of the values that no others dominate; of equal ones the first."""
    costs = _costs(values, directions)
    order = np.lexsort(costs.T[::-1])  # who dominates another comes before it
    found: list[int] = []
    for i in order:
        if not any((costs[j] <= costs[i]).all() for j in found):
            found.append(int(i))
    return found


def hypervolume(values: npt.ArrayLike, among: npt.ArrayLike, directions: Sequence[str]) -> float | None:
    """The share of the box around all points that some of them dominate, from 0 to 1; None for other than two objectives.

    Args:
        values: the points that count, [n, 2].
        among: all points, whose worst and best values are the corners of the box, [m, 2].
        directions: max or min, of each objective.
    """
    if len(directions) != 2:
        return None
    costs, all_costs = _costs(values, directions), _costs(among, directions)
    low, high = all_costs.min(0), all_costs.max(0)
    scaled = (costs - low) / np.where(high > low, high - low, 1.0)
    area, height = 0.0, 1.0
    for x, y in sorted(map(tuple, scaled.clip(0, 1))):
        if y < height:
            area += (1 - x) * (height - y)
            height = y
    return float(area)


def _costs(values: npt.ArrayLike, directions: Sequence[str]) -> np.ndarray:
    signs = np.array([1.0 if direction == "min" else -1.0 for direction in directions])
    return np.asarray(values, dtype=np.float64).reshape(-1, len(directions)) * signs


def proxy(config: Config) -> float:
    """How good a network is likely to be, by its size alone: log T + 2 log D."""
    return math.log(config.model.timesteps) + 2 * math.log(config.model.embed_dim)


def flops(config: Config) -> int:
    """Multiply-accumulates of a sample if all inputs were dense, all timesteps."""
    return config.model.timesteps * sum(operation.flops for operation in operations(config.model))


def compared(space: Space, rows: Sequence[Inherited], directions: Mapping[str, str]) -> dict[str, Any]:
    """The front of evaluated points, and what a proxy without any training says of them.

    Args:
        space: whose points they are.
        rows: evaluated points.
        directions: what they are compared by, metric to max or min.

    Returns:
        objectives, evaluated, front (rows), hypervolume, and proxy: formula, tau (Kendall's, of the proxy with the first
        objective; above 0 where they agree), front (numbers of the points that the proxy would choose by it and by FLOPs),
        hypervolume (what these dominate, with the values that were measured).
    """
    from scipy.stats import kendalltau

    ways = list(directions.values())
    values = [[row["metrics"][metric] for metric in directions] for row in rows]
    best = front(values, ways)
    configs = [space.config(row["point"]) for row in rows]
    guesses = [[proxy(config), flops(config)] for config in configs]
    chosen = front(guesses, ["max", "min"])
    first = -_costs(values, ways)[:, 0]
    tau = float(kendalltau([guess for guess, _ in guesses], first).statistic) if len(rows) > 1 else math.nan
    return {
        "objectives": dict(directions),
        "evaluated": len(rows),
        "front": [rows[i] for i in best],
        "hypervolume": hypervolume([values[i] for i in best], values, ways),
        "proxy": {
            "formula": "log T + 2 log D",
            "tau": tau if math.isfinite(tau) else None,
            "front": sorted(rows[i]["number"] for i in chosen),
            "hypervolume": hypervolume([values[i] for i in chosen], values, ways),
        },
    }
