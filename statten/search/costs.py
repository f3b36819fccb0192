"""What training a config costs, measured: a few real steps on made-up samples, in a process of their own.

An estimate of memory (training/preflight.py) knows shapes, but not the allocator and the libraries; of time it knows nothing.
So before a sweep starts, its smallest and its largest trial take four steps each, with everything that training does to a
batch but reading it. Shapes that this user has measured before on the same hardware are remembered.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from statten.config import Config, build_config
from statten.data import Loaders
from statten.data.dataset import Loaded, Source
from statten.data.loaders import EvalLoader, TrainLoader
from statten.errors import Failed, UserError
from statten.files import own_cache, write_json
from statten.machine import killed_for_memory, peak_memory, usable_memory
from statten.records import measurements
from statten.records.reading import read
from statten.training.faults import LESS_MEMORY, Diverged, classify

STEPS = 4
SECONDS = 120
"""For which a measurement may take, waiting for a free machine included."""


@dataclass(frozen=True)
class Cost:
    """What one worker of one config needs."""

    memory_bytes: int
    """The most at any time: of GPU memory what PyTorch held, on a CPU all memory of the process."""
    step_seconds: float
    """A training step: median of all but the first, which compiles and allocates."""
    validation_seconds: float
    """Validation, per batch."""
    there_bytes: int
    """Memory of the GPU, or what the machine or its container leaves a process."""


class _Noise(Source):
    """Samples made up in memory."""

    def __init__(self, config: Config):
        model = config.model
        time_axis = (model.timesteps,) if model.events else ()
        self.shape = (*time_axis, model.in_channels, model.image_size, model.image_size)
        self.classes = [str(i) for i in range(model.num_classes)]
        self.labels = np.zeros(0, np.int64)

    def batch(self, indices: np.ndarray, *_: Any) -> Loaded:
        labels = torch.from_numpy(indices % len(self.classes))
        return Loaded(torch.randn(len(indices), *self.shape), labels, [])


class _Clock:
    """A report that notes when steps were done."""

    def __init__(self, device: torch.device):
        self.device, self.times, self.validated = device, list[float](), 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self, state: Any, steps: int) -> bool:
        self.times.append(self._now())
        return False

    def checkpoint(self, state: Any) -> None: ...

    def epoch(self, state: Any) -> None:
        self.validated = self._now() - self.times[-1]


def measure(document: dict[str, Any], device: str, threads: int) -> dict[str, Any]:
    """Take a few steps of a config in this process, which is new and ends after it; returns a Cost's fields."""
    from statten.training.loop import fit, make_state

    torch.set_num_threads(threads)
    config, place = build_config(document), torch.device(device)
    train, size = config.train, config.train.eval_batch_size or config.train.batch_size
    source, clock = _Noise(config), _Clock(place)
    loaders = Loaders(
        TrainLoader(source, np.arange(STEPS * train.batch_size), batch_size=train.batch_size, seed=0),
        EvalLoader(source, np.arange(2 * size), batch_size=size),
    )
    try:
        fit(make_state(config, place), loaders, config, clock)
    except Diverged:
        clock.validated = clock.validated or clock._now() - clock.times[-1]  # noise teaches nothing; the time is right
    if place.type == "cuda":
        peak, there = torch.cuda.max_memory_reserved(place), torch.cuda.get_device_properties(place).total_memory
    else:
        peak, there = peak_memory(), usable_memory()
    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return asdict(Cost(peak, statistics.median(steps), clock.validated / 2, there))


def costs(configs: Sequence[Config], device: str, threads: int, gpus: float = 0.0) -> list[Cost]:
    """Measure configs, each in a process of its own: on a worker of the Ray cluster that this process has joined, else here.

    Raises:
        UserError: one of them runs out of memory.
        Failed: it could not be measured, and why.
    """
    path = own_cache() / "costs.json"
    known = _known(path)
    documents = [_document(config) for config in configs]
    keys = [_key(document, device, threads) for document in documents]
    new = {key: document for key, document in zip(keys, documents, strict=True) if key not in known}
    if new:
        found = _run([*new.values()], device, threads, gpus)
        known = {**_known(path), **{key: Cost(**values) for key, values in zip(new, found, strict=True)}}
        write_json(path, {key: asdict(cost) for key, cost in known.items()}, durable=False)
    return [known[key] for key in keys]


def _known(path: Path) -> dict[str, Cost]:
    """What was measured before; nothing of a file that is damaged, for it can be measured again."""
    try:
        return {key: Cost(**values) for key, values in (read(path, dict[str, measurements.Cost]) or {}).items()}
    except UserError:
        return {}


def _document(config: Config) -> dict[str, Any]:
    """What a step depends on; one epoch of it."""
    document = config.model_dump(mode="json")
    short = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0, "mixup_off_epoch": 0, "checkpoint_every_steps": None}
    kernels = ("neuron_backend", "activation_checkpointing", "packed_spikes", "cuda_graphs")
    return {
        "model": document["model"],
        "data": document["data"],
        "train": {**document["train"], **short, "seed": 0},
        "scale": {name: document["scale"][name] for name in kernels},
    }


def _key(document: dict[str, Any], device: str, threads: int) -> str:
    """What a measurement is found by: the config, the machines that it may have run on, and what a Cost holds."""
    import ray

    machines = {node["NodeManagerHostname"] for node in ray.nodes()} if ray.is_initialized() else {platform.node()}
    hardware, held = [sorted(machines), usable_memory(), device, threads], [field.name for field in fields(Cost)]
    return hashlib.sha256(json.dumps([document, torch.__version__, hardware, held], sort_keys=True).encode()).hexdigest()[:24]


def _run(documents: list[dict[str, Any]], device: str, threads: int, gpus: float) -> list[dict[str, Any]]:
    import ray

    killed = killed_for_memory()
    try:
        if ray.is_initialized():
            # A worker that ends with its task, or its peak would be that of a trial before.
            task = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1, max_retries=0)(measure)
            pending = [task.remote(document, device, threads) for document in documents]
            try:
                return ray.get(pending, timeout=SECONDS)
            finally:
                _, late = ray.wait(pending, num_returns=len(pending), timeout=0)
                for reference in late:  # only these: Ray aborts this process over a task that is cancelled while it ends
                    ray.cancel(reference, force=True)
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            return [pool.submit(measure, document, device, threads).result(SECONDS) for document in documents]
    except TimeoutError:
        raise Failed(f"no machine was free for {SECONDS} s to measure a step on") from None
    except Exception as error:
        fault = classify(error)
        if fault.kind == "memory":
            raise UserError(f"search: one step of the largest trial runs {fault.reason}") from None
        if killed_for_memory() > killed:
            raise UserError(f"search: one step of the largest trial runs out of memory; {LESS_MEMORY}") from None
        raise Failed(fault.reason) from None
