"""What a supernet's space may be, which points are evaluated, what a kill leaves, and how the front is judged."""

import json

import pytest
import torch
from evaluated import TINY

from statten.config import load_config
from statten.data import make_loaders
from statten.errors import ConfigError, UserError
from statten.models.slices import extract
from statten.search.front import compared, flops, front, hypervolume, objectives, proxy
from statten.search.points import ALL, SEARCHED, Evaluator, points_of, rounds
from statten.search.supernet import planned, promoted_config
from statten.search.sweep import Sweep, open_folder
from statten.space.loading import make_space
from statten.storage.checkpoint import save
from statten.storage.run import Run
from statten.storage.supernet import POINTS, SPACE, Supernet
from statten.training.loop import make_state, validate
from statten.training.subnetworks import ready

TREE = {
    "model.timesteps": {"choices": [1, 2]}, "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 2]}, "model.embed_dim": {"choices": [16, 32]},
}  # fmt: skip
BASE = {**TINY, "model.num_heads": 2, "model.timesteps": 2, "data.fraction": 0.1, "train.batch_size": 24, "train.epochs": 6}


def of(tree, recipe="digits", points=None, **fields):
    config = load_config(recipe, {**BASE, **fields})
    return planned(config, make_space(tree, config), points)


def test_the_largest_network_holds_every_point():
    whole, space, watched, points = of(TREE)
    assert (whole.model.timesteps, whole.model.depth, whole.model.embed_dim) == (2, 2, 32) and points == 12
    assert watched["largest"] == {
        "model.timesteps": 2, "model.block_size": 2, "model.depth": 2, "model.embed_dim": 32,
    }  # fmt: skip
    assert watched["smallest"] == {
        "model.timesteps": 1, "model.block_size": 1, "model.depth": 1, "model.embed_dim": 16,
    }  # fmt: skip
    assert len({str(point) for point in watched.values()}) == len(watched) == 5
    state = make_state(whole).model.state_dict()
    for point in space.points():
        assert extract(state, space.config(point).model)


def test_a_constraint_may_keep_the_largest_network_out_of_the_space():
    whole, space, watched, _ = of({**TREE, "constraint": "model.depth * model.embed_dim <= 32"})
    assert (whole.model.depth, whole.model.embed_dim) == (2, 32)
    assert all(space.contains(point) for point in watched.values())
    assert whole.model.depth * whole.model.embed_dim > 32
    heads = {"model.num_heads": {"choices": [1, 4]}, "model.embed_dim": {"int": [16, 40], "multiple_of": "8 * model.num_heads"}}
    assert of(heads)[0].model.embed_dim % of(heads)[0].model.num_heads == 0
    couple = {
        "couple.size": {"choices": [{"model.depth": 1, "model.embed_dim": 64}, {"model.depth": 3, "model.embed_dim": 16}]}
    }
    assert (of(couple)[0].model.depth, of(couple)[0].model.embed_dim) == (3, 64)


@pytest.mark.parametrize(
    ("tree", "fields", "sentence"),
    [
        ({"train.lr": {"float": [1e-4, 1e-3]}}, {}, r"train\.lr: cannot be cut out of one network's weights.*statten tune"),
        ({**TREE, "model.neuron": {"choices": ["lif", "plif"]}}, {}, r"^model\.neuron: cannot be cut out"),
        ({"model.timesteps": {"choices": [1, 2]}},
         {"model.backbone": "maxformer", "model.image_size": 16, "model.depth": 4, "model.embed_dim": 64,
          "model.pooling": "0011"},
         r"model\.backbone: maxformer does not say how smaller.*sdt, spikformer"),
        (TREE, {"scale.activation_checkpointing": True}, r"scale\.activation_checkpointing: cannot.*false"),
        ({"model.embed_dim": {"int": [16, 32], "step": 4}}, {}, r"`embed_dim` must be a multiple"),
    ],
    ids=["rate", "neuron", "backbone", "checkpointing", "heads"],
)  # fmt: skip
def test_what_is_no_slice_is_refused_in_a_sentence(tree, fields, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        of(tree, **fields)
    assert len(caught.value.problems) == 1


def test_timesteps_of_clips_are_refused():
    fields = {"model.image_size": 8, "model.pooling": "0001"}
    with pytest.raises(ConfigError, match=r"model\.timesteps: cannot be searched by one training on event clips"):
        of(TREE, "digits_events", **fields)
    assert of({"model.depth": {"int": [1, 2]}}, "digits_events", **fields)[3] == 2


LARGE = {
    "model.timesteps": {"int": [1, 8]}, "model.depth": {"int": [1, 8]}, "model.embed_dim": {"int": [16, 1600], "step": 16},
}  # fmt: skip


def test_points_are_all_of_a_small_space_and_searched_in_a_large_one():
    small, large = of(TREE)[1], of(LARGE)[1]
    assert points_of(small, None) == 12 and points_of(small, 100) == 12 and points_of(small, 5) == 5
    assert large.count() == 6400 > ALL and points_of(large, None) == SEARCHED
    whole, space, *_ = of(TREE)
    (only,) = rounds(space, whole, 12, {})
    assert [number for number, _ in only] == list(range(12)) and len({str(point) for _, point in only}) == 12


def invented(asked):
    """Values that have an optimum, without a network."""
    return {
        number: {"metrics": {"val/loss": 1 / (point["model.embed_dim"] * point["model.timesteps"]),
                             "energy_uj": point["model.embed_dim"] * point["model.depth"] * point["model.timesteps"]}}
        for number, point in asked
    }  # fmt: skip


def test_a_search_finds_its_way_again_after_a_kill():
    whole, space, *_ = of(LARGE)

    def search(known):
        asked = []
        for each in rounds(space, whole, 300, known):
            asked += each
            known.update(invented(each))
        return asked

    straight = search({})
    assert [number for number, _ in straight] == list(range(300)) and len({str(point) for _, point in straight}) == 300
    known = invented(straight[:130])  # killed inside a generation
    assert search(known) == straight and len(known) == 300
    late, early = straight[-64:], straight[:64]
    assert sum(p["model.depth"] for _, p in late) < sum(p["model.depth"] for _, p in early), "depth costs and gains nothing"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A supernet's folder with weights, as after its training."""
    whole, space, watched, points = of(TREE)
    made = Supernet.begin(tmp_path_factory.mktemp("storage") / "net", whole, space, watched, points, {})
    state = make_state(whole)
    row = {"epoch": 6, "val/top1": 10.0, "val/top5": 50.0, "val/loss": 2.3}
    state.epoch, state.metrics, state.best = 6, row, row
    save(state, made.checkpoint_folder)
    (made.path / "result.json").write_text(json.dumps({"state": "finished", "best": row}))
    return made


def evaluated(made, asked):
    weights = {name: value.numpy() for name, value in make_state(made.config).model.state_dict().items()}
    return Evaluator("epoch-0006", made.config.model_dump(mode="json"), made.space.tree, 1).evaluate(weights, asked)


def test_a_point_is_evaluated_as_the_network_that_is_cut_out(trained):
    asked = list(enumerate(trained.space.points()))[4:7]
    one, two = evaluated(trained, asked), evaluated(trained, asked[1:])
    same = [{k: v for k, v in row["metrics"].items() if k != "latency_ms"} for row in (*one, *two)]
    assert same[1:3] == same[3:], "whatever was evaluated before"
    number, point = asked[0]
    config, loaders = trained.space.config(point), make_loaders(trained.config)
    network = ready(make_state(trained.config).model.state_dict(), config, loaders, torch.device("cpu"))
    found = validate(network, loaders.validation, config)
    assert one[0]["metrics"]["val/loss"] == found["val/loss"] and one[0]["metrics"]["energy_uj"] == found["energy_uj"]
    assert one[0]["metrics"]["parameters"] == sum(p.numel() for p in network.parameters()) and one[0]["number"] == number == 4
    assert one[0]["metrics"]["latency_ms"] > 0


def line(number, point, checkpoint="epoch-0006"):
    metrics = {"val/loss": 1.0 + number / 10, "val/top1": 50.0, "val/top5": 90.0, "energy_uj": 2.0 - number / 10}
    return json.dumps({"number": number, "point": point, "metrics": metrics, "checkpoint": checkpoint, "seconds": 0.1}) + "\n"


def test_what_a_kill_leaves_of_the_points_is_read_and_damage_left_out(trained):
    points = list(trained.space.points())
    lines = [line(0, points[0]), line(1, points[1], "epoch-0003"), line(2, points[2]), line(0, points[0]), '{"number": 3, "po']
    (trained.path / POINTS).write_text("".join(lines))
    assert [row["number"] for row in trained.evaluated()] == [0, 2], "not those of other weights, and each once"
    assert not trained.complete
    with pytest.raises(UserError, match=r"--trial: .* has no evaluated point 9; there are 0 to 2"):
        promoted_config(trained, 9)
    config, point = promoted_config(trained, 2)
    assert config.train.epochs == 2 and point == points[2] and trained.space.point_of(config) == point
    assert promoted_config(trained, 2, ["train.epochs=5"])[0].train.epochs == 5
    with pytest.raises(UserError, match=r"model\.depth must stay"):
        promoted_config(trained, 2, ["model.depth=1", "model.num_heads=1"])
    with pytest.raises(UserError, match="not all of its points are evaluated yet; go on with: statten resume"):
        trained.front()


def test_a_supernet_is_no_run_and_no_sweep_and_the_other_way_round(trained, tmp_path):
    found = open_folder(trained.path)
    assert isinstance(found, Supernet)
    for kind in (Run, Sweep):
        with pytest.raises(UserError, match=rf"is not a {kind.noun} folder.*it is a supernet.*statten promote net --trial N"):
            kind.open(trained.path)
    with pytest.raises(UserError, match=r"is not a supernet folder, for it holds no supernet\.json$"):
        Supernet.open(Run.create(tmp_path / "run", trained.config).path)


def test_a_supernet_before_its_end_is_not_promoted_and_one_of_another_space_not_resumed(tmp_path):
    whole, space, watched, points = of(TREE)
    made = Supernet.begin(tmp_path / "net", whole, space, watched, points, {})
    with pytest.raises(UserError, match="the supernet is not trained yet; go on with: statten resume net"):
        promoted_config(made, 0)
    (made.path / SPACE).write_text((made.path / SPACE).read_text().replace("32", "64"))
    with pytest.raises(UserError, match=r"space\.yaml: was changed since the supernet began"):
        _ = Supernet(made.path).space


def test_fronts_and_what_they_dominate():
    values = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (4.0, 1.0), (5.0, 5.0), (2.0, 3.0)]
    assert front(values, ["min", "min"]) == [0, 1, 3]
    assert front([(-a, b) for a, b in values], ["max", "min"]) == [0, 1, 3]
    # In the box from (1, 1) to (5, 5), whose sides are 4: 0 at the top left, (2, 3) and (4, 1).
    assert hypervolume(values, values, ["min", "min"]) == pytest.approx((2 * 2 + 1 * 4 + 1 * 0 + 2 * 1 - 1 * 0) / 16, abs=0.13)
    assert hypervolume([(1.0, 1.0)], values, ["min", "min"]) == pytest.approx(1.0)
    assert hypervolume([(5.0, 5.0)], values, ["min", "min"]) == 0.0
    assert hypervolume([(3.0, 3.0)], values, ["min", "min"]) == pytest.approx(0.25)
    assert hypervolume([(3.0, 3.0), (1.0, 3.0)], values, ["min", "min"]) == pytest.approx(0.5)
    assert hypervolume(values, values, ["min"] * 3) is None


def test_a_proxy_stands_beside_the_front():
    whole, space, *_ = of(TREE)
    rows = [json.loads(line(number, point)) for number, point in enumerate(space.points())]
    for row in rows:
        config = space.config(row["point"])
        row["metrics"].update({"val/loss": 10 - proxy(config), "energy_uj": float(flops(config))})
    found = compared(space, rows, objectives(whole))
    assert found["proxy"]["tau"] == pytest.approx(1.0) and found["proxy"]["hypervolume"] == found["hypervolume"]
    assert found["proxy"]["front"] == sorted(row["number"] for row in found["front"])
    assert [row["metrics"]["val/loss"] for row in found["front"]] == sorted(
        row["metrics"]["val/loss"] for row in found["front"]
    )
    for row in rows:
        row["metrics"]["val/loss"] *= -1
    assert compared(space, rows, objectives(whole))["proxy"]["tau"] == pytest.approx(-1.0)
    assert objectives(load_config("digits", {"search.objectives": ["val/top1", "latency_ms"]})) == {
        "val/top1": "max", "latency_ms": "min",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"search\.objectives: a supernet's points have no peak_memory_mib; choose from val/loss"
    ):
        of(TREE, **{"search.objectives": ["val/top1", "peak_memory_mib"]})
