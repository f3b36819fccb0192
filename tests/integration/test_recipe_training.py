"""Every published recipe trains a short epoch on two ranks, on small files in the real format of its dataset."""

import json
import os
from pathlib import Path

import formats
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from statten.cluster.session import free_port
from statten.config import load_config, recipe_names, with_overrides
from statten.data import make_loaders
from statten.data.prepare import prepare
from statten.registry import BACKBONES
from statten.training.loop import fit, make_state

RECIPES = [name for name in recipe_names() if not name.startswith(("digits", "image_folder", "event_folder"))]
# The recipe's data, loss, mixing and optimizer; a network, batches and an epoch that a CPU has in a second.
SHORT = {
    "train.epochs": 1, "train.cooldown_epochs": 0, "train.warmup_epochs": 0,
    "train.mixup_off_epoch": 0, "train.batch_size": 4, "train.eval_batch_size": 8, "data.workers": 0, "scale.workers": 2,
}  # fmt: skip


SMALL = {
    "columns": {"model.depth": 1, "model.embed_dim": 16, "model.num_heads": 8},
    "pyramid": {"model.depth": 4, "model.embed_dim": 32, "model.num_heads": 1},
    "meta": {"model.depth": 3, "model.embed_dim": 16, "model.num_heads": 1},
}
"""A small network, by the layout of its backbone."""


def train_all(rank: int, port: int, root: Path) -> None:
    """What each rank does: all recipes, one after the other."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    found = {}
    for name in RECIPES:
        recipe = load_config(name)
        small = SMALL[BACKBONES.line(recipe.model.backbone).layout]
        config = with_overrides(recipe, {**SHORT, **small, "data.root": str(root / recipe.data.name)})
        state = make_state(config)
        before = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        metrics = fit(state, make_loaders(config, rank, 2), config)
        after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        found[name] = {**metrics, "moved": bool((after != before).any()), "sum": after.double().sum().item()}
    (root / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    formats.write_cifar(root / "cifar10", per_class=2)
    formats.write_cifar(root / "cifar100", "cifar100", per_class=3)
    formats.write_images(root / "imagenet", {"train": 8, "val": 2})
    formats.write_cifar10dvs(root / "cifar10dvs")
    formats.write_ncaltech101(root / "ncaltech101")
    for name in ("cifar10dvs", "ncaltech101"):
        prepare(name, root / name, [10, 16])
    torch.multiprocessing.spawn(train_all, (free_port(), root), nprocs=2)
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_short_epoch_on_two_ranks(name, trained):
    ours, other = (found[name] for found in trained)
    assert ours["moved"] and 0 < ours["train/loss"] < 20 and 0 < ours["val/loss"] < 20
    assert ours["sum"] == other["sum"], "both ranks hold the same weights"
    assert ours["val/loss"] == other["val/loss"], "and know the same metrics"
