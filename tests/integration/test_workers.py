"""Two Ray Train workers: the same weights on every rank, and every sample counted once."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import ray.cloudpickle
import torch

from statten.cluster import trainer
from statten.cluster.session import ray_cluster
from statten.config import load_config
from statten.data import make_loaders
from statten.metrics.accuracy import Accuracy
from statten.models import build_model
from statten.storage.checkpoint import load_weights
from statten.storage.run import Run
from statten.training.loop import validate


def digest(model: torch.nn.Module) -> dict[str, str]:
    """One digest over the parameters, one over BatchNorm's statistics."""

    def over(tensors):
        return hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in tensors)).hexdigest()

    return {"parameters": over(model.parameters()), "statistics": over(model.buffers())}


def recorded_worker(settings: dict) -> None:
    """The real worker, with a note of the model's state as each validation begins."""
    import ray.train

    from statten.cluster import trainer
    from statten.training import loop

    rank, real, notes = ray.train.get_context().get_world_rank(), loop.validate, []

    def noting(model, loader, config, prefix="val/"):
        notes.append({**digest(model), "samples": loader.samples})
        (Path(settings["run"]) / f"rank-{rank}.json").write_text(json.dumps(notes))
        return real(model, loader, config, prefix)

    loop.validate = noting
    trainer._worker(settings)


@pytest.mark.slow
def test_two_workers_agree_and_count_every_sample_once(tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
    monkeypatch.setattr(trainer, "_worker", recorded_worker)
    overrides = {
        "model.depth": 1, "model.embed_dim": 32, "train.epochs": 2, "train.warmup_epochs": 0,
        "scale.workers": 2, "scale.cpus_per_worker": 1, "scale.device": "cpu",
    }  # fmt: skip
    config = load_config("digits", overrides)
    total = make_loaders(config).validation.total
    assert total % 2 == 1, "an odd number, so that ranks have shares of different sizes"
    run = trainer.train(config, tmp_path / "two")

    notes = [json.loads((run.path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(notes[0]) == len(notes[1]) == 2
    for epoch in range(2):
        for part in ("parameters", "statistics"):
            assert notes[0][epoch][part] == notes[1][epoch][part], f"{part} differ after epoch {epoch + 1}"
        assert notes[0][epoch]["samples"] + notes[1][epoch]["samples"] == total
    assert notes[0][0]["parameters"] != notes[0][1]["parameters"], "and they move"

    model = build_model(config.model)
    model.load_state_dict(load_weights(run.checkpoint_folder / "epoch-0002"))
    alone = validate(model, make_loaders(config).validation, config)
    assert alone["val/top1"] == run.metrics()[-1]["val/top1"]
    assert alone["val/top5"] == run.metrics()[-1]["val/top5"]
    assert alone["val/loss"] == pytest.approx(run.metrics()[-1]["val/loss"], rel=1e-5)
    assert round(alone["val/top1"] * total / 100, 6).is_integer(), "a share of the true number of samples"


def test_ray_is_left_as_it_was_found():
    with ray_cluster(None) as capacity:
        assert capacity["CPU"] >= 1 and ray.is_initialized()
        with ray_cluster(None) as inner:
            assert inner["CPU"] == capacity["CPU"]
        assert ray.is_initialized(), "an inner use does not stop the outer one's Ray"
    assert not ray.is_initialized()


def test_a_tie_is_not_a_hit():
    counts = Accuracy("cpu")
    counts.add(torch.tensor(0.0), torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]))
    assert counts.reduced() == {"loss": 0.0, "top1": 0.0, "top5": 0.0, "samples": 4.0}


def test_a_run_holds_what_a_reviewer_needs(tmp_path):
    run = Run.create(tmp_path / "r", load_config("digits"), extra={"splits.json": {"test": [1]}})
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.yaml", "run.json", "splits.json"]
    assert run.config == load_config("digits")
