"""What measuring costs: a forward pass with the spike meter (or training's totals) over one without, in turns.

python benchmarks/metering.py [--samples 128] [--batch 32] [--turns 60] [--threads 1]
    [--output benchmarks/metering-cpu.json]
"""

import argparse
import logging
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from statten.config import load_config
from statten.data import make_test_loader
from statten.files import write_json
from statten.machine import environment
from statten.metrics.inference import evaluating
from statten.metrics.meter import SpikeMeter
from statten.metrics.spikes import SpikeTotals
from statten.models import build_model
from statten.training.preflight import to_device

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
    model.train()(x)


def ratios(recipe: str, fields: dict, options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Median over pairs of neighbouring turns, one with what measures and one without: what else a machine does meets both.

    Returns:
        For the spike meter of `evaluate` and the totals of training's validation: ratios of the times.
    """
    config = load_config(recipe, {**fields, "train.eval_batch_size": options.batch})
    torch.manual_seed(0)
    model = to_device(build_model(config.model), device)
    batches = [x.to(device) for x, _ in make_test_loader(config)][: max(1, options.samples // options.batch)]
    alive(model, batches[0])
    found = {}
    with evaluating(model):
        model(batches[0])
        for name, measured in (("meter", SpikeMeter(model)), ("totals", SpikeTotals(model, device))):
            pairs = []
            for turn in range(options.turns):
                x, times = batches[turn % len(batches)], {}
                for metered in (False, True) if turn % 2 else (True, False):
                    with measured if metered else nullcontext():
                        times[metered] = seconds(device, lambda x=x: model(x))
                pairs.append([times[True][i] / times[False][i] for i in (0, 1)])
            wall, processor = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
            found[name] = {"wall": wall, "processor": processor}
    return found


def main() -> None:
    """Measure all cases, print a line each."""
    logging.getLogger("statten").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case, (recipe, fields) in CASES.items():
        for name, found in ratios(recipe, fields, options, device).items():
            print(f"{case:15} {name:7} {found['wall']:.3f} of the time without, {found['processor']:.3f} of the processor's")
            rows.append({"case": case, "measured": name, "batch": options.batch, "turns": options.turns, **found})
    if options.output:
        write_json(options.output, {"benchmark": "metering", "results": rows, "hardware": environment()})


if __name__ == "__main__":
    main()
