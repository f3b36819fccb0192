"""What measuring rates costs: evaluation with the spike meter over evaluation without, on the same batches in turn.

python benchmarks/metering.py [--samples 128] [--batch 32] [--repeats 7] [--threads 1]
    [--output benchmarks/metering-cpu.json]
"""

import argparse
import logging
import time
from pathlib import Path

import torch

from statten.config import load_config
from statten.data import make_test_loader
from statten.files import write_json
from statten.meter import SpikeMeter
from statten.metrics import evaluating
from statten.models import build_model
from statten.runs import environment
from statten.train import place

CASES = {
    "digits": ("digits", {}),
    "digits_events": ("digits_events", {}),
    # The published CIFAR-10 network (2 blocks, D = 256, T = 4, 8 x 8 tokens of 32 x 32 pixels) on enlarged digits.
    "cifar10_2_256": ("digits", {"model.image_size": 32, "model.pooling": "0011", "model.embed_dim": 256, "model.depth": 2}),
}


def seconds(device: torch.device, work) -> tuple[float, float]:
    """Wall-clock and processor time of a call, the GPU's work included."""
    began, used = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, time.process_time() - used


@torch.no_grad()
def alive(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Let BatchNorm see a batch, so that the neurons of fresh weights fire."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
    model.train()(x)


def ratios(recipe: str, fields: dict, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Sum over batches of each one's shortest time, with the meter over without; what disturbs a machine only adds time."""
    config = load_config(recipe, {**fields, "train.eval_batch_size": options.batch})
    torch.manual_seed(0)
    model = place(build_model(config.model), device)
    batches = [x.to(device) for x, _ in make_test_loader(config)][: max(1, options.samples // options.batch)]
    alive(model, batches[0])
    best = {kind: [0.0, 0.0] for kind in ("wall", "processor")}
    meter = SpikeMeter(model)
    with evaluating(model):
        model(batches[0])
        for x in batches:
            plain, metered = [], []
            for _ in range(options.repeats):
                plain.append(seconds(device, lambda x=x: model(x)))
                with meter:
                    metered.append(seconds(device, lambda x=x: model(x)))
            for i, kind in enumerate(best):
                best[kind][0] += min(m[i] for m in metered)
                best[kind][1] += min(p[i] for p in plain)
    return {kind: with_rates / without for kind, (with_rates, without) in best.items()}


def main() -> None:
    """Measure all cases, print a line each."""
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case, (recipe, fields) in CASES.items():
        found = ratios(recipe, fields, options, device)
        print(f"{case:15} with rates / without: {found['wall']:.3f} of the time, {found['processor']:.3f} of the processor's")
        rows.append({"case": case, "batch": options.batch, **found})
    if options.output:
        write_json(options.output, {"benchmark": "metering", "results": rows, "hardware": environment()})


if __name__ == "__main__":
    main()
