"""Losses against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from statten.config import TrainConfig
from statten.training.losses import cross_entropy, make_loss, tet_loss

T, B, C = 3, 5, 7


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(T, B, C, dtype=torch.float64), torch.randint(C, (B,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_that_of_torch(data, smoothing):
    logits, target = data
    expected = F.cross_entropy(logits[0], target, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits[0], target, smoothing), expected, rtol=1e-12, atol=0)
    ours = make_loss(TrainConfig(label_smoothing=smoothing))(logits[0], target)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_soft_targets_are_taken_as_they_are(data):
    logits, target = data
    soft = F.one_hot(target, C).double() * 0.7 + 0.3 / C
    expected = F.cross_entropy(logits[0], soft)
    for loss in (lambda x, y: cross_entropy(x, y, 0.1), make_loss(TrainConfig(label_smoothing=0.1))):
        torch.testing.assert_close(loss(logits[0], soft), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mean", "lamb"), [(1.0, 1e-3), (0.5, 0.2), (1.0, 0.0), (1.0, 1.0)])
def test_tet_is_its_formula(data, mean, lamb, smoothing):
    logits, target = data
    entropy = sum(F.cross_entropy(logits[t], target, label_smoothing=smoothing) for t in range(T)) / T
    pull = F.mse_loss(logits, torch.full_like(logits, mean))
    expected = (1 - lamb) * entropy + lamb * pull
    torch.testing.assert_close(tet_loss(logits, target, mean, lamb, smoothing), expected, rtol=1e-12, atol=0)
    soft = F.one_hot(target, C).double() * (1 - smoothing) + smoothing / C
    torch.testing.assert_close(tet_loss(logits, soft, mean, lamb), expected, rtol=1e-12, atol=0)
    config = TrainConfig(loss="tet", tet_mean=mean, tet_lambda=lamb, label_smoothing=smoothing)
    torch.testing.assert_close(make_loss(config)(logits, target), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_bce_is_that_of_torch_over_all_classes(data, smoothing, threshold):
    logits, target = data
    soft = F.one_hot(target, C).double() * (1 - smoothing) + smoothing / C
    if threshold is not None:
        soft = (soft > threshold).double()
    expected = F.binary_cross_entropy_with_logits(logits[0], soft)
    loss = make_loss(TrainConfig(loss="bce", label_smoothing=smoothing, bce_target_thresh=threshold))
    torch.testing.assert_close(loss(logits[0], target), expected, rtol=1e-12, atol=0)
    mixed = soft * 0.7 + soft.flip(0) * 0.3
    wanted = F.binary_cross_entropy_with_logits(logits[0], mixed if threshold is None else (mixed > threshold).double())
    torch.testing.assert_close(loss(logits[0], mixed), wanted, rtol=1e-12, atol=0)


def test_tet_takes_mixed_targets_at_every_timestep(data):
    logits, target = data
    mixed = F.one_hot(target, C).double() * 0.6 + F.one_hot(target.flip(0), C).double() * 0.4
    expected = 0.999 * sum(F.cross_entropy(logits[t], mixed) for t in range(T)) / T + 1e-3 * (logits - 1).square().mean()
    loss = make_loss(TrainConfig(loss="tet", label_smoothing=0.1))
    torch.testing.assert_close(loss(logits, mixed), expected, rtol=1e-12, atol=0)


def test_tet_wants_every_timestep_right(data):
    """Two timesteps whose mean is right but one is wrong cost more than two that are right."""
    target = torch.zeros(1, dtype=torch.long)
    right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    assert tet_loss(torch.stack([right, wrong]), target) > tet_loss(torch.stack([right, right]) * 0.375, target)


def test_gradients_reach_every_timestep(data):
    logits, target = data
    logits.requires_grad_()
    tet_loss(logits, target, smoothing=0.1).backward()
    assert logits.grad.abs().flatten(1).sum(1).gt(0).all()
