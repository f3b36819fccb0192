"""Search spaces: what they propose is always valid, and what is wrong with one is said before anything starts."""

import random
from pathlib import Path

import optuna
import pytest

from statten import demo
from statten.config import ConfigError, load_config
from statten.search.space import load_space, make_space

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
FOUR = {
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.depth": {"int": [1, 2]},
    "model.embed_dim": {"int": [32, 128], "step": 32},
}


def problem(tree) -> str:
    with pytest.raises(ConfigError) as caught:
        make_space(tree, load_config("digits"), "s.yaml")
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


def test_points_count_divisors_by_parent():
    points = list(make_space(FOUR, load_config("digits")).points())
    assert len(points) == (1 + 2 + 3) * 2 * 4
    assert all(point["model.timesteps"] % point["model.block_size"] == 0 for point in points)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_propose_only_valid_configs(path):
    space = load_space(path, load_config("digits"))
    study, generator = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), random.Random(0)
    for _ in range(200):
        config = space.config(space.suggest(study.ask()))
        assert config.model.timesteps % config.model.block_size == 0
        space.config(space.random_point(generator))


def test_the_demo_searches_the_space_of_the_file_that_it_names():
    config = load_config("digits")
    shipped = load_space(next(path for path in SPACES if path.stem == "digits"), config)
    assert list(make_space(demo.SPACE, config).points()) == list(shipped.points())


def test_a_divisor_of_a_field_outside_the_space_uses_the_base():
    space = make_space({"model.block_size": {"divisors_of": "model.timesteps"}}, load_config("digits", ["model.timesteps=6"]))
    assert [point["model.block_size"] for point in space.points()] == [1, 2, 3, 6]


def test_a_conditional_parameter_is_named_by_its_parent():
    trial = optuna.create_study().ask()
    point = make_space(FOUR, load_config("digits")).suggest(trial)
    assert f"model.block_size|model.timesteps={point['model.timesteps']}" in trial.params


def test_a_space_survives_its_file(tmp_path):
    space = make_space({**FOUR, "train.lr": {"float": [1e-4, 3e-3], "log": True}}, load_config("digits"))
    (tmp_path / "space.yaml").write_text(space.dump())
    assert load_space(tmp_path / "space.yaml", space.base).dimensions == space.dimensions


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({}, "s.yaml: names no field to search; add a line such as model.depth: {int: [1, 4]}"),
        ({"model.dept": {"int": [1, 2]}}, "s.yaml: model.dept: no such field; did you mean model.depth?"),
        ({"model": {"int": [1, 2]}}, "s.yaml: model: is a part, not a field"),
        ({"model.depth": 3}, "s.yaml: model.depth: must be one of {choices: [...]}"),
        ({"model.depth": {"integer": [1, 2]}}, "s.yaml: model.depth: 'integer' is no kind of range; did you mean int?"),
        ({"model.depth": {"int": [1, 2], "stp": 1}}, "s.yaml: model.depth: 'stp' is no option of int; did you mean step?"),
        ({"model.depth": {"int": [3, 1]}}, "the range is empty: low must be at most high, but got [3, 1]"),
        ({"model.depth": {"int": [1, 2.5]}}, "int must be [low, high] in whole numbers, but got [1, 2.5]"),
        ({"model.depth": {"int": [0, 2]}}, "s.yaml: model.depth: must be at least 1, but got 0"),
        ({"model.depth": {"choices": []}}, "choices must be a list of at least one value"),
        ({"model.attention": {"choices": ["statten", "sdas"]}}, "did you mean sdsa?"),
        ({"train.lr": {"float": [0, 1], "log": True}}, "a log range must start above 0"),
        ({"train.lr": {"float": [0.001, 1], "log": True, "step": 0.1}}, "step and log exclude each other"),
        ({"train.lr": {"float": [0.001, 0.1], "step": -1}}, "step must be above 0, but got -1"),
        ({"model.block_size": {"divisors_of": "model.timestep"}}, "did you mean model.timesteps?"),
        ({"scale.workers": {"int": [1, 2]}}, "says how a sweep runs and cannot be searched"),
        ({"model.block_size": {"choices": [1, 2, 4]}, "model.timesteps": {"choices": [2, 4]}},
         "write model.block_size: {divisors_of: model.timesteps}"),
        ({"model.embed_dim": {"int": [32, 64], "step": 4}}, "`embed_dim` must be a multiple of 8, but got 36"),
        ({"model.embed_dim": {"int": [32, 64], "step": 8}, "model.num_heads": {"choices": [16]}}, "invalid combination"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tree, sentence):
    assert sentence in problem(tree)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        make_space({"model.dept": {"int": [1, 2]}, "train.lr": {"float": [1, 0]}}, load_config("digits"))
    assert len(caught.value.problems) == 2
