"""How training scales: measured with one and two ranks here, and modelled on paper up to 64 GPUs.

python benchmarks/scaling.py [--repeats 3] [--paper] [--output benchmarks/scaling-cpu.json]

Weak scaling by ranks: `statten train` with one worker and with two, one core and the same batch each, turn by turn; the figure
is samples per second of two against twice one. Both ranks share the two cores, the caches and the memory of one machine, so
this shows what the code costs (DDP and gloo over loopback), not what a network does.

The paper model says how long a step of imagenet_8_768 takes on N GPUs, and what it asks of network and storage. Nothing in it
is measured on a GPU. What comes from the code: parameters, bytes and floating-point operations. What is assumed is in ASSUMED
and marked so in everything that is printed; benchmarks/scaling.md explains both.
"""

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from statten.cluster.session import ray_cluster
from statten.cluster.trainer import train
from statten.config import Config, load_config
from statten.display import console, table, use_stderr
from statten.files import write_json
from statten.machine import environment
from statten.models import build_model

FIELDS = {
    "model.depth": 2, "model.embed_dim": 128, "train.epochs": 4, "train.warmup_epochs": 0, "train.batch_size": 32,
    "scale.cpus_per_worker": 1, "scale.device": "cpu",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Hardware figures that nobody measured here."""

    tflops: float = 150.0
    """Useful TFLOP/s of one GPU in mixed precision: about 15 % of an H100's dense 989, for spiking layers wait for memory."""
    gpus_per_node: int = 8
    """GPUs that share a node, its network and its cores."""
    inside: float = 300e9
    """Bytes/s that each GPU of a node sends in a ring over NVLink."""
    network: float = 50e9
    """Bytes/s between nodes: one 400 Gbit/s link per node, through which every ring goes."""
    slow_network: float = 12.5e9
    """The same for one 100 Gbit/s link."""
    latency: float = 10e-6
    """Seconds of one hop of a ring."""
    bucket: float = 25e6
    """Bytes of a DDP bucket, PyTorch's default; the last one cannot hide behind the backward pass."""
    jpeg: float = 110e3
    """Mean bytes of a training image: 138 GB in 1,281,167 files."""
    decoded: float = 120.0
    """Images/s that one core reads, decodes and augments at 224 pixels."""


ASSUMED = Assumed()
IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Work:
    """What the code itself says about a training step of one GPU."""

    parameters: int
    batch: int
    flops: float
    """Floating-point operations of forward and backward; a multiplication and an addition are two."""

    @property
    def gradient(self) -> float:
        """Bytes that are averaged over ranks: float32, under mixed precision too."""
        return 4.0 * self.parameters


def work(config: Config) -> Work:
    """Count a step's operations on PyTorch's meta device, which computes shapes alone."""
    model_config, batch = config.model, 1
    with torch.device("meta"):
        model = build_model(model_config, "torch")
        images = torch.empty(batch, model_config.in_channels, model_config.image_size, model_config.image_size)
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Work(parameters, config.train.batch_size, float(counter.get_total_flops()) / batch * config.train.batch_size)


def step(found: Work, gpus: int, network: float, assumed: Assumed = ASSUMED) -> dict[str, float]:
    """Time of a step on some GPUs, and what it asks of network, storage and cores.

    A ring all-reduce sends 2 (N - 1) / N of the gradient's bytes over every link, the slowest of which counts, in 2 (N - 1)
    hops. DDP starts it bucket by bucket during the backward pass, two thirds of the computation; what is left over, and the
    last bucket, are waited for.
    """
    computing = found.flops / (assumed.tflops * 1e12)
    link = assumed.inside if gpus <= assumed.gpus_per_node else min(assumed.inside, network)
    share = 2 * (gpus - 1) / gpus
    sent = share * found.gradient
    reducing = sent / link + (2 * (gpus - 1) * assumed.latency if gpus > 1 else 0.0)
    last = min(1.0, assumed.bucket / found.gradient) * reducing
    waiting = last + max(0.0, reducing - last - computing * 2 / 3)
    seconds = computing + waiting
    images = found.batch / seconds
    nodes = -(-gpus // assumed.gpus_per_node)
    return {
        "gpus": gpus, "computing_ms": 1e3 * computing, "sent_mb": sent / 1e6, "all_reduce_ms": 1e3 * reducing,
        "waiting_ms": 1e3 * waiting, "step_ms": 1e3 * seconds, "efficiency": computing / seconds,
        "images_per_s": images * gpus, "epoch_minutes": IMAGES / (images * gpus) / 60,
        "read_mb_per_s_per_node": images * gpus / nodes * assumed.jpeg / 1e6, "cores_per_gpu": images / assumed.decoded,
    }  # fmt: skip


def paper(recipe: str = "imagenet_8_768") -> list[dict[str, Any]]:
    """Print the model's table for both networks, and return its rows."""
    config = load_config(recipe, {"data.root": "/"})
    found, rows = work(config), []
    console.print(
        f"{recipe}: {found.parameters:,} parameters, {found.gradient / 1e6:.0f} MB of gradients, "
        f"{found.flops / 1e12:.2f} TFLOP per step of {found.batch} images and GPU"
    )
    for name, value in dataclasses.asdict(ASSUMED).items():
        console.print(f"  assumed: {name} = {value:g}")
    for network in (ASSUMED.network, ASSUMED.slow_network):
        made = [{"network_gbit": network * 8e-9, **step(found, gpus, network)} for gpus in (1, 2, 4, 8, 16, 32, 64)]
        shown = [
            [row["gpus"], *(f"{row[key]:.1f}" for key in ("computing_ms", "all_reduce_ms", "waiting_ms", "step_ms")),
             f"{100 * row['efficiency']:.1f}", f"{row['images_per_s']:,.0f}", f"{row['epoch_minutes']:.1f}",
             f"{row['read_mb_per_s_per_node']:.0f}", f"{row['cores_per_gpu']:.1f}"]
            for row in made
        ]  # fmt: skip
        titles = ["GPUs", "compute ms", "all-reduce ms", "wait ms", "step ms", "efficiency %", "images/s", "min/epoch",
                  "MB/s per node", "cores per GPU"]  # fmt: skip
        title = f"a model, not a measurement; nodes joined by {network * 8e-9:g} Gbit/s (assumed)"
        console.print(table(title, titles, shown, right=range(len(titles))))
        rows += made
    return rows


def measured(repeats: int) -> list[dict[str, Any]]:
    """Samples per second with one and two ranks, turn by turn: the best epoch of each run, the median of the runs."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None):
        for repeat in range(repeats):
            for workers in rates:
                run = train(load_config("digits", {**FIELDS, "scale.workers": workers}), Path(folder) / f"{workers}-{repeat}")
                # From the second epoch on: the first one starts everything.
                rates[workers].append(max(row["samples_per_second"] for row in run.metrics()[1:]))
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    console.print(
        f"weak scaling: {one:,.0f} samples/s with one rank, {two:,.0f} with two that share the machine's two cores: "
        f"{100 * two / (2 * one):.0f} % of twice one"
    )
    return [
        {"case": f"{workers} ranks, one core and {FIELDS['train.batch_size']} samples each", "samples_per_s": rates[workers],
         "efficiency": statistics.median(rates[workers]) / (workers * one)}
        for workers in rates
    ]  # fmt: skip


def main() -> None:
    """Measure, model, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--paper", action="store_true", help="the paper model alone")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    use_stderr()
    rows = [] if options.paper else measured(options.repeats)
    modelled = paper()
    if options.output:
        document = {"benchmark": "scaling", "hardware": environment(), "results": rows}
        write_json(options.output, {**document, "assumed": dataclasses.asdict(ASSUMED), "paper_model": modelled})


if __name__ == "__main__":
    main()
