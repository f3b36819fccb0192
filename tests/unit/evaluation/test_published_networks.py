"""Published files of other networks than sdt are evaluated and exported as our own runs are."""

from argparse import Namespace

import pytest
import torch
from evaluated import make_run
from typer.testing import CliRunner

from statten.cli.options import app
from statten.errors import UserError
from statten.evaluation import evaluate
from statten.evaluation.export import export
from statten.evaluation.targets import open_target
from statten.models.published import published_arguments, to_published

FIELDS = {
    "qkformer": {"model__depth": 3},
    "maxformer": {"model__depth": 3},
    "spikformer": {"model__pooling": "0001"},
    "sdt2": {"model__depth": 3, "model__image_size": 16},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {
        name: make_run(tmp_path_factory.mktemp("runs") / name, **{"model__backbone": name, "model__pooling": "0011", **fields})
        for name, fields in FIELDS.items()
    }


@pytest.mark.parametrize("name", FIELDS)
def test_a_run_goes_through_its_published_file(name, runs, tmp_path):
    own = open_target(runs[name].path)
    export(runs[name].path, tmp_path / "out", ["published"])
    found = open_target(tmp_path / "out" / "published.pth.tar")
    named = {"stem_stride": own.config.model.stem_stride}  # which a file tells, where a config may leave it empty
    assert found.config.model.model_copy(update=named) == own.config.model and found.config.data.name == "digits"
    assert found.config.model.stem == own.config.model.stem
    weights = own.weights()
    assert weights.keys() == found.weights().keys()
    assert all(torch.equal(weights[key], value) for key, value in found.weights().items())
    told = {row["argument"]: row["field"] for row in found.imported}
    assert told["num_heads"] == "model.num_heads" and told["chunk_size"] == "model.block_size"
    assert any("mixes the samples" in note for note in found.notes) == (name == "qkformer")


def test_qkformer_as_published(runs, tmp_path):
    target = open_target(runs["qkformer"].path)
    weights = target.weights()
    weights["blocks.2.attn.qkv.1.bias"] += 1  # so that the neurons behind the projection fire, but not always
    weights["blocks.2.attn.proj.1.bias"] += 0.7
    saved = {"state_dict": to_published(weights, target.config.model), "args": Namespace(**published_arguments(target.config))}
    path = tmp_path / "qkformer.pth.tar"
    torch.save(saved, path)
    own, mixing = (evaluate(path, as_published=asked, storage=tmp_path) for asked in (False, True))
    assert mixing["folder"] != own["folder"] and mixing["loss"] != own["loss"]
    assert any("samples of a batch mix" in note for note in mixing["notes"])
    same = "blocks.2.attn.out"
    assert mixing["firing_rates"][same] == own["firing_rates"][same] and mixing["firing_rates"] != own["firing_rates"]
    sizes = {(): 32, ("train.eval_batch_size=8",): 8}
    assert all(open_target(path, o, as_published=True).config.train.eval_batch_size == size for o, size in sizes.items())
    with pytest.raises(
        UserError, match="--as-published: samples mix in the order of the data, so it takes 1 worker, but got 2"
    ):
        evaluate(path, as_published=True, workers=2, storage=tmp_path)


def test_as_published_elsewhere_is_refused(runs):
    with pytest.raises(UserError, match=r"--as-published: is for qkformer, .* but the network is maxformer; leave it out"):
        evaluate(runs["maxformer"].path, as_published=True)
    found = CliRunner().invoke(app, ["evaluate", str(runs["spikformer"].path), "--as-published"])
    assert isinstance(found.exception, UserError) and "the network is spikformer" in str(found.exception)
