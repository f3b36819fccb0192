"""The same accuracy with every neuron backend and precision: `digits`, five seeds each, test part.

python benchmarks/accuracy.py [--seeds 5] [--epochs 12] [--output benchmarks/accuracy-cpu.json]
"""

import argparse
import logging
import statistics
from pathlib import Path

import torch

from statten.bench import usable_backends
from statten.config import load_config
from statten.data import make_loaders, make_test_loader
from statten.files import write_json
from statten.machine import environment
from statten.training.loop import fit, make_state, validate


def top1(backend: str, precision: str, seed: int, epochs: int, device: str) -> float:
    """Test top-1 in percent of a run from nothing."""
    fields = {"train.seed": seed, "train.epochs": epochs, "train.precision": precision, "scale.neuron_backend": backend}
    config = load_config("digits", fields)
    state = make_state(config, device)
    fit(state, make_loaders(config, 0, 1), config)
    return validate(state.model, make_test_loader(config), config)["val/top1"]


def main() -> None:
    """Train all, print a line per run and a table."""
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for backend in usable_backends(torch.device(device)):
        for precision in ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16"):
            found = [top1(backend, precision, seed, options.epochs, device) for seed in range(options.seeds)]
            mean, spread = statistics.mean(found), statistics.stdev(found)
            print(f"{backend:7} {precision}  {mean:6.2f} ± {spread:.2f}   {' '.join(f'{x:.2f}' for x in found)}", flush=True)
            rows.append({"backend": backend, "precision": precision, "top1": found, "mean": mean, "stdev": spread})
    if options.output:
        write_json(
            options.output,
            {
                "benchmark": "accuracy",
                "dataset": "digits",
                "epochs": options.epochs,
                "results": rows,
                "hardware": environment(),
            },
        )


if __name__ == "__main__":
    main()
