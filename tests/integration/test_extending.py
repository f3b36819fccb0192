"""A dataset, an attention mode, a backbone and a neuron backend are one file and one line each, in a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import statten

PACKAGE = Path(statten.__file__).parent
FIELDS = (
    "data.fraction=0.05 train.epochs=1 train.batch_size=16 train.warmup_epochs=0 model.embed_dim=32 model.depth=1 "
    "model.timesteps=2 scale.device=cpu"
)
FAST = [word for field in FIELDS.split() for word in ("--set", field)]

DATASET = '''
import numpy as np
import torch

from statten.data.dataset import InMemory, Samples


def open_stripes(config):
    """Stripes that lie or stand."""
    labels = np.arange(640) % 2
    side = config.model.image_size

    def load():
        x = torch.rand(len(labels), 1, side, side, generator=torch.Generator().manual_seed(0))
        x[labels == 0, :, ::2] += 1
        x[labels == 1, :, :, ::2] += 1
        return Samples(x, torch.from_numpy(labels))

    return InMemory(labels, load, None)
'''
ATTENTION = '''
from statten.models.attention.core import AttentionCore


class GateCore(AttentionCore):
    """A channel of v passes where q spikes."""

    def __init__(self, config, neuron, backend):
        super().__init__(config)
        self.lif = neuron(config.attention_threshold, config.tau, config.surrogate_alpha, backend=backend)

    def forward(self, q_TBDHW, k_TBDHW, v_TBDHW, mask_TBDHW):
        return self.lif((q_TBDHW * v_TBDHW).float()).to(q_TBDHW.dtype)
'''
BACKBONE = '''
from torch import nn

from statten.models.backbones.base import Backbone, conv_bn, per_frame
from statten.models.operations import Operation, conv3x3
from statten.neurons import LIF


class Plain(Backbone):
    """One convolution, neurons, and a classifier."""

    def __init__(self, config, backend="auto"):
        super().__init__(config, backend)
        self.stem = conv_bn(nn.Conv2d(config.in_channels, 8, 3, padding=1, bias=False), backend)
        self.lif, self.head = LIF(backend=backend), nn.Linear(8, config.num_classes)

    def logits(self, x_TBCHW):
        return self.head(self.lif(per_frame(self.stem, x_TBCHW), self.timesteps).mean((-1, -2)))

    def spiking_layers(self):
        return {"stem": self.lif}

    @classmethod
    def operations(cls, config):
        yield conv3x3("stem", None, config.in_channels, 8, config.image_size)
        K, values = config.num_classes, 8 * config.image_size**2
        yield Operation("head", "linear", "stem", 8 * K, 8 * K, values, K)
'''
BACKEND = '''
from statten.neurons.torch_backend import TorchBackend


class Slow(TorchBackend):
    """The oracle under another name."""

    name = "slow"


BACKEND = Slow()
'''
ENTRIES = {
    "DATASETS": (
        "data/stripes.py", DATASET, '    "stripes": Dataset("statten.data.stripes:open_stripes", channels=1, bundled=True),',
        "data.name=stripes",
    ),
    "ATTENTION": (
        "models/attention/gate.py", ATTENTION, '    "gate": "statten.models.attention.gate:GateCore",',
        "model.attention=gate",
    ),
    "BACKBONES": (
        "models/backbones/plain.py", BACKBONE, '    "plain": "statten.models.backbones.plain:Plain",',
        "model.backbone=plain",
    ),
    "NEURON_BACKENDS": (
        "neurons/slow.py", BACKEND, '    "slow": "statten.neurons.slow:BACKEND",',
        "scale.neuron_backend=slow",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package with a new entry of each kind: its file, and its line at the end of its registry."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "statten", ignore=shutil.ignore_patterns("__pycache__"))
    listing = folder / "statten" / "registry.py"
    lines = listing.read_text().splitlines()
    for registry, (file, text, line, _) in ENTRIES.items():
        (folder / "statten" / file).write_text(text)
        start = next(i for i, written in enumerate(lines) if written.startswith(f"{registry}: "))
        end = next(i for i in range(start, len(lines)) if lines[i].startswith("}"))
        lines.insert(end, line)
    listing.write_text("\n".join(lines) + "\n")
    return folder


def statten_of(copy: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "statten", *words]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=copy, check=False, timeout=300)


@pytest.mark.parametrize("kinds", [["BACKBONES"], ["DATASETS", "ATTENTION", "NEURON_BACKENDS"]], ids="+".join)
def test_a_new_entry_trains_from_the_command_line(kinds, copy):
    choices = [ENTRIES[kind][-1] for kind in kinds]
    words = [word for choice in choices for word in ("--set", choice)]
    done = statten_of(copy, "train", "digits", *FAST, *words, "--name", kinds[0], "--storage", "runs", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["metrics"]
    assert row["epoch"] == 1 and row["energy_uj"] > 0 and any(name.startswith("firing_rate/") for name in row)
    written = (copy / "runs" / kinds[0] / "config.yaml").read_text()
    for choice in choices:
        assert choice.partition(".")[2].replace("=", ": ") in written


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_new_entry_is_among_the_choices(kind, copy):
    field, _, name = ENTRIES[kind][-1].partition("=")
    refused = statten_of(copy, "train", "digits", "--set", f"{field}={name[:-1]}", "--dry-run")
    assert refused.returncode == 2 and f"did you mean {name}?" in refused.stderr, refused.stderr
