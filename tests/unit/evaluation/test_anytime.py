"""Answers after fewer timesteps, early exit, and the grid of timesteps and block sizes."""

from pathlib import Path

import pytest
import torch
from evaluated import make_run
from torch import nn

from statten.data import make_loaders, make_test_loader
from statten.errors import UserError
from statten.evaluation import evaluate, open_target
from statten.evaluation.anytime import anytime, early_exit
from statten.evaluation.grid import best_cell, best_pair, grid, grid_summary, recalibrate_norms
from statten.evaluation.measure import RECORD, Measured
from statten.models import Backbone


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "digits", model__timesteps=3, model__block_size=2)


def test_each_step_is_an_evaluation_of_so_many_timesteps(run):
    report = anytime(run.path)
    assert [row["timesteps"] for row in report["steps"]] == [1, 2, 3]
    for row in report["steps"]:
        alone = evaluate(run.path, {"model.timesteps": row["timesteps"], "model.block_size": min(2, row["timesteps"])})
        assert row["top1"] == alone["top1"] and row["loss"] == alone["loss"]
        assert row["energy_pj"] == pytest.approx(alone["energy"]["total"]["pj"], rel=1e-12)
        assert row["latency_ms"] > 0
    names = {path.name for path in Path(report["folder"]).iterdir()}
    assert {"anytime.json", "anytime.md", "anytime.png"} <= names


def test_latency_is_measured_in_the_precision_of_the_run(run, monkeypatch):
    """A bf16 run's answers are computed in bf16: so must be those that are timed."""
    seen = []
    forward = Backbone.forward

    def recorded(self, x):
        if x.device.type == "cpu":  # memory is estimated on PyTorch's meta device
            seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, x)

    monkeypatch.setattr(Backbone, "forward", recorded)
    anytime(run.path, {"train.precision": "bf16"})
    assert seen and all(seen)


def test_clips_are_cut_to_their_first_frames(tmp_path):
    run = make_run(tmp_path / "events", "digits_events", model__timesteps=2, model__block_size=1)
    report = anytime(run.path)
    assert report["steps"][0]["energy_pj"] < report["steps"][1]["energy_pj"]
    target = open_target(run.path)
    model, test = target.model().eval(), make_test_loader(target.config)
    model.set_timesteps(1, 1)
    with torch.no_grad():
        batches = [(model(x[:, :1]), y) for x, y in test]
    right = sum(int(((z >= z.gather(1, y[:, None])).sum(1) == 1).sum()) for z, y in batches)  # a tie is not a hit
    assert report["steps"][0]["top1"] == pytest.approx(100 * right / 359)


def test_early_exit_by_hand():
    def found(confidence, rank):
        records = torch.zeros(4, len(RECORD), dtype=torch.float64)
        records[:, RECORD.index("confidence")] = torch.tensor(confidence)
        records[:, RECORD.index("rank")] = torch.tensor(rank, dtype=torch.float64)
        return Measured(torch.arange(4), records, {}, 1.0, 0)

    steps = [
        found([0.9, 0.5, 0.5, 0.5], [1, 0, 0, 0]),
        found([0.9, 0.9, 0.5, 0.5], [0, 0, 1, 1]),
        found([0.1] * 4, [0, 1, 0, 1]),
    ]
    assert early_exit(steps, [10.0, 20.0, 30.0], 0.8) == {
        "confidence": 0.8,
        "top1": 50.0,  # wrong at 1, right at 2, right and wrong at 3
        "average_timesteps": (1 + 2 + 3 + 3) / 4,
        "energy_pj": (10 + 20 + 30 + 30) / 4,
    }


def test_every_cell_of_the_grid_is_an_evaluation(run):
    report = grid(run.path, timesteps=[2, 4], part="test")
    assert [(c["timesteps"], c["block_size"]) for c in report["cells"]] == [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]
    cell = report["cells"][3]
    alone = evaluate(run.path, {"model.timesteps": 4, "model.block_size": 2})
    assert cell["top1"] == alone["top1"] and cell["loss"] == alone["loss"]
    assert report["best"]["top1"] == max(c["top1"] for c in report["cells"])
    assert "| T=4 |" in (Path(report["folder"]) / "grid-test.md").read_text()
    assert (Path(report["folder"]) / "grid-test.png").stat().st_size > 1000


def test_recalibration_finds_the_statistics_of_the_batches(run):
    target = open_target(run.path, {"model.timesteps": 6, "model.block_size": 3})
    model = target.model()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    model.set_timesteps(6, 3)
    recalibrate_norms(model, target.config, 2)
    assert not model.training and all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    batches = make_loaders(target.config).train.batches(0)
    conv, norm = model.embed.stages[0]
    means = [conv(next(batches)[0]).mean((0, 2, 3)) for _ in range(2)]
    torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_pair_in_use_stays_where_another_gains_nothing():
    cells = [{"timesteps": t, "block_size": b, "top1": top1, "loss": loss} for t, b, top1, loss in
             [(1, 1, 70.0, 0.1), (2, 1, 80.0, 0.5), (2, 2, 80.0, 0.4), (4, 4, 80.0, 0.1)]]  # fmt: skip
    assert best_cell(cells, 2, 1) == cells[1], "its loss alone is higher"
    assert best_cell(cells, 4, 4) == cells[2], "fewer timesteps cost less"
    assert best_cell([*cells, {**cells[0], "top1": 81.0}], 2, 1)["timesteps"] == 1


def test_the_grid_recommends_no_pair_that_is_in_use(run, capsys):
    report = grid(run.path, timesteps=[2, 4], part="test")
    best, other = report["best"], next(c for c in report["cells"] if c["timesteps"] != report["best"]["timesteps"])
    grid_summary({**report, "trained": {name: best[name] for name in report["trained"]}})
    assert "the best one: nothing to change" in (shown := capsys.readouterr().out) and "promote" not in shown
    grid_summary({**report, "trained": {name: other[name] for name in report["trained"]}})
    assert f"--set model.timesteps={best['timesteps']}" in capsys.readouterr().out


def test_the_grid_reads_the_validation_part_unless_told(run):
    target = open_target(run.path)
    report = grid(run.path, timesteps=[1])
    validation = make_loaders(target.config).validation
    model = target.model()
    model.set_timesteps(1, 1)
    with torch.no_grad():
        batches = [(model(x), y) for x, y in validation]
    right = sum(int(((z >= z.gather(1, y[:, None])).sum(1) == 1).sum()) for z, y in batches)
    assert report["samples"] == validation.total != 359
    assert report["cells"][0]["top1"] == pytest.approx(100 * right / validation.total)
    with pytest.raises(UserError, match="--part: must be validation or test, but got 'train'"):
        grid(run.path, part="train")


def test_the_best_pair_has_the_highest_top1_and_of_those_the_fewest_timesteps(run):
    fields, why, report = best_pair(run, {"train.epochs": 1})
    m, cells = run.config.model, report["cells"]
    assert {(c["timesteps"], c["block_size"]) for c in cells} == {
        (t, b) for t in {1, 2, 4, m.timesteps} for b in range(1, t + 1) if t % b == 0
    } | {(m.timesteps, m.block_size)}
    ties = [c for c in cells if c["top1"] == max(c["top1"] for c in cells)]
    assert fields["model.timesteps"] == min(c["timesteps"] for c in ties) and report["best"] in ties
    trained = next(c for c in cells if (c["timesteps"], c["block_size"]) == (m.timesteps, m.block_size))
    assert f"T={fields['model.timesteps']} b={fields['model.block_size']}: of {len(cells)} pairs" in why
    assert f"{trained['top1']:.2f} %)" in why and (len(ties) > 1) == ("pairs reach it" in why)
    with pytest.raises(UserError, match=r"--grid: chooses model\.block_size, but --set model\.block_size=1 does too"):
        best_pair(run, {"model.block_size": 1})


def test_timesteps_that_the_config_refuses(run):
    with pytest.raises(UserError, match=r"--timesteps: .*at most 64, but got 128"):
        grid(run.path, timesteps=[128])
