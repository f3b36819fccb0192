"""How many epochs of training a search costs until it has a trial as good as the whole grid's: grid, default search, random.

python benchmarks/search.py collect [--seeds 5]     # trains every configuration under every seed; an hour of one core
python benchmarks/search.py compare                 # replays the searches on what was collected; a minute

Training is deterministic on a CPU, so a table of every configuration's validation top-1 after every epoch replaces training:
`compare` runs the real searcher, sampler and stopping rules on it, one trial at a time, and counts the epochs that they would
train until a trial's best is within 0.5 points of the grid's best. Of each seed of training, several seeds of the sampler.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
from ray.tune.search import Searcher

from statten.config import load_config, with_overrides
from statten.data import make_loaders
from statten.files import write_json
from statten.machine import environment
from statten.search import Sweep, make_space
from statten.search.searcher import OptunaSearcher
from statten.storage.run import Run, best_row
from statten.training.loop import NoCallback, TrainState, fit, make_state

# search_spaces/digits.yaml without the widest networks: 6 (T, b) x 2 depths x 3 widths.
SPACE = {
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 2]},
    "model.embed_dim": {"int": [32, 96], "step": 32},
}
TABLE = Path(__file__).with_name("search-table.jsonl")
EPOCHS, MARGIN = 8, 0.5
STRATEGIES: dict[str, dict[str, Any]] = {
    "default": {},
    "random": {"search.sampler": "random", "search.scheduler": "none"},
}


class Curve(NoCallback):
    """Keeps the metrics of every epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def epoch(self, state: TrainState) -> None:
        """Keep them."""
        self.rows.append(dict(state.metrics))


def collect(seeds: int) -> None:
    """Train what the table does not hold yet, seed by seed."""
    known = {key(row["seed"], row["point"]) for row in table()}
    base = load_config("digits", {"train.epochs": EPOCHS})
    points = list(make_space(SPACE, base).points())
    torch.set_num_threads(1)
    for seed in range(seeds):
        for point in points:
            if key(seed, point) in known:
                continue
            config, curve, began = with_overrides(base, {**point, "train.seed": seed}), Curve(), time.monotonic()
            fit(make_state(config), make_loaders(config, 0, 1), config, curve)
            row: dict[str, Any] = {"seed": seed, "point": point, "top1": [round(r["val/top1"], 4) for r in curve.rows]}
            row["loss"] = [round(r["val/loss"], 6) for r in curve.rows]
            row["seconds"] = round(time.monotonic() - began, 2)
            with TABLE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(seed, point, max(row["top1"]), row["seconds"], flush=True)


def compare(sampler_seeds: int, output: Path | None) -> None:
    """Print the epochs of each strategy, by seed of training."""
    rows = table()
    curves = {key(row["seed"], row["point"]): row for row in rows}
    points = list(make_space(SPACE, load_config("digits")).points())
    seeds = [s for s in range(100) if all(key(s, point) in curves for point in points)]
    grid = len(points) * EPOCHS
    print(f"grid: {len(points)} configurations x {EPOCHS} epochs = {grid}; {len(seeds)} seeds x {sampler_seeds} of the sampler")
    results = []
    for seed in seeds:
        best = max(max(curves[key(seed, point)]["top1"]) for point in points)
        good = sum(max(curves[key(seed, point)]["top1"]) >= best - MARGIN for point in points)
        for name, fields in STRATEGIES.items():
            found = [replay(curves, seed, s, fields, best - MARGIN) for s in range(sampler_seeds)]
            results.append({"seed": seed, "best": best, "within": good, "strategy": name, "epochs": found})
            print(f"seed {seed}  grid's best {best:.2f} %, {good} of {len(points)} within {MARGIN}  {name:8} "
                  f"mean {mean(found):6.1f} median {median(found):6.1f} most {max(found)}", flush=True)  # fmt: skip
    for name in STRATEGIES:
        every = [epochs for row in results if row["strategy"] == name for epochs in row["epochs"]]
        print(f"{name:8} mean {mean(every):6.1f} epochs, {mean(every) / grid:.3f} of the grid; median {median(every):.1f}; "
              f"nine of ten within {quantiles(every, n=10)[-1]:.0f}")  # fmt: skip
    if output:
        document = {"benchmark": "search", "grid_epochs": grid, "margin": MARGIN, "results": results, "hardware": environment()}
        write_json(output, document)


def replay(curves: dict[str, Any], seed: int, sampler_seed: int, fields: dict[str, Any], target: float) -> int:
    """Epochs that a search trains until an epoch reaches the target, with curves in the place of training."""
    config = load_config("digits", {"train.epochs": EPOCHS, "search.trials": 10_000, "search.seed": sampler_seed, **fields})
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep.create(Path(folder) / "sweep", config, make_space(SPACE, config))
        epochs = 0
        with sweep.writing() as attempt:
            searcher = OptunaSearcher(sweep, attempt)
            while (started := searcher.suggest("trial")) != Searcher.FINISHED:
                assert isinstance(started, dict)
                run = Run(Path(started["run"]))
                origin = run.info["origin"]
                assert origin is not None
                curve = curves[key(seed, origin["point"])]
                for epoch in range(1, EPOCHS + 1):
                    row = {"epoch": epoch, "val/top1": curve["top1"][epoch - 1], "val/loss": curve["loss"][epoch - 1]}
                    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    epochs += 1
                    if row["val/top1"] >= target:
                        return epochs
                    if searcher.judge("trial", row):
                        break
                else:
                    write_json(run.path / "result.json", {"state": "finished", "best": best_row(run.metrics())})
                    searcher.on_trial_complete("trial")
    return epochs


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
    parser.add_argument("--sampler-seeds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.what == "collect":
        collect(options.seeds)
    else:
        compare(options.sampler_seeds, options.output)
