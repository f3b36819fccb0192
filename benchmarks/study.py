"""What a search costs the driver as its study grows: time to ask, judge and tell, and memory, with trials that nobody trains.

python benchmarks/study.py [--trials 5000] [--epochs 6] [--scheduler asha] [--objectives val/top1 energy_uj] [--output FILE]

The searcher, the study and the folders are the real ones; what a worker would write, an epoch's line and a result, is made up.
Times are CPU time of this process, medians of the last 50 trials before each mark.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from statten.config import load_config
from statten.files import write_json
from statten.machine import peak_memory
from statten.search.searcher import OptunaSearcher
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.run import Run, best_row

SPACE = {
    "model.timesteps": {"choices": [1, 2, 4, 8]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 8]},
    "model.embed_dim": {"int": [32, 512], "step": 32},
    "train.lr": {"float": [1e-4, 1e-2], "log": True},
}
MARKS = (100, 1000, 5000)
LAST = 50


class Stopwatch:
    """CPU milliseconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent = defaultdict[str, list[float]](list)

    def __call__(self, what: str, function: Any, *arguments: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments)
        finally:
            self.spent[what].append(1000 * (time.process_time() - began))


def epoch_row(point: dict[str, Any], epoch: int, draw: random.Random) -> dict[str, float]:
    """An epoch's metrics: better with size, time and a learning rate near 3e-3, and noise."""
    size = point["model.depth"] * point["model.embed_dim"]
    fit = 1 - abs(point["train.lr"] - 3e-3) * 50
    top1 = 95 * (1 - 0.5**epoch) * min(1.0, 0.5 + size / 2048) * max(fit, 0.1) + draw.gauss(0, 1)
    energy = 1e-3 * size * point["model.timesteps"]
    return {"epoch": epoch, "val/top1": top1, "val/loss": 1.0, "energy_uj": energy, "seconds": 1.0}


def simulate(folder: Path, trials: int, epochs: int, fields: dict[str, Any]) -> list[dict[str, float]]:
    """Run a sweep of so many trials through the searcher; what the trials before each mark cost."""
    config = load_config("digits", {"train.epochs": epochs, "search.trials": trials, "search.firing_range": None, **fields})
    sweep, watch, draw, found = Sweep.create(folder, config, make_space(SPACE, config)), Stopwatch(), random.Random(0), []
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        for number in range(1, trials + 1):
            work = watch("ask", searcher.suggest, "id")
            assert work != Searcher.FINISHED
            run, stopped = Run(Path(work["run"])), False
            point = run.origin["point"]
            for epoch in range(1, epochs + 1):
                with (run.path / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(epoch_row(point, epoch, draw)) + "\n")
                if stopped := watch("judge", searcher.judge, "id", {"epoch": epoch}):
                    break
            if not stopped:
                rows = run.metrics()
                best = {**best_row(rows), "checkpoint": "checkpoints/none"}
                write_json(run.path / "result.json", {"state": "finished", "best": best, "last": rows[-1], "epochs": len(rows)})
                watch("tell", searcher.on_trial_complete, "id")
            if number in (*(mark for mark in MARKS if mark < trials), trials):
                medians = {f"{what}_ms": round(statistics.median(times[-LAST:]), 2) for what, times in watch.spent.items()}
                row = {"trials": number, **medians, "cpu_s": round(sum(map(sum, watch.spent.values())) / 1000, 1),
                       "peak_mib": round(peak_memory() / 2**20)}  # fmt: skip
                print(json.dumps(row), flush=True)
                found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scheduler", default="auto")
    parser.add_argument("--objectives", nargs="+", default=["val/top1"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    fields = {"search.scheduler": options.scheduler, "search.objectives": options.objectives}
    with tempfile.TemporaryDirectory() as folder:
        rows = simulate(Path(folder) / "s", options.trials, options.epochs, fields)
    if options.output:
        write_json(options.output, {"epochs": options.epochs, **fields, "rows": rows})


if __name__ == "__main__":
    main()
