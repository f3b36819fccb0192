"""What a sweep costs per trial beside the training itself, against plain Ray Tune with the same trainable.

python benchmarks/trials.py [--trials 40] [--output benchmarks/trials-cpu.json]

Both run the same number of one-epoch trials of a tiny model, one at a time, in reused Tune actors. A trial's own work is what
its actor spends between taking a trial and handing it back; the rest of the sweep's time, without the first trial, which
starts the actor, is overhead. Plain Ray Tune has random search and no study, no run folder and no TensorBoard of ours.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.tune

from statten.cluster import ray_cluster
from statten.config import load_config
from statten.display import console, use_stderr
from statten.files import write_json
from statten.runs import environment
from statten.search import make_space, tune

FIELDS = {
    "model.depth": 1, "model.embed_dim": 16, "model.num_heads": 1, "model.timesteps": 1, "model.block_size": 1,
    "data.fraction": 0.05, "train.epochs": 1, "train.batch_size": 16, "search.scheduler": "none", "search.max_concurrent": 1,
}  # fmt: skip


def ours(trials: int) -> float:
    """Seconds of the sweep per trial after the first."""
    config = load_config("digits", {**FIELDS, "search.trials": trials})
    with tempfile.TemporaryDirectory() as folder:
        sweep = tune(config, make_space({"train.lr": {"float": [1e-4, 1e-2], "log": True}}, config), Path(folder) / "sweep")
        ends = sorted(sweep.trial(number).path.joinpath("result.json").stat().st_mtime for number in range(trials))
    return (ends[-1] - ends[0]) / (trials - 1)


def plain(trials: int) -> float:
    """The same with Ray Tune alone: the function trains the same model with `fit` and reports its metrics."""

    def trainable(values: dict[str, Any]) -> None:
        import torch

        from statten.data import make_loaders
        from statten.train import fit, make_state

        torch.set_num_threads(1)
        config = load_config("digits", {**FIELDS, "train.lr": values["lr"]})
        ray.tune.report({**fit(make_state(config), make_loaders(config), config), "ended": time.time()})

    with tempfile.TemporaryDirectory() as folder:
        results = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"CPU": 1}),
            param_space={"lr": ray.tune.loguniform(1e-4, 1e-2)},
            tune_config=ray.tune.TuneConfig(num_samples=trials, max_concurrent_trials=1, reuse_actors=True),
            run_config=ray.tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    for error in results.errors:
        raise error
    ends = sorted(result.metrics["ended"] for result in results)
    return (ends[-1] - ends[0]) / (trials - 1)


def training(repeats: int = 5) -> float:
    """Seconds of the trial's own work alone, in this process."""
    import torch

    from statten.data import make_loaders
    from statten.train import fit, make_state

    torch.set_num_threads(1)
    config, times = load_config("digits", FIELDS), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        fit(make_state(config), make_loaders(config), config)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def main() -> None:
    """Run both, print a line each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    use_stderr()
    alone = training()
    with ray_cluster(None):
        found = {"statten": ours(options.trials)}
        driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        found["Ray Tune alone"] = plain(options.trials)
    for name, seconds in found.items():
        console.print(f"{name:15} {seconds:.3f} s per trial, {seconds - alone:.3f} s more than its training of {alone:.3f} s")
    console.print(
        f"ratio {found['statten'] / found['Ray Tune alone']:.2f}; memory of the driver after our trials {driver} MiB at most"
    )
    if options.output:
        case = {"case": f"{options.trials} one-epoch trials", "metric": "s per trial, peer Ray Tune alone"}
        row = {**case, "ours": found["statten"], "peer": found["Ray Tune alone"]}
        rows = [{**row, "ratio": row["peer"] / row["ours"]}]
        write_json(
            options.output,
            {"benchmark": "trials", "training_s": alone, "driver_mib": driver, "hardware": environment(), "results": rows},
        )


if __name__ == "__main__":
    main()
