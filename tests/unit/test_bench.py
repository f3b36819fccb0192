"""The benchmarks run, count what they say they count, and write what they print."""

import json

import pytest
import torch
from torch import nn

from statten import bench
from statten.config import ModelConfig
from statten.errors import UserError


@pytest.fixture
def small(monkeypatch):
    config = ModelConfig(timesteps=2, block_size=1, depth=1, embed_dim=16, num_heads=2, image_size=8, pooling="0001")
    monkeypatch.setitem(bench.MODELS, "cifar10_2_512", (config, 2))
    return torch.device("cpu")


@pytest.mark.parametrize("what", ["step", "memory", "attention"])
def test_a_benchmark_of_models_names_its_peer(small, what, tmp_path):
    output = tmp_path / "out.json"
    rows = bench.run_benchmark(what, small, 1, "cifar10_2_512", 2, output)
    written = json.loads(output.read_text())
    assert written["results"] == bench.documents(rows) and written["hardware"]["cpus"] >= 1
    assert all(set(row) == {"case", "metric", "ours", "peer", "ratio"} for row in written["results"])
    assert all(row.ours > 0 and row.ratio > 0 and "peer" in row.metric for row in rows)


def test_loaders_are_measured_on_the_same_files(tmp_path):
    folders, shards, listing = bench.bench_data(1, batch=4, images=16, workers=1, listed=3)
    assert "class folders, 16 JPEG files" in folders.case and "tar shards" in shards.case and "300 files" in listing.case
    assert folders.peer == shards.peer and all(
        "peer torchvision ImageFolder" in row.metric for row in (folders, shards, listing)
    )
    assert folders.ratio == pytest.approx(folders.ours / folders.peer)
    assert listing.ratio == pytest.approx(listing.peer / listing.ours)
    bench._write_photos(tmp_path, 8)
    sizes = [path.stat().st_size for path in (tmp_path / "train").rglob("*.jpg")]
    assert 60_000 < sum(sizes) / len(sizes) < 180_000


def test_the_neurons_are_measured_one_by_one(small):
    rows = list(bench.bench_lif(small, 1, (2, 1, 8, 8)))
    assert {row.case.split()[0] for row in rows} == {"native", "torch"}
    assert all(row.ratio == pytest.approx(row.peer / row.ours) for row in rows if row.metric.startswith("ms"))


def test_saved_bytes_counts_memory_once_and_no_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 20)

        def forward(self, x):
            y = self.layer(x)  # saves x and the weight
            return y.exp() + y.exp().flatten().view_as(y)  # saves both results

    assert bench.saved_bytes(Net(), torch.randn(5, 10)) == 4 * (5 * 10 + 2 * 5 * 20)


def test_flops_are_those_of_the_layers():
    config = ModelConfig(
        timesteps=1, block_size=1, depth=1, embed_dim=8, num_heads=1, image_size=4, pooling="0000", mlp_ratio=1
    )
    convolutions = 9 * (3 * 1 + 1 * 2 + 2 * 4 + 4 * 8 + 8 * 8) + (8 * 24 + 8 * 8 + 2 * 8 * 8)
    classifier = 8 * 10
    assert bench.count_flops(config, 2) == 3 * 2 * 2 * (16 * convolutions + classifier)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bench.pick("gpu"), "--device: 'gpu' is no device; did you mean cpu"),
        (lambda: bench.run_benchmark("step", torch.device("cpu"), 1, "cifar10"), "--model: 'cifar10' is no benchmark's model"),
    ],
)
def test_wrong_names_are_answered(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_without_the_peer_one_sentence_says_how_to_get_it(typed, monkeypatch):
    monkeypatch.setattr("statten.cli.machine.find_spec", lambda name: None)
    code, out, err = typed("bench", "step")
    assert code == 2 and out == "" and "bench: needs spikingjelly" in err and "pip install 'statten[bench]'" in err
