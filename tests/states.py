"""Training states of a network of a few weights: all that a checkpoint holds, in milliseconds."""

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn

from statten.storage.checkpoint import TrainState
from statten.storage.run import best_row
from statten.training.loop import MovingAverage


def a_state(optimizer: str = "adamw", ema: bool = False, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    ours = create_optimizer_v2(model, opt=optimizer, lr=0.1, momentum=0.9)
    scheduler = CosineLRScheduler(ours, t_initial=4)
    average = MovingAverage(model, decay=0.5) if ema else None
    return TrainState(model, ours, scheduler, torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0), average)


def take_steps(state: TrainState, number: int = 2) -> TrainState:
    for step in range(state.step + 1, state.step + number + 1):
        torch.manual_seed(100 * state.epoch + step)
        state.model(torch.randn(4, 2, 5, 5)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step = step
        if state.ema is not None:
            state.ema.update(state.model, step=step)
    return state


def trained(epoch: int = 1, step: int = 0, **fields) -> TrainState:
    state = take_steps(a_state(**fields))
    state.epoch, state.step, state.sums, state.seconds = epoch, step, [1.0, 2.0, 3.0, 4.0] if step else None, 1.5
    state.metrics = {"epoch": epoch, "val/top1": 50.0, "val/loss": 1.0}
    state.best = {"epoch": 1, "val/top1": 60.0, "val/loss": 0.5}
    return state


def everything(state: TrainState) -> dict:
    """All that a state is, by value."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.tolist(), value.stride() if value.ndim == 4 else None
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    counters = {name: getattr(state, name) for name in ("epoch", "step", "sums", "seconds", "metrics", "best")}
    average = state.ema.module.state_dict() if state.ema is not None else {}
    return plain({
        "model": dict(state.model.state_dict()), "ema": dict(average), "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(), **counters,
    })  # fmt: skip


def next_epoch(state: TrainState, top1: float = 50.0) -> None:
    """What `fit` does with its state when an epoch is done."""
    state.epoch, state.step = state.epoch + 1, 0
    state.metrics = {"epoch": state.epoch, "val/top1": top1, "val/loss": 1.0, "seconds": 1.0}
    state.best = best_row([row for row in (state.best, state.metrics) if row])
