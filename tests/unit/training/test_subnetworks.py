"""A supernet's training: one point a step, the same after a resume and on all ranks; what was not drawn stays as it is."""

import pytest
import torch
from evaluated import TINY

from statten.config import load_config
from statten.data import make_loaders
from statten.models.slices import extract
from statten.space.loading import make_space
from statten.storage.checkpoint import load_newest, save
from statten.training.faults import Preempted
from statten.training.loop import NoCallback, fit, make_state
from statten.training.subnetworks import Subnetworks, ready

TREE = {
    "model.timesteps": {"choices": [1, 2]}, "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 2]}, "model.embed_dim": {"choices": [16, 32]},
}  # fmt: skip
WATCHED = {
    "largest": {"model.timesteps": 2, "model.block_size": 2, "model.depth": 2, "model.embed_dim": 32},
    "smallest": {"model.timesteps": 1, "model.block_size": 1, "model.depth": 1, "model.embed_dim": 16},
}


def a_supernet(**fields):
    config = load_config("digits", {
        **TINY, "model.num_heads": 2, "model.timesteps": 2, "model.block_size": 2, "model.depth": 2, "model.embed_dim": 32,
        "data.fraction": 0.1, "train.batch_size": 24, "train.epochs": 2, **fields,
    })  # fmt: skip
    state = make_state(config)
    return config, state, Subnetworks(state.model, make_space(TREE, config), config, WATCHED)


class Kept(NoCallback):
    def __init__(self, folder, leave_after=None):
        self.folder, self.left, self.rows = folder, leave_after, []

    def step(self, state, steps):
        self.left = None if self.left is None else self.left - 1
        return self.left == 0

    def checkpoint(self, state):
        save(state, self.folder)

    def epoch(self, state):
        self.rows.append({k: v for k, v in state.metrics.items() if k not in ("seconds", "samples_per_second", "time")})


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "sgd"])
def test_what_was_not_drawn_is_not_touched(optimizer):
    _, state, parts = a_supernet(**{"train.optimizer": optimizer, "train.weight_decay": 0.5})
    x = torch.rand(4, 1, 8, 8)

    def step(point):
        parts.inner = parts._at(point).train()
        parts.module()(x).square().sum().backward()
        with parts.moving(state.optimizer):
            state.optimizer.step()
        state.optimizer.zero_grad()

    def everything():
        held = {(n, k): v for n, p in state.model.named_parameters() for k, v in state.optimizer.state.get(p, {}).items()}
        weights = dict(state.model.named_parameters()).items()
        return {**{n: p.detach().clone() for n, p in weights}, **{k: v.clone() for k, v in held.items() if hasattr(v, "clone")}}

    step(WATCHED["largest"])
    before = everything()
    step(WATCHED["smallest"])
    after = everything()
    fc1 = "blocks.0.mlp.fc1.0.weight"
    assert not torch.equal(after[fc1][:16, :16], before[fc1][:16, :16]), "what was drawn moves"
    for name in before:
        weight = name if isinstance(name, str) else name[0]
        if weight.startswith("blocks.1."):
            assert torch.equal(after[name], before[name]), name
        if weight == fc1 and after[name].ndim == 4:
            hidden = len(after[name]) // 2
            assert torch.equal(after[name][hidden:], before[name][hidden:]), name
            assert torch.equal(after[name][:, 16:], before[name][:, 16:]), name
    qkv = "blocks.0.attn.qkv.0.weight"
    assert (after[qkv] != before[qkv]).flatten(1).any(1).nonzero().flatten().tolist() == [
        *range(16), *range(32, 48), *range(64, 80)
    ]  # fmt: skip


def test_points_are_a_function_of_seed_epoch_and_step_and_cover_the_space():
    parts, again, other = a_supernet()[2], a_supernet()[2], a_supernet(**{"train.seed": 1})[2]
    drawn = [parts.point(epoch, step) for epoch in range(8) for step in range(20)]
    assert drawn == [again.point(epoch, step) for epoch in range(8) for step in range(20)]
    assert drawn != [other.point(epoch, step) for epoch in range(8) for step in range(20)]
    assert len({str(point) for point in drawn}) == 12


def test_a_resumed_supernet_takes_the_same_steps(tmp_path):
    options = {"train.optimizer": "lamb", "train.ema_decay": 0.9, "model.drop_path": 0.2, "train.clip_grad": 0.5}
    config, straight, parts = a_supernet(**options)
    whole = Kept(tmp_path / "straight")
    fit(straight, make_loaders(config), config, whole, parts)
    config, state, parts = a_supernet(**options)
    with pytest.raises(Preempted):
        fit(state, make_loaders(config), config, Kept(tmp_path / "cut", 3), parts)
    config, state, parts = a_supernet(**options)
    assert load_newest(state, tmp_path / "cut") is not None and (state.epoch, state.step) == (0, 3)
    rest = Kept(tmp_path / "cut")
    fit(state, make_loaders(config), config, rest, parts)
    assert rest.rows == whole.rows and len(whole.rows) == 2
    for (name, one), (_, other) in zip(straight.model.state_dict().items(), state.model.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    row = whole.rows[-1]
    assert row["val/top1"] == pytest.approx((row["largest/top1"] + row["smallest/top1"]) / 2)
    assert row["val/loss"] == pytest.approx((row["largest/loss"] + row["smallest/loss"]) / 2)


def test_a_point_is_ready_with_statistics_of_its_own():
    config, state, _ = a_supernet()
    loaders, space = make_loaders(config), make_space(TREE, config)
    state.model.train()
    at = space.config(WATCHED["smallest"])
    one = ready(state.model.state_dict(), at, loaders, torch.device("cpu"))
    two = ready(state.model.state_dict(), at, loaders, torch.device("cpu"))
    assert not one.training and all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert torch.equal(one.head.weight, state.model.head.weight[:, :16])
    statistics = one.embed.stages[1][1].running_var
    assert not torch.equal(statistics, torch.ones_like(statistics))
    assert extract(state.model.state_dict(), at.model).keys() == one.state_dict().keys()
