"""How good a front a search chooses for so many epochs of training: a supernet's beside those of `tune`, random and a proxy.

python benchmarks/supernet.py train [--seeds 5]     # supernets of 8 and of 24 epochs under every seed; ten minutes of a core
python benchmarks/supernet.py compare [--output F]  # replays the searches on the table of benchmarks/search.py; some minutes
python benchmarks/supernet.py picture F             # points of the first seed beside the same networks trained by themselves

The space is that of benchmarks/search.py, whose table has what every configuration comes to when it is trained by itself for 8
epochs, under five seeds. The mean over seeds is the truth here: a search chooses points by what it has seen under one seed, and
what they dominate is measured with the truth, as a share of what the best front does. Cost is FLOPs of a sample at all
timesteps, which needs no training; the other objective is validation loss. A supernet's 36 points are evaluated with inherited
weights, and none of them is trained further.
"""

import argparse
import json
import logging
import tempfile
import time
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from ray.tune.search import Searcher
from scipy.stats import kendalltau
from search import SPACE, key, table

from statten.config import load_config, with_overrides
from statten.data import make_loaders
from statten.display.plots import figure, save_figure
from statten.files import write_json
from statten.machine import environment
from statten.search import Sweep, make_space
from statten.search.front import flops, front, hypervolume, proxy
from statten.search.searcher import OptunaSearcher
from statten.search.supernet import planned
from statten.storage.run import Run
from statten.training.loop import fit, make_state, validate
from statten.training.subnetworks import Subnetworks, ready

TABLE = Path(__file__).with_name("supernet-table.jsonl")
LENGTHS = (8, 24)
"""Epochs of a supernet."""
ALONE = 8
"""Epochs of a configuration by itself."""
BUDGETS = (24, 72, 144, 192)
"""Epochs of all trials of a search."""
WAYS = ["min", "min"]
SEARCHES: dict[str, dict[str, Any]] = {
    "tune (TPE, front)": {},
    "NSGA-II": {"search.sampler": "nsga2", "search.scheduler": "none", "search.startup_trials": 8},
    "random": {"search.sampler": "random", "search.scheduler": "none"},
}


def train(seeds: int) -> None:
    """Train the supernets that the table does not hold yet, and evaluate all of their points."""
    there = {(row["seed"], row["epochs"]) for row in read(TABLE)}
    torch.set_num_threads(1)
    for epochs in LENGTHS:
        for seed in range(seeds):
            if (seed, epochs) in there:
                continue
            base = load_config("digits", {"train.epochs": epochs, "train.seed": seed})
            config, space, watched, _ = planned(base, make_space(SPACE, base))
            state, loaders, began = make_state(config), make_loaders(config), time.process_time()
            few = {"largest": watched["largest"]}
            fit(state, loaders, config, parts=Subnetworks(state.model, space, config, few))  # type: ignore[arg-type]
            trained, rows = time.process_time() - began, []
            for point in space.points():
                at = space.config(point)
                found = validate(ready(state.model.state_dict(), at, loaders, state.device), loaders.validation, at)
                rows.append({"point": point, "loss": round(found["val/loss"], 6), "top1": round(found["val/top1"], 4)})
            row = {"seed": seed, "epochs": epochs, "train_seconds": round(trained, 1), "points": rows}
            row["evaluate_seconds"] = round(time.process_time() - began - trained, 1)
            with TABLE.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(seed, epochs, row["train_seconds"], row["evaluate_seconds"], flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a table."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def compare(sampler_seeds: int, output: Path | None) -> None:
    """Print what each way of choosing dominates, and how it orders all points."""
    base = load_config("digits")
    space = make_space(SPACE, base)
    points = list(space.points())
    curves = {key(row["seed"], row["point"]): row for row in table()}
    seeds = [s for s in range(100) if all(key(s, point) in curves for point in points)]
    alone = np.array([[min(curves[key(s, point)]["loss"]) for point in points] for s in seeds])
    cost = np.array([flops(space.config(point)) for point in points]) / 1e6
    truth = np.stack([alone.mean(0), cost], 1)
    ideal = hypervolume(truth, truth, WAYS)
    assert ideal is not None

    def share(chosen: list[int]) -> float:
        return (hypervolume(truth[chosen], truth, WAYS) or 0.0) / ideal

    results: list[dict[str, Any]] = []

    def say(name: str, epochs: int, shares: list[float], **more: float) -> None:
        row = {"choice": name, "epochs": epochs, "share": mean(shares), "least": min(shares), "chosen": len(shares), **more}
        results.append(row)
        extra = "".join(f"  {what} {value:.3g}" for what, value in more.items())
        print(f"{name:22} {epochs:4} epochs  share {row['share']:.3f}  least {row['least']:.3f}{extra}", flush=True)

    ceiling = mean(kendalltau(alone[a], alone[b]).statistic for a, b in combinations(range(len(seeds)), 2))
    whole = [share(front(np.stack([losses, cost], 1), WAYS)) for losses in alone]
    say("the whole grid", ALONE * len(points), whole, tau=ceiling)
    guesses = np.array([proxy(space.config(point)) for point in points])
    tau = mean(kendalltau(guesses, -losses).statistic for losses in alone)
    say("log T + 2 log D", 0, [share(front(np.stack([-guesses, cost], 1), WAYS))], tau=tau)
    for epochs in LENGTHS:
        shares, taus, better, cpu = [], [], [], []
        for row in read(TABLE):
            if row["epochs"] == epochs:
                found = np.array([{key(0, r["point"]): r["loss"] for r in row["points"]}[key(0, point)] for point in points])
                shares.append(share(front(np.stack([found, cost], 1), WAYS)))
                taus.append(mean(kendalltau(found, losses).statistic for losses in alone))
                better.append(float((found <= alone.mean(0)).mean()))
                cpu.append(row["evaluate_seconds"] / row["train_seconds"] * epochs)
        say("supernet", epochs, shares, tau=mean(taus), better=mean(better), evaluation_epochs=mean(cpu))
    for name, fields in SEARCHES.items():
        at: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
        for seed in seeds:
            for sampler_seed in range(sampler_seeds):
                for budget, chosen in replay(curves, seed, sampler_seed, fields).items():
                    at[budget].append(share([points.index(point) for point in chosen]) if chosen else 0.0)
        for budget, shares in at.items():
            say(name, budget, shares)
    if output:
        document = {"benchmark": "supernet", "ideal": ideal, "seeds": len(seeds), "results": results}
        write_json(output, {**document, "hardware": environment()})


def picture(path: Path) -> None:
    """Draw a supernet's points, and the same networks trained by themselves, in the plane of cost and validation loss."""
    space = make_space(SPACE, load_config("digits"))
    points = list(space.points())
    row = next(row for row in read(TABLE) if (row["seed"], row["epochs"]) == (0, LENGTHS[-1]))
    inherited = {key(0, found["point"]): found["loss"] for found in row["points"]}
    curves = {key(found["seed"], found["point"]): found for found in table()}
    cost = [flops(space.config(point)) / 1e6 for point in points]
    kinds = (
        (f"slices of one supernet, {LENGTHS[-1]} epochs in all", [inherited[key(0, p)] for p in points], "tab:red", "o"),
        (f"each trained by itself, {ALONE * len(points)} epochs in all", [min(curves[key(0, p)]["loss"]) for p in points],
         "tab:blue", "x"),
    )  # fmt: skip
    made = figure(7.0, 4.2)
    axes = made.add_subplot()
    for name, losses, colour, marker in kinds:
        axes.scatter(cost, losses, s=22, color=colour, marker=marker, label=name, zorder=3)
        best = sorted(front(list(zip(losses, cost, strict=True)), WAYS), key=lambda i: cost[i])
        axes.step([cost[i] for i in best], [losses[i] for i in best], where="post", color=colour, linewidth=1, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xlabel("multiply-accumulates of a sample if all inputs were dense, all timesteps (million)")
    axes.set_ylabel("validation loss")
    axes.set_title("digits: 36 networks, seed 0, and the front of each kind", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(made, path)


def replay(curves: dict[str, Any], seed: int, sampler_seed: int, fields: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """The front that a search of two objectives has after each of BUDGETS, with curves in the place of training."""
    objectives = {"search.objectives": ["val/loss", "energy_uj"], "search.firing_range": None}
    config = load_config("digits", {
        "train.epochs": ALONE, "search.trials": 10_000, "search.seed": sampler_seed, **objectives, **fields,
    })  # fmt: skip
    space = make_space(SPACE, config)
    found: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep.create(Path(folder) / "sweep", config, space)
        epochs, done = 0, list[tuple[dict[str, Any], float, float]]()
        with sweep.writing() as attempt:
            searcher = OptunaSearcher(sweep, attempt)
            while len(found) < len(BUDGETS) and (started := searcher.suggest("trial")) != Searcher.FINISHED:
                assert isinstance(started, dict)
                run = Run(Path(started["run"]))
                point = run.origin["point"]
                curve, cost = curves[key(seed, point)], flops(with_overrides(config, point)) / 1e6
                for epoch in range(1, ALONE + 1):
                    row = {"epoch": epoch, "val/top1": curve["top1"][epoch - 1], "val/loss": curve["loss"][epoch - 1]}
                    row["energy_uj"] = cost
                    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    epochs += 1
                    for budget in BUDGETS:
                        if epochs == budget:
                            found[budget] = _chosen(done)
                    if searcher.judge("trial", row):
                        break
                else:
                    best = min(curve["loss"])
                    done.append((point, best, cost))
                    finished = {"epoch": ALONE, "val/top1": max(curve["top1"]), "val/loss": best, "energy_uj": cost}
                    write_json(run.path / "result.json", {"state": "finished", "best": finished})
                    searcher.on_trial_complete("trial")
                    for budget in BUDGETS:  # a trial that ends here counts
                        if epochs == budget:
                            found[budget] = _chosen(done)
    return {budget: found.get(budget, _chosen(done)) for budget in BUDGETS}


def _chosen(done: list[tuple[dict[str, Any], float, float]]) -> list[dict[str, Any]]:
    return [done[i][0] for i in front([(loss, cost) for _, loss, cost in done], WAYS)] if done else []


if __name__ == "__main__":
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--seeds", type=int, default=5)
    comparing = commands.add_parser("compare")
    comparing.add_argument("--sampler-seeds", type=int, default=4)
    comparing.add_argument("--output", type=Path)
    drawing = commands.add_parser("picture")
    drawing.add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "picture":
        picture(given.file)
    elif given.command == "train":
        train(given.seeds)
    else:
        compare(given.sampler_seeds, given.output)
