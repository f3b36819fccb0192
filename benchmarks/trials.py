"""What a sweep costs per trial beside the training itself, against plain Ray Tune with the same trainable.

python benchmarks/trials.py [--trials 40] [--output benchmarks/trials-cpu.json]

All run the same number of one-epoch trials of a tiny model, one at a time, in reused Tune actors; the time from the end of the
first trial, which starts the actor, to the end of the last is divided by their number.

    statten             `statten tune` as it comes: TPE, the study, run folders, checkpoints, TensorBoard
    Ray Tune            the same trainable, each trial in a run folder of its own; random search, and none of the rest
    Ray Tune, keepless  random search, and training alone: no folder, no checkpoint, and lost is what is not in the metrics
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import ray.tune

from statten.cluster.session import ray_cluster
from statten.config import load_config
from statten.display import console, use_stderr
from statten.files import write_json
from statten.machine import environment
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


def plain(trials: int, keeps: bool) -> float:
    """The same with Ray Tune alone.

    Args:
        keeps: whether the trainable is that of `statten tune`, in a run folder that it makes, or else trains and reports.
    """

    def trainable(values: dict[str, Any]) -> None:
        import torch

        from statten.data import make_loaders
        from statten.storage.run import Run
        from statten.training.loop import fit, make_state
        from statten.training.worker import run_fit

        config = load_config("digits", {**FIELDS, "train.lr": values["lr"]})
        if keeps:
            run = Run.create(Path(ray.tune.get_context().get_trial_dir()) / "run", config)
            run.hand_over("benchmark")
            run_fit(run, "benchmark", threads=1, then=lambda metrics: ray.tune.report({**metrics, "ended": time.time()}))
        else:
            torch.set_num_threads(1)
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
    from statten.training.loop import fit, make_state

    torch.set_num_threads(1)
    config, times = load_config("digits", FIELDS), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        fit(make_state(config), make_loaders(config), config)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def main() -> None:
    """Run all in turns, print a line each, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is taken, for the machine's pace changes")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    use_stderr()
    cases = {
        "statten": ours,
        "Ray Tune": lambda trials: plain(trials, keeps=True),
        "Ray Tune, keepless": lambda trials: plain(trials, keeps=False),
    }
    alone, times, driver = training(), {name: list[float]() for name in cases}, 0
    with ray_cluster(None):
        for _ in range(options.rounds):
            for name, run in cases.items():
                times[name].append(run(options.trials))
                driver = driver or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rows = []
    for name, found in times.items():
        ratio = median(peer / mine for mine, peer in zip(times["statten"], found, strict=True))
        console.print(f"{name:18} {median(found):.3f} s per trial, of which {alone:.3f} s are training; "
                      f"statten takes {1 / ratio:.2f} times as long")  # fmt: skip
        if name != "statten":
            case = {"case": f"{options.trials} one-epoch trials", "metric": f"s per trial, peer {name}"}
            rows.append({**case, "ours": median(times["statten"]), "peer": median(found), "ratio": ratio})
    console.print(f"memory of the driver after our trials: {driver} MiB at most")
    if options.output:
        document = {"benchmark": "trials", "training_s": alone, "driver_mib": driver, "rounds": times}
        write_json(options.output, {**document, "hardware": environment(), "results": rows})


if __name__ == "__main__":
    main()
