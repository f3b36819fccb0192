"""A supernet in lists and tables: in training, in evaluation and at its end."""

import json

import pytest
from evaluated import TINY

from statten.config import load_config
from statten.display import console
from statten.report.overview import details, details_table, overview
from statten.report.supernet import sentences, supernet_summary
from statten.search.front import compared, objectives
from statten.search.supernet import planned
from statten.space.loading import make_space
from statten.storage.checkpoint import save
from statten.storage.supernet import FRONT, POINTS, Supernet
from statten.training.loop import make_state

TREE = {"model.timesteps": {"choices": [1, 2]}, "model.embed_dim": {"choices": [16, 32]}}


@pytest.fixture
def net(tmp_path):
    config = load_config("digits", {**TINY, "model.num_heads": 2, "model.block_size": 1, "train.epochs": 3})
    whole, space, watched, points = planned(config, make_space(TREE, config))
    return Supernet.begin(tmp_path / "net", whole, space, watched, points, {})


def shown(path):
    with console.capture() as capture:
        console.print(details_table(details(path)))
    return capture.get()


def trained(net):
    row = {"epoch": 1, "val/top1": 40.0, "val/loss": 1.5, "largest/top1": 50.0, "largest/loss": 1.25}
    (net.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    state = make_state(net.config)
    state.epoch, state.metrics, state.best = 3, row, row
    save(state, net.checkpoint_folder)


def evaluated(net, number):
    points = list(net.space.points())[:number]
    rows = [
        {"number": n, "point": point, "checkpoint": "epoch-0003", "seconds": 0.1,
         "metrics": {"val/loss": 2.0 - n / 4, "val/top1": 60.0 + n, "val/top5": 90.0, "energy_uj": n + 0.5, "latency_ms": 1.0}}
        for n, point in enumerate(points)
    ]  # fmt: skip
    (net.path / POINTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_supernet_is_shown_whatever_it_is_at(net):
    (row,) = overview(net.path.parent)
    assert (row["kind"], row["state"], row["progress"], row["best"]) == ("supernet", "unfinished", "0/3 epochs", "-")
    trained(net)
    text = shown(net.path)
    assert "1/3 epochs" in text and "largest/top1" in text and "50.00" in text
    (net.path / "result.json").write_text(json.dumps({"state": "finished"}))
    evaluated(net, 2)
    (row,) = overview(net.path.parent)
    assert (row["state"], row["progress"], row["best"]) == ("unfinished", "2/4 points", "61.00 %") and not net.complete
    rows = evaluated(net, 4)
    found = compared(net.space, rows, objectives(net.config))
    (net.path / FRONT).write_text(json.dumps(found))
    assert net.complete and overview(net.path.parent)[0]["state"] == "finished"
    text = shown(net.path)
    assert "the front of validation loss and energy per sample" in " ".join(text.split()) and "T=2" in text
    document = details(net.path)
    assert [row["number"] for row in document["front"]] == [3, 2, 1, 0] and len(document["points"]) == 4
    said = " ".join(sentences(document))
    assert "never with trained trials" in said and "Kendall's tau" in said and f"{document['hypervolume']:.3f}" in said
    with console.capture() as capture:
        supernet_summary(net, 0.0)
    assert "statten promote" in capture.get() and "--trial 3" in capture.get()
