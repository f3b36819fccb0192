"""Training losses. T timesteps, B batch, C classes."""

from collections.abc import Callable

from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from statten.config import TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(train: TrainConfig) -> Loss:
    """The loss of a config: (logits, target) -> mean over the batch, [].

    Logits are [B, C], and [T, B, C] for `tet`; targets are labels [B] or, as data/mixing.py makes them, soft [B, C], which are
    smoothed already. With `tet` every timestep has the same soft target, as in the published code.
    """
    if train.loss == "tet":
        return lambda logits, target: tet_loss(logits, target, train.tet_mean, train.tet_lambda, train.label_smoothing)
    if train.loss == "bce":
        return BinaryCrossEntropy(train.label_smoothing, train.bce_target_thresh)
    return lambda logits, target: cross_entropy(logits, target, train.label_smoothing)


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits [B, C] with labels [B], smoothed, or with soft targets [B, C], taken as they are."""
    if target.ndim == 2:
        return SoftTargetCrossEntropy()(logits, target)
    return LabelSmoothingCrossEntropy(smoothing)(logits, target)


def tet_loss(logits_TBC: Tensor, target: Tensor, mean: float = 1.0, lamb: float = 1e-3, smoothing: float = 0.0) -> Tensor:
    """Temporal efficient training (Deng, Li, Zhang, Gu: ICLR 2022).

    (1 - lamb) mean_t CE(logits[t], target) + lamb mean((logits - mean)^2): every timestep is to be right by itself, and
    logits are drawn to `mean`, which keeps single timesteps from growing.

    Args:
        logits_TBC: logits of every timestep [T, B, C].
        target: labels [B] or soft targets [B, C].
        mean: value that logits are drawn to.
        lamb: weight of that.
        smoothing: label smoothing.
    """
    timesteps = logits_TBC.shape[0]
    repeated = target.repeat(timesteps, *[1] * (target.ndim - 1))
    entropy = cross_entropy(logits_TBC.flatten(0, 1), repeated, smoothing)
    return (1 - lamb) * entropy + lamb * (logits_TBC - mean).square().mean()
