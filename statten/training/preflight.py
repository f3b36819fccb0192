"""What would fail, found before a machine is spent: data, device, precision, memory."""

import dataclasses
from typing import TypeVar

import torch
from torch import nn

from statten.config import Config, ScaleConfig
from statten.data import check_data, make_loaders
from statten.errors import UserError
from statten.machine import whole_cores
from statten.models import build_model

M = TypeVar("M", bound=nn.Module)

# Before anything starts.


def pick_device(scale: ScaleConfig) -> str:
    """cuda where it is wanted and usable, else cpu."""
    if scale.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return scale.device


def this_device(scale: ScaleConfig) -> torch.device:
    """The device of this process: of several GPUs the one that it was given."""
    return torch.device("cuda", torch.cuda.current_device()) if pick_device(scale) == "cuda" else torch.device("cpu")


def to_device(model: M, device: torch.device | str) -> M:
    """Move a model to its device, in channels-last: GPUs and CPUs convolve, and pool, fastest in it."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What a run will be, before it starts."""

    parameters: int
    """Trainable parameters."""
    steps_per_epoch: int | None
    """Optimizer steps of each worker and epoch; None where there is no data yet."""
    world_size: int
    """Workers, or the most of them."""
    device: str
    """cpu or cuda."""
    cpus_per_worker: int
    """CPU cores of each worker."""
    memory_bytes: int
    """Estimate for one worker: weights, their average, gradients, optimizer and what the backward pass keeps of one batch."""
    min_workers: int
    """The fewest workers that train, where `scale.workers` is [min, max]; else the same as `world_size`."""
    gpus_per_worker: float = 1.0
    """Share of a GPU of each worker, where the device is cuda."""

    def resources(self, workers: int = 1) -> dict[str, float]:
        """What Ray reserves for some workers."""
        gpus = {"GPU": workers * self.gpus_per_worker} if self.device == "cuda" else {}
        return {"CPU": float(workers * self.cpus_per_worker), **gpus}


def own_capacity() -> dict[str, float]:
    """CPUs and GPUs of this machine, as Ray counts them."""
    return {"CPU": float(whole_cores()), "GPU": float(torch.cuda.device_count())}


def preflight(
    config: Config, capacity: dict[str, float] | None = None, with_data: bool = True, gpus_per_worker: float | None = None
) -> Preflight:
    """Check a config against data, machine and precision without training; raises UserError with every problem.

    Args:
        config: the run.
        capacity: CPUs and GPUs of the cluster as Ray counts them; empty means this machine.
        with_data: whether the dataset is there to be looked at; without it, it is neither checked nor counted.
        gpus_per_worker: share of a GPU of each worker; None means `scale.gpus_per_worker`.
    """
    capacity = capacity or own_capacity()
    scale, problems = config.scale, []
    device = scale.device if scale.device != "auto" else ("cuda" if capacity.get("GPU", 0) >= 1 else "cpu")
    cpus = int(capacity.get("CPU", 0))
    least, field = scale.min_workers, "scale.workers" + ("" if scale.min_workers == scale.max_workers else "[0]")
    cpus_per_worker = scale.cpus_per_worker or max(1, cpus // scale.max_workers)
    if least * cpus_per_worker > cpus:
        problems.append(
            f"scale.workers: {least} workers of {cpus_per_worker} cores need {least * cpus_per_worker} "
            f"cores, but there are {cpus}; the most is {field}={cpus // cpus_per_worker}"
        )
    share = scale.gpus_per_worker if gpus_per_worker is None else gpus_per_worker
    gpus = int(capacity.get("GPU", 0))
    most = gpus * int(1 / share + 1e-9)  # a worker is on one GPU
    if device == "cuda" and least > most:
        fix = f"the most is {field}={most}" if most else "use scale.device=cpu"
        part = "a GPU" if share == 1 else f"{share:g} of a GPU"
        problems.append(f"scale.device: cuda needs {part} for each of {least} workers, but there are {gpus}; {fix}")
    if config.train.precision == "fp16" and device == "cpu":
        problems.append("train.precision: fp16 needs a GPU, but the device is cpu; use fp32 or bf16")
    if scale.cuda_graphs:
        if device == "cpu":
            problems.append("scale.cuda_graphs: needs a GPU, but the device is cpu; set it to false")
        for other in ("activation_checkpointing", "packed_spikes"):
            if getattr(scale, other):
                problems.append(f"scale.cuda_graphs: cannot record a step with scale.{other}; set one of them to false")
        if (
            scale.min_workers < scale.max_workers
        ):  # a worker with several shares would add up gradients in the recording's memory
            problems.append(
                f"scale.cuda_graphs: cannot record the steps of elastic workers, but scale.workers is [{scale.min_workers}, "
                f"{scale.max_workers}]; set cuda_graphs to false, or workers to a number"
            )
    for check in (lambda: check_data(config) if with_data else None, lambda: _check_backend(scale.neuron_backend, device)):
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    parameters, memory = measure(config, device)
    steps = make_loaders(config, 0, scale.max_workers).train.steps_per_epoch if with_data else None
    return Preflight(parameters, steps, scale.max_workers, device, cpus_per_worker, memory, scale.min_workers, share)


def memory_bytes(config: Config, device: str | None = None) -> int:
    """Bytes that one worker's training step needs; an estimate, see Preflight. Arguments as those of `measure`."""
    return measure(config, device)[1]


def _check_backend(name: str, device: str) -> None:
    from statten.neurons import check_backend

    check_backend(name, device)


def measure(config: Config, device: str | None = None) -> tuple[int, int]:
    """Parameters, and bytes of a training step: found on PyTorch's meta device, which computes shapes, no values.

    Weights are float32 always; what the backward pass keeps is half of that in half precision.

    Args:
        config: the run.
        device: cpu or cuda, on which amp is float32 or a half type; None means what the config gives this machine.
    """
    model_config, train = config.model, config.train
    with torch.device("meta"):
        model = build_model(model_config, "torch")
        size = (model_config.in_channels, model_config.image_size, model_config.image_size)
        time_axis = (model_config.timesteps,) if model_config.events else ()
        batch = torch.empty(train.batch_size, *time_axis, *size)
    kept: dict[tuple, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[(id(tensor.untyped_storage()), tensor._version)] = tensor.untyped_storage().nbytes()
        storages.append(tensor)  # an id is only unique while its object lives
        return tensor

    storages: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(batch)
    weights = {id(p.untyped_storage()) for p in model.parameters()}
    activations = sum(size for (storage, _), size in kept.items() if storage not in weights)
    half = train.precision in ("bf16", "fp16") or (train.precision == "amp" and (device or pick_device(config.scale)) == "cuda")
    activations //= 2 if half else 1
    trainable = [p for p in model.parameters() if p.requires_grad]
    copies = 2 + {"sgd": 1, "lion": 1}.get(train.optimizer, 2) + (train.ema_decay is not None)
    states = sum(p.numel() * p.element_size() for p in trainable) * copies
    return sum(p.numel() for p in trainable), states + activations
