"""The training loop: `fit` on one page, and what it calls; it knows nothing of Ray."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from timm.utils.distributed import distribute_bn
from torch import nn

from statten.config import Config, TrainConfig
from statten.data import Loaders
from statten.data.loaders import Batch
from statten.data.mixing import make_mixer
from statten.errors import UserError
from statten.metrics.accuracy import Accuracy, is_distributed, sum_over_ranks
from statten.metrics.energy import ledger
from statten.metrics.inference import autocast, evaluating, half_type, latency_ms
from statten.metrics.spikes import SpikeTotals
from statten.models import build_model
from statten.neurons import packed_spikes
from statten.storage.checkpoint import TrainState
from statten.storage.run import best_row
from statten.training.faults import Diverged, Preempted
from statten.training.losses import make_loss
from statten.training.preflight import to_device

logging.getLogger("timm.scheduler").setLevel(logging.ERROR)  # of a single epoch it says that a cosine has no effect there

FUSED = ("adamw", "adam", "sgd")
"""Optimizers of which PyTorch has one kernel for a step of each weight, on GPUs and on CPUs."""


class Callback(Protocol):
    """What `fit` tells while it runs; called on every rank."""

    def step(self, state: TrainState, steps: int) -> bool:
        """A step is done; `steps` is their number per epoch. True, on all ranks, asks for a checkpoint, and to leave."""

    def checkpoint(self, state: TrainState) -> None:
        """`train.checkpoint_every_steps` steps are done."""

    def epoch(self, state: TrainState) -> None:
        """An epoch is done and validated; its metrics are in `state.metrics`."""


class Parts(Protocol):
    """What of a model each step trains, where that is not all of it; training/subnetworks.py is one."""

    def module(self) -> nn.Module:
        """What a step runs: it holds the model, and computes with what was drawn of it."""

    def draw(self, epoch: int, step: int) -> None:
        """Choose what the step trains, the same on all ranks."""

    def moving(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """The context of an optimizer's step, which leaves what was not drawn as it is."""

    def validate(self, model: nn.Module, loaders: Loaders, config: Config) -> dict[str, float]:
        """What an epoch is judged by, as `validate`."""


class MovingAverage(ModelEmaV3):
    """Averages over the last ninth of all steps until `decay` averages over more: 0.9999 alone would keep the first weights."""

    def get_decay(self, step: int | None = None) -> float:
        """Decay at a step, counted from 1, which the average starts with."""
        assert step is not None
        return min(self.decay, (step - 1) / (step + 8))


class NoCallback:
    """Tells nobody."""

    def step(self, state: TrainState, steps: int) -> bool:
        return False

    def checkpoint(self, state: TrainState) -> None: ...
    def epoch(self, state: TrainState) -> None: ...


def fit(
    state: TrainState, loaders: Loaders, config: Config, callback: Callback | None = None, parts: Parts | None = None
) -> dict[str, float]:
    """Train from `state` to the last epoch, and validate after every epoch: the loop alone, without Ray and without a folder.

    Where a process group exists, gradients are averaged over its ranks, and BatchNorm statistics before every validation
    and checkpoint. Randomness depends on (seed, epoch, step, rank) alone, so a resumed run takes the same steps.

    A step averages the gradients of all shares (see `make_loaders`). A rank with several does them one after the other, with
    the randomness of the ranks that would have had them; so with any number of ranks a step reads the same samples, and an
    epoch goes on after the step at which another number of ranks left it. BatchNorm normalises each share by itself.
    Training accuracy is counted against the labels that samples had before mixing.

    Args:
        state: model, optimizer and schedule, as `statten.training.loop.make_state(config, device)` makes them; it changes.
        loaders: what is trained and validated on, as `statten.data.make_loaders(config)` makes it.
        config: the run.
        callback: hears of steps and epochs; None means nobody.
        parts: what of the model each step trains, and how an epoch is judged then; None means all of it.

    Returns:
        The best epoch's metrics: val/top1, val/top5 (percent), val/loss, energy_uj, firing rates and more.

    Raises:
        Diverged: the loss is not finite.
        Preempted: the callback asked to leave.

    Example:
        >>> import statten
        >>> from statten.data import make_loaders
        >>> from statten.training.loop import make_state
        >>> config = statten.load_config("digits", {"train.epochs": 1, "model.depth": 1, "data.fraction": 0.2})
        >>> best = statten.fit(make_state(config), make_loaders(config), config)
        >>> best["epoch"]
        1
    """
    train, callback = config.train, callback or NoCallback()
    model = state.model
    if config.scale.cuda_graphs:
        if (count := len(loaders.shares)) > 1:  # a replay writes gradients over those that it is to be added to
            raise UserError(f"scale.cuda_graphs: cannot record steps of {count} batches on one worker; set it to false")
        record_graphs(model, loaders.train, config, state.device)
    replica = replicated(model if parts is None else parts.module(), unused=parts is not None)
    loss_of, mix, precision = make_loss(train), make_mixer(config), autocast(config, state.device)
    steps, shares = loaders.train.steps_per_epoch, loaders.shares
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)

    for epoch in range(state.epoch, train.total_epochs):
        replica.train()
        totals, began = Accuracy(state.device, state.sums if rank == 0 else None), time.monotonic()
        for batches in zip(*(share.batches(epoch, start_step=state.step) for share in shares), strict=True):
            set_lr(state, epoch + state.step / steps, train)
            if parts is not None:
                parts.draw(epoch, state.step)
            for share, (images, target) in zip(shares, batches, strict=True):
                key = (train.seed, epoch, state.step, share.rank)
                torch.manual_seed(stream(*key))
                images, target = images.to(state.device, non_blocking=True), target.to(state.device, non_blocking=True)
                images, mixed_target = mix(images, target, key=key) if mix else (images, target)
                with precision, packed_spikes(config.scale.packed_spikes), gradients_reduced(replica, share is shares[-1]):
                    logits = replica(images)
                    loss = loss_of(logits.float(), mixed_target)
                    # DDP averages over ranks, and a step over all shares.
                    state.scaler.scale(loss * (world_size / share.world_size)).backward()
                totals.add(loss, logits, target)
            with parts.moving(state.optimizer) if parts is not None else nullcontext():
                step_optimizer(state, train)
            state.step += 1
            if state.ema is not None:
                state.ema.update(model, step=epoch * steps + state.step)
            leave, every = callback.step(state, steps), train.checkpoint_every_steps
            if state.step < steps and (leave or (every and state.step % every == 0)):
                average_statistics(state)
                state.sums = totals.summed().tolist()
                callback.checkpoint(dataclasses.replace(state, seconds=state.seconds + time.monotonic() - began))
                if leave:
                    raise Preempted(f"asked to go after step {state.step} of epoch {epoch + 1}, and a checkpoint is written")

        average_statistics(state)
        trained, seconds = totals.reduced(), state.seconds + time.monotonic() - began
        metrics = {
            "epoch": epoch + 1,
            "steps": (epoch + 1) * steps,
            "train/loss": trained["loss"],
            "train/top1": trained["top1"],
            **(
                validate(state.eval_model, loaders.validation, config)
                if parts is None
                else parts.validate(state.eval_model, loaders, config)
            ),
            **left_out(loaders, config, state.device),
            **cost(state, config),
            "lr": max(group["lr"] for group in state.optimizer.param_groups),
            "samples_per_second": trained["samples"] / seconds,
            "seconds": state.seconds + time.monotonic() - began,
            "time": time.time(),
        }
        if not (math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["val/loss"])):
            raise Diverged(
                f"the loss is not finite after epoch {epoch + 1} (train {metrics['train/loss']:g}, validation "
                f"{metrics['val/loss']:g}); try a smaller train.lr, a longer warm-up or train.clip_grad"
            )
        state.epoch, state.step, state.sums, state.seconds = epoch + 1, 0, None, 0.0
        state.metrics, state.best = metrics, best_row([row for row in (state.best, metrics) if row])
        callback.epoch(state)
    return state.best


def replicated(module: nn.Module, unused: bool = False) -> nn.Module:
    """A module whose gradients are averaged over ranks, where there are any; `unused`: a step may leave weights out."""
    if not is_distributed():
        return module
    return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=unused)


def gradients_reduced(replica: nn.Module, now: bool) -> Any:
    """The context of a forward and backward pass whose gradients are averaged over ranks now, or with those of the next."""
    return nullcontext() if now or not is_distributed() else replica.no_sync()  # type: ignore[operator]


def validate(model: nn.Module, loader: Iterable[Batch], config: Config, prefix: str = "val/") -> dict[str, float]:
    """Loss, top-1, top-5, energy and firing rates per layer over all samples of all ranks.

    The loss is the plain cross-entropy of the mean logits, whatever the training loss is. `energy_uj` is the energy of one
    sample in microjoules by the ledger's default conventions (metrics/energy.py).
    """
    device = next(model.parameters()).device
    totals, spikes = Accuracy(device), SpikeTotals(model, device)  # type: ignore[arg-type]
    with evaluating(model), spikes, autocast(config, device):
        for images, target in loader:
            images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
            logits = model(images).float()
            logits = logits.mean(0) if logits.ndim == 3 else logits
            totals.add(nn.functional.cross_entropy(logits, target), logits, target)
    found, (inputs, samples) = totals.reduced(), spikes.inputs()
    energy = ledger(model.config, model.timesteps, inputs, max(samples, 1))["total"]["pj"]  # type: ignore[arg-type]
    return {
        **{prefix + name: found[name] for name in ("loss", "top1", "top5")},
        "energy_uj": energy / 1e6,
        **{f"firing_rate/{layer}": rate for layer, rate in spikes.reduced().items()},
    }


def cost(state: TrainState, config: Config) -> dict[str, float]:
    """What a sweep may look for beside accuracy and energy: parameters, and where it does so, latency and peak memory."""
    found = {"parameters": float(sum(p.numel() for p in state.model.parameters() if p.requires_grad))}
    if "latency_ms" in config.search.metrics:
        found["latency_ms"] = latency_ms(state.eval_model, config)
    if "peak_memory_mib" in config.search.metrics:
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated(state.device) / 2**20
    return found


def left_out(loaders: Loaders, config: Config, device: torch.device) -> dict[str, float]:
    """With `data.skip_corrupt`: `corrupt`, the samples of this epoch that no rank could read."""
    if not config.data.skip_corrupt:
        return {}
    return {"corrupt": sum_over_ranks(torch.tensor(loaders.corrupt, device=device)).item()}


def make_state(config: Config, device: torch.device | str = "cpu") -> TrainState:
    """A model with the seed's initial weights, its optimizer, schedule, loss scaler and moving average."""
    train = config.train
    torch.manual_seed(train.seed)
    model = to_device(build_model(config.model, config.scale.neuron_backend), device)
    model.activation_checkpointing = config.scale.activation_checkpointing
    optimizer = create_optimizer_v2(
        model,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        layer_decay=train.layer_decay,
        **({"fused": True} if train.optimizer in FUSED else {}),
    )
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=train.epochs,
        lr_min=train.min_lr,
        warmup_t=train.warmup_epochs,
        warmup_lr_init=train.warmup_lr,
    )
    device = torch.device(device)
    # Asked for, fp16 scales its loss on any device; in `amp` it is what a GPU does that cannot compute in bfloat16.
    scaled = train.precision == "fp16" or half_type(config, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    ema = MovingAverage(model, decay=train.ema_decay) if train.ema_decay else None
    return TrainState(model, optimizer, scheduler, scaler, ema)


def record_graphs(model: nn.Module, batches: Any, config: Config, device: torch.device) -> None:
    """Replace the model's training passes by CUDA graphs of them; evaluation stays as it is. Before DDP wraps the model."""
    images, _ = next(iter(batches.batches(0)))
    # Recording runs the model: what that does to its statistics is undone.
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    precision = autocast(config, device)
    if isinstance(precision, torch.autocast):
        # A weight that was cast before the recording would be read from memory that is gone at the replay.
        precision = torch.autocast(device.type, precision.fast_dtype, cache_enabled=False)
    with precision:
        torch.cuda.make_graphed_callables(model, (images.to(device),))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


def step_optimizer(state: TrainState, train: TrainConfig) -> None:
    """Clip the scaled gradients as `train.clip_mode` says, move the weights and clear the gradients."""
    if train.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        clipped = model_parameters(state.model, exclude_head=train.clip_mode == "agc")
        dispatch_clip_grad(clipped, train.clip_grad, train.clip_mode)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def set_lr(state: TrainState, epochs: float, train: TrainConfig) -> None:
    """Set the learning rate for a moment of training, in epochs and fractions of one."""
    if train.lr_update == "epoch":
        epochs = math.floor(epochs)
    state.scheduler.step(epochs)


def stream(*key: int) -> int:
    """A seed that belongs to a key such as (seed, epoch, step, rank)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def average_statistics(state: TrainState) -> None:
    """Replace BatchNorm's running mean and variance by their average over ranks, and those of the moving average too."""
    if is_distributed():
        distribute_bn(state.model, dist.get_world_size(), reduce=True)
        if state.ema is not None:
            distribute_bn(state.ema.module, dist.get_world_size(), reduce=True)
