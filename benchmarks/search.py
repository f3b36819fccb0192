"""How many epochs of training a search costs until it has a trial as good as the whole grid's: grid, default search, random.

python benchmarks/search.py collect [--seeds 5]     # trains every configuration of search_spaces/digits.yaml; hours of one core
python benchmarks/search.py compare                 # replays the searches on what was collected; a minute

Training is deterministic on a CPU, so a table of every configuration's validation top-1 after every epoch replaces training:
`compare` runs the real searcher, sampler and pruning on it, one trial at a time, and counts the epochs that they would train.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from statten.config import load_config, with_overrides
from statten.data import make_loaders
from statten.search import load_space
from statten.train import fit, make_state

SPACE = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
TABLE = Path(__file__).with_name("search-table.jsonl")
EPOCHS = 8


class Curve:
    """Keeps the metrics of every epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def step(self, state: Any, steps: int) -> None: ...
    def checkpoint(self, state: Any) -> None: ...

    def epoch(self, state: Any) -> None:
        self.rows.append(dict(state.metrics))


def collect(seeds: int) -> None:
    """Train what the table does not hold yet, seed by seed."""
    known = {key(row["seed"], row["point"]) for row in table()}
    base = load_config("digits", {"train.epochs": EPOCHS})
    points = list(load_space(SPACE, base).points())
    torch.set_num_threads(1)
    for seed in range(seeds):
        for point in points:
            if key(seed, point) in known:
                continue
            config, curve, began = with_overrides(base, {**point, "train.seed": seed}), Curve(), time.monotonic()
            fit(make_state(config), make_loaders(config, 0, 1), config, curve)
            row = {"seed": seed, "point": point, "top1": [round(r["val/top1"], 4) for r in curve.rows]}
            row["loss"] = [round(r["val/loss"], 6) for r in curve.rows]
            row["seconds"] = round(time.monotonic() - began, 2)
            with TABLE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(seed, point, max(row["top1"]), row["seconds"], flush=True)


def key(seed: int, point: dict[str, Any]) -> str:
    """What a row of the table is found by."""
    return json.dumps([seed, sorted(point.items())])


def table() -> list[dict[str, Any]]:
    """The rows collected so far."""
    return [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()] if TABLE.is_file() else []


if __name__ == "__main__":
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "compare"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    collect(options.seeds)
