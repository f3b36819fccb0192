"""Small models that fire, and run folders that hold them, without the minutes of a training."""

import argparse
import json
from pathlib import Path

import torch

from statten.config import Config, load_config
from statten.data import Loaders, make_loaders
from statten.models.published import to_published
from statten.storage.checkpoint import save
from statten.storage.run import Run
from statten.training.loop import make_state

# The smallest model that the tests train on digits.
TINY = {"model.depth": 1, "model.embed_dim": 16, "model.timesteps": 1, "model.block_size": 1}
SMALL = {"model.depth": 1, "model.embed_dim": 32, "scale.device": "cpu", "train.batch_size": 64}


def alive(config: Config, loaders: Loaders | None = None):
    """A training state whose BatchNorm has seen two batches, so that its neurons fire."""
    state = make_state(config)
    state.model.train()
    batches = (loaders or make_loaders(config)).train.batches(0)
    with torch.no_grad():
        for _ in range(2):
            state.model(next(batches)[0])
    return state


def make_run(path: Path, recipe: str = "digits", **fields) -> Run:
    """A finished run of one epoch with a real checkpoint."""
    config = load_config(recipe, {**SMALL, **{name.replace("__", "."): value for name, value in fields.items()}})
    loaders = make_loaders(config)
    run, state = Run.create(path, config), alive(config, loaders)
    row = {"epoch": 1, "val/top1": 10.0, "val/top5": 50.0, "val/loss": 2.3}
    state.epoch, state.metrics, state.best = 1, row, row
    save(state, run.checkpoint_folder, classes=loaders.classes)
    (run.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return run


def published_file(path: Path, config: Config, state: dict, **more) -> Path:
    """A checkpoint as the published trainer writes it."""
    m = config.model
    arguments = argparse.Namespace(
        model="sdt", dataset="torch/cifar10", num_classes=m.num_classes, img_size=m.image_size, in_channels=m.in_channels,
        pooling_stat=m.pooling, layer=m.depth, dim=m.embed_dim, num_heads=m.num_heads, mlp_ratio=m.mlp_ratio,
        time_steps=m.timesteps, chunk_size=m.block_size, spike_mode="lif", attention_mode="STAtten", TET=False, lr=3e-4,
        opt="adamw", workers=8,
    )  # fmt: skip
    saved = {"epoch": 7, "arch": "sdt", "state_dict": to_published(state), "version": 2, "args": arguments, "metric": 61.5}
    torch.save({**saved, **more}, path)
    return path
