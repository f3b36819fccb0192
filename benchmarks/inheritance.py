"""Whether weights that are inherited rank (timesteps, block size) as training from nothing does, and what that costs.

python benchmarks/inheritance.py [--seeds 2] [--epochs 8] [--output benchmarks/inheritance-cpu.json]

Timesteps and block size own no weights. A parent is trained once at T = 4, b = 2; every pair then takes its weights and is

    as it is       evaluated without training
    recalibrated   evaluated with BatchNorm's statistics found anew on training batches
    one epoch      trained for one epoch, with the schedule of one epoch
    two epochs     trained for two

and the order of the pairs by validation top-1 is compared with their order after stand-alone training: Kendall's tau-b over the
means of the seeds. The cost is the time of the parent and of all pairs over the time of stand-alone training.
"""

import argparse
import copy
import logging
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import kendalltau

from statten.config import Config, load_config, with_overrides
from statten.data import make_loaders
from statten.evaluation.grid import recalibrate_norms
from statten.files import write_json
from statten.machine import environment
from statten.models.backbones.base import Backbone
from statten.training.loop import fit, make_state, validate

PAIRS = [(T, b) for T in (1, 2, 4, 6, 8) for b in range(1, T + 1) if T % b == 0]
PARENT = (4, 2)
BASE = {"model.depth": 1, "model.embed_dim": 64, "data.validation": 0.4}
WAYS = ("as it is", "recalibrated", "one epoch", "two epochs")


def train(config: Config, weights: dict[str, Any] | None = None) -> tuple[Any, float, float]:
    """A trained state, its best validation top-1 and the seconds of CPU time, which another process does not change."""
    began, state = time.process_time(), make_state(config)
    if weights is not None:
        state.model.load_state_dict(weights)
    best = fit(state, make_loaders(config, 0, 1), config)
    return state, best["val/top1"], time.process_time() - began


def inherit(way: str, config: Config, weights: dict[str, Any]) -> tuple[float, float]:
    """Validation top-1 and seconds of a pair that starts from the parent's weights."""
    if way.endswith(("epoch", "epochs")):
        short = with_overrides(config, {"train.epochs": 1 if way == "one epoch" else 2})
        return train(short, copy.deepcopy(weights))[1:]
    began, state = time.process_time(), make_state(config)
    assert isinstance(state.model, Backbone)
    state.model.load_state_dict(copy.deepcopy(weights))
    if way == "recalibrated":
        recalibrate_norms(state.model, config, 20)
    found = validate(state.model, make_loaders(config, 0, 1).validation, config)["val/top1"]
    return found, time.process_time() - began


def main() -> None:
    """Train, inherit, and print a table of pairs and one of ways."""
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    alone: dict[tuple[int, int], list[float]] = {pair: [] for pair in PAIRS}
    inherited: dict[str, dict[tuple[int, int], list[float]]] = {way: {pair: [] for pair in PAIRS} for way in WAYS}
    seconds = dict.fromkeys(("alone", "parent", *WAYS), 0.0)
    for seed in range(options.seeds):
        base = load_config("digits", {**BASE, "train.epochs": options.epochs, "train.seed": seed})
        at = {(T, b): with_overrides(base, {"model.timesteps": T, "model.block_size": b}) for T, b in PAIRS}
        parent, _, took = train(at[PARENT])
        seconds["parent"] += took
        weights = parent.model.state_dict()
        for pair, config in at.items():
            _, top1, took = train(config)
            alone[pair].append(top1)
            seconds["alone"] += took
            for way in WAYS:
                top1, took = inherit(way, config, weights)
                inherited[way][pair].append(top1)
                seconds[way] += took
            shown = "  ".join(f"{way} {inherited[way][pair][-1]:6.2f}" for way in WAYS)
            print(f"seed {seed}  T={pair[0]} b={pair[1]}  alone {alone[pair][-1]:6.2f}  {shown}", flush=True)
    order = [mean(alone[pair]) for pair in PAIRS]
    seeds = [kendalltau([alone[p][a] for p in PAIRS], [alone[p][b] for p in PAIRS]).statistic
             for a in range(options.seeds) for b in range(a)]  # fmt: skip
    if seeds:
        print(f"stand-alone training under two seeds agrees with itself: tau {mean(seeds):.2f}")
    rows = []
    for way in WAYS:
        found = [mean(inherited[way][pair]) for pair in PAIRS]
        tau = kendalltau(order, found).statistic
        cost = (seconds["parent"] + seconds[way]) / seconds["alone"]
        best = PAIRS[found.index(max(found))]
        lost = max(order) - order[PAIRS.index(best)]
        print(
            f"{way:13} tau {tau:5.2f}  cost {cost:.2f} of stand-alone  its best pair {best} is {lost:.2f} points below the best"
        )
        rows.append({"way": way, "tau": tau, "cost": cost, "best": best, "lost": lost,
                     "top1": {f"{T},{b}": inherited[way][T, b] for T, b in PAIRS}})  # fmt: skip
    if options.output:
        document = {
            "benchmark": "inheritance", "epochs": options.epochs, "parent": PARENT, "pairs": PAIRS,
            "alone": {f"{T},{b}": alone[T, b] for T, b in PAIRS}, "tau_between_seeds": seeds, "results": rows,
            "seconds": seconds, "hardware": environment(),
        }  # fmt: skip
        write_json(options.output, document)


if __name__ == "__main__":
    main()
