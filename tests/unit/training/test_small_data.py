"""A dataset of few steps an epoch: validation follows training from the start, and a network that learns is not called dead."""

import pytest
from gratings import write_gratings

from statten.config import load_config
from statten.data import make_loaders
from statten.search.stopping import unhealthy
from statten.training.loop import NoCallback, fit, make_state

SMALL = {
    "data.name": "image_folder", "model.num_classes": 4, "model.in_channels": 3, "model.image_size": 16, "model.depth": 1,
    "model.embed_dim": 32, "model.timesteps": 1, "model.block_size": 1, "train.batch_size": 16, "train.epochs": 3,
}  # fmt: skip


class Rows(NoCallback):
    def __init__(self):
        self.rows = []

    def epoch(self, state):
        self.rows.append(state.metrics)


@pytest.mark.parametrize("ema_decay", [None, 0.9999])
def test_validation_follows_training_from_the_first_epochs(ema_decay, tmp_path):
    """Before, BatchNorm's first 0 and 1 - and the first weights, in their average - silenced layers for three epochs."""
    root = write_gratings(tmp_path, images=300, side=16)
    config = load_config("digits", {**SMALL, "data.root": str(root), "train.ema_decay": ema_decay})
    told = Rows()
    fit(make_state(config), make_loaders(config), config, told)
    for epoch, row in enumerate(told.rows, start=1):
        rates = {name: rate for name, rate in row.items() if name.startswith("firing_rate/")}
        assert min(rates.values()) > 0.005, (epoch, rates)
        late = [{**r, "steps": 1000} for r in told.rows[:epoch]]
        assert unhealthy(config.search, late, classes=4) is None, "by its rates, whatever the steps"
    assert [row["steps"] for row in told.rows] == [13, 26, 39]
    for row in told.rows[1:]:
        assert row["train/top1"] > 60 and row["val/top1"] > 50 and row["val/loss"] < 1.2, row
