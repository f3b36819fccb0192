"""Search spaces: what they propose is always valid, and what is wrong with one is said before anything starts."""

import itertools
import pickle
import random
from pathlib import Path

import optuna
import pytest

from statten.cli import demo
from statten.config import get_field, load_config, with_overrides
from statten.errors import ConfigError, UserError
from statten.space.expressions import parse, parse_condition
from statten.space.loading import load_space, make_space

FOUR = {
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.depth": {"int": [1, 2]},
    "model.embed_dim": {"int": [32, 128], "step": 32},
}


ALL = {
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.num_heads": {"choices": [2, 4, 8]},
    "model.embed_dim": {"int": [32, 256], "multiple_of": "8 * model.num_heads"},
    "couple.size": {"choices": [{"model.depth": 1, "model.mlp_ratio": 4.0}, {"model.depth": 4, "model.mlp_ratio": 2.0}]},
    "model.drop_path": {"float": [0.0, 0.3], "if": {"model.depth": {"above": 2}}},
    "train.min_lr": {"float": [1e-5, 1e-2], "log": True},
    "train.lr": {"float": [1e-4, 3e-3], "log": True},
    "data.frames": {"equals": "model.timesteps"},
    "train.optimizer": {"constant": "lamb"},
    "constraint": ["model.depth * model.embed_dim <= 512", "train.min_lr <= train.lr"],
}
CONTINUOUS = ("model.drop_path", "train.min_lr", "train.lr")
FINITE = {name: rule for name, rule in ALL.items() if name not in CONTINUOUS} | {"constraint": ALL["constraint"][:1]}


def make(tree, *overrides):
    return make_space(tree, load_config("digits", overrides))


def problem(tree) -> str:
    with pytest.raises(ConfigError) as caught:
        make_space(tree, load_config("digits"), "s.yaml")
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


def test_points_count_divisors_by_parent():
    points = list(make_space(FOUR, load_config("digits")).points())
    assert len(points) == (1 + 2 + 3) * 2 * 4
    assert all(point["model.timesteps"] % point["model.block_size"] == 0 for point in points)


def test_the_demo_searches_the_space_of_the_file_that_it_names():
    config = load_config("digits")
    shipped = load_space(Path(__file__).parents[3] / "search_spaces" / "digits.yaml", config)
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


# -- every kind of line ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    return make(ALL)


def test_only_valid_points_are_suggested(everything):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(300):
        point = everything.suggest(study.ask())
        config = everything.config(point)
        assert config.model.timesteps % config.model.block_size == 0 and config.data.frames == config.model.timesteps
        assert config.model.embed_dim % (8 * config.model.num_heads) == 0 and config.train.optimizer == "lamb"
        assert (config.model.depth, config.model.mlp_ratio) in [(1, 4), (4, 2)]
        assert config.model.depth * config.model.embed_dim <= 512 and config.train.min_lr <= config.train.lr
        assert ("model.drop_path" in point) == (config.model.depth == 4)
        assert {"data.frames", "train.optimizer", "couple.size"}.isdisjoint(point)


def test_the_parameters_of_a_point_lead_back_to_it(everything):
    generator, study = random.Random(0), optuna.create_study()
    for _ in range(200):
        point = everything.random_point(generator)
        params = everything.params(point)
        fixed = optuna.trial.FixedTrial(params)
        assert everything.suggest(fixed) == point
        assert fixed.params == params and fixed.distributions == everything.distributions(point)
    study.enqueue_trial(params)
    trial = study.ask()
    assert everything.suggest(trial) == point and trial.params == params
    frozen = optuna.create_trial(params=params, distributions=everything.distributions(point), value=1.0)
    study.add_trial(frozen)  # as a trial of another sweep is taken over


def test_names_say_what_the_values_depend_on(everything):
    point = {
        "model.timesteps": 4, "model.block_size": 2, "model.num_heads": 2, "model.embed_dim": 64, "model.depth": 4,
        "model.mlp_ratio": 2.0, "model.drop_path": 0.1, "train.min_lr": 1e-4, "train.lr": 1e-3,
    }  # fmt: skip
    assert list(everything.params(point)) == [
        "model.timesteps", "model.block_size|model.timesteps=4", "model.num_heads", "model.embed_dim|model.num_heads=2",
        "couple.size", "model.drop_path", "train.min_lr|share", "train.lr|share",
    ]  # fmt: skip
    wide = {**point, "model.embed_dim": 256, "model.depth": 1, "model.mlp_ratio": 4.0}
    del wide["model.drop_path"]
    assert "couple.size|model.depth=1 model.mlp_ratio=4.0" in everything.params(wide), "depth 4 is too deep for 256"


def test_a_range_that_a_constraint_cuts_keeps_its_order():
    """Evenly spaced numbers stay a range, so that a sampler knows which of them are neighbours."""
    space = make({"model.depth": {"int": [1, 8]}, "model.embed_dim": {"int": [64, 512], "step": 64},
                  "constraint": "model.depth * model.embed_dim <= 1024"})  # fmt: skip
    distributions = space.distributions({"model.depth": 4, "model.embed_dim": 128})
    assert distributions["model.embed_dim|64..256"] == optuna.distributions.IntDistribution(64, 256, step=64)
    assert "model.embed_dim" in space.distributions({"model.depth": 1, "model.embed_dim": 512})


def test_the_rest_of_an_interval_reaches_the_edge_of_the_constraint(everything):
    point = {**everything.random_point(random.Random(1)), "train.min_lr": 5e-4, "train.lr": 5e-4}
    assert everything.params(point)["train.lr|share"] == 0.0
    assert everything.params({**point, "train.lr": 3e-3})["train.lr|share"] == 1.0
    assert not everything.contains({**point, "train.lr": 4.9e-4})


def brute_force(tree, valid):
    """Every combination of the raw values for which `valid` holds, as another way to count."""
    names, values = zip(*tree.items(), strict=True)
    points = (dict(zip(names, row, strict=True)) for row in itertools.product(*values))
    return [point for point in points if valid(*point.values())]


def test_finite_points_are_counted_and_enumerated_exactly():
    space = make(FINITE)
    points = [tuple(point.values()) for point in space.points()]
    raw = {"t": [1, 2, 4], "b": range(1, 5), "heads": [2, 4, 8], "dim": range(32, 257), "size": [(1, 4.0), (4, 2.0)]}
    wanted = brute_force(raw, lambda t, b, heads, dim, size: t % b == 0 and dim % (8 * heads) == 0 and size[0] * dim <= 512)
    assert space.count() == len(points) == len(set(points)) == len(wanted)
    assert set(points) == {(p["t"], p["b"], p["heads"], p["dim"], *p["size"]) for p in wanted}


@pytest.mark.parametrize(
    ("tree", "raw", "valid"),
    [
        ({"model.depth": {"int": [1, 4]}, "model.mlp_ratio": {"choices": [1, 2, 4], "if": "model.depth > 2"}},
         {"depth": range(1, 5), "ratio": [1, 2, 4, None]}, lambda depth, ratio: (depth > 2) == (ratio is not None)),
        ({"model.mlp_ratio": {"choices": [1, 2, 4], "if": "train.optimizer == 'lion' or model.depth in [2, 3]"},
          "train.optimizer": {"choices": ["adamw", "lion"]}, "model.depth": {"int": [1, 4]}},
         {"ratio": [1, 2, 4, None], "optimizer": ["adamw", "lion"], "depth": range(1, 5)},
         lambda ratio, optimizer, depth: (optimizer == "lion" or depth in (2, 3)) == (ratio is not None)),
        # from T = 2: with T = 1 the base's block size 2 would be too large
        ({"model.timesteps": {"int": [2, 8]}, "model.depth": {"int": [1, 3]},
          "model.block_size": {"divisors_of": "model.timesteps", "if": "model.timesteps > 3"},
          "constraint": ["model.timesteps * model.depth <= 12", "model.block_size < 8"]},
         {"t": range(2, 9), "depth": range(1, 4), "b": [None, *range(1, 9)]},
         lambda t, depth, b: (t > 3) == (b is not None) and (b is None or (t % b == 0 and b < 8)) and t * depth <= 12),
        ({"train.label_smoothing": {"float": [0, 0.3], "step": 0.1}, "model.tau": {"choices": [2, 4]},
          "constraint": "train.label_smoothing * model.tau < 0.7"},
         {"smoothing": [0.0, 0.1, 0.2, 0.3], "tau": [2, 4]}, lambda smoothing, tau: smoothing * tau < 0.7),
        ({"model.depth": {"int": [1, 40]}, "model.embed_dim": {"int": [64, 1024], "step": 64}, "train.batch_size":
          {"choices": [16, 32]}, "constraint": "max(model.depth, 3) * model.embed_dim * train.batch_size // 32 <= 2000"},
         {"depth": range(1, 41), "dim": range(64, 1025, 64), "batch": [16, 32]},
         lambda depth, dim, batch: max(depth, 3) * dim * batch // 32 <= 2000),
    ],
)  # fmt: skip
def test_counts_agree_with_brute_force(tree, raw, valid):
    space = make(tree)
    points = [tuple(sorted(point.items())) for point in space.points()]
    wanted = brute_force(raw, valid)
    assert space.count() == len(points) == len(set(points)) == len(wanted)
    assert {tuple(value for _, value in point) for point in points} == {
        tuple(v for _, v in sorted(zip(space.paths, p.values(), strict=True)) if v is not None) for p in wanted
    }


def test_infinite_spaces_have_no_count_and_are_not_enumerated(everything):
    assert everything.count() is None and list(everything.corners())
    with pytest.raises(UserError, match=r"model.drop_path, train.min_lr, train.lr: a continuous range cannot be enumerated"):
        everything.points()
    assert make({"train.lr": {"float": [0.01, 0.01]}, "model.depth": {"int": [1, 3]}}).count() == 3
    never = make({"model.depth": {"int": [1, 3]}, "model.drop_path": {"float": [0, 1e-1], "if": "model.depth > 9"}})
    assert never.count() == 3 == len(list(never.points()))


def test_divisors_and_multiples_of_large_numbers_are_exact():
    space = make({"data.split_seed": {"constant": 10**9}, "train.seed": {"divisors_of": "data.split_seed"}})
    assert space.count() == 100
    space = make(
        {"model.depth": {"choices": [3]}, "train.seed": {"int": [10**17 + 1, 10**17 + 9], "multiple_of": "model.depth"}}
    )
    assert [point["train.seed"] % 3 for point in space.points()] == [0, 0, 0]


def test_large_counts_are_not_enumerated():
    space = make({"model.depth": {"int": [1, 48]}, "train.seed": {"int": [0, 10**9]}, "data.split_seed": {"int": [1, 10**6]},
                  "model.embed_dim": {"int": [8, 4096], "multiple_of": 8 * 8}})  # fmt: skip
    assert space.count() == 48 * (10**9 + 1) * 10**6 * 64


@pytest.mark.parametrize(
    "change",
    [{"model.timesteps": 3}, {"model.depth": 2}, {"train.lr": 1.0}, {"extra": 1}, {"model.block_size": None},
     {"model.embed_dim": 48.5}, {"model.num_heads": True}, {"model.embed_dim": 512}, {"train.min_lr": "0.001"}],
)  # fmt: skip
def test_points_outside_are_refused(everything, change):
    point = everything.random_point(random.Random(2))
    assert everything.contains(point)
    assert not everything.contains({**point, **change})
    with pytest.raises(UserError):
        everything.params({**point, **change})
    assert not everything.contains({path: point[path] for path in list(point)[1:]})


def test_a_config_has_its_point(everything):
    generator = random.Random(3)
    for _ in range(50):
        point = everything.random_point(generator)
        config = everything.config(point)
        assert everything.from_config(config) == point
        assert everything.from_config(with_overrides(config, {"train.seed": 7, "data.workers": 2, "search.trials": 3})) == point
    for outside in (
        {"train.epochs": 3},
        {"data.frames": None},
        {"train.optimizer": "adamw"},
        {"model.depth": 2},
        {"train.lr": 1},
    ):
        assert everything.from_config(with_overrides(config, outside)) is None
    shallow = next(c for c in map(everything.config, everything.corners()) if c.model.depth == 1)
    assert everything.from_config(shallow) is not None
    assert everything.from_config(with_overrides(shallow, {"model.drop_path": 0.1})) is None, "drop_path is not searched there"


def test_random_points_fill_the_space(everything):
    generator = random.Random(4)
    points = [everything.random_point(generator) for _ in range(2000)]
    seen = {tuple(p[path] for path in everything.paths if path in p and path not in CONTINUOUS) for p in points}
    wanted = {tuple(point.values()) for point in make(FINITE).points()}
    assert seen <= wanted and len(seen) > 0.8 * len(wanted)
    rates = [point["train.lr"] for point in points]
    assert min(rates) < 1.2e-4 and max(rates) > 2.7e-3


def test_a_whole_space_survives_its_file(everything, tmp_path):
    (tmp_path / "space.yaml").write_text(everything.dump())
    again = load_space(tmp_path / "space.yaml", everything.base)
    assert (again.dimensions, again.constraints, again.paths) == (
        everything.dimensions,
        everything.constraints,
        everything.paths,
    )
    assert pickle.loads(pickle.dumps(everything)).random_point(random.Random(5)) == again.random_point(random.Random(5))


def test_later_files_replace_lines_of_earlier_ones(tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("model.depth: {int: [1, 4]}\nmodel.tau: {choices: [2, 3]}\nconstraint: model.depth > 1\n")
    b.write_text("model.depth: {int: [1, 8]}\ntrain.lr: {float: [1e-4, 1e-2]}\nconstraint: [model.depth < 8]\n")
    space = load_space([a, b], load_config("digits"))
    assert space.paths == ("model.depth", "model.tau", "train.lr")
    assert space.dump().startswith(f"# merged from {a}, {b}\n# model.depth: as in {b}, in place of {a}\nmodel.depth:\n")
    assert {point["model.depth"] for point in space.corners()} == {2, 3, 4, 5, 6, 7}
    (tmp_path / "space.yaml").write_text(space.dump())
    assert load_space(tmp_path / "space.yaml", space.base).dimensions == space.dimensions
    b.write_text("model.dept: {int: [1, 8]}\n")
    with pytest.raises(ConfigError) as caught:
        load_space([a, b], load_config("digits"))
    assert caught.value.problems == [f"{b}: model.dept: no such field; did you mean model.depth?"]


# -- expressions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8 * model.depth + 1", 17), ("-model.depth % 3 - 7 // 2", -2), ("1 / 4", 0.25), ("min(model.depth, 5, 1.5)", 1.5),
        ("1 < model.depth <= 2", True), ("1 < model.depth <= 1", False), ("not model.events", True),
        ("train.optimizer == 'adamw' and (model.events or model.depth != 3)", True), ("data.frames == null", True),
        ("model.depth in [1, 2]", True), ("train.optimizer not in ['sgd', 'lamb']", True), ("model.events == true", False),
    ],
)  # fmt: skip
def test_an_expression_has_its_value(text, value):
    config = load_config("digits")
    expression = parse(text)
    assert expression.of({path: get_field(config, path) for path in expression.fields}) == value


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"model.depth": {"above": 2, "at_most": 4}}, "model.depth > 2 and model.depth <= 4"),
        ({"train.optimizer": "sgd", "model.events": False}, "train.optimizer == 'sgd' and model.events == false"),
        ({"model.depth": [1, 2], "data.frames": {"not": None}}, "model.depth in [1, 2] and data.frames != null"),
        ("model.depth > 2", "model.depth > 2"),
    ],
)
def test_a_condition_has_two_forms(rule, text):
    assert parse_condition(rule) == parse(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("__import__('os').system('true')", "is not allowed; an expression has numbers, texts, fields, + - * / // %"),
        ("model.depth ** 9", "model.depth ** 9 is not allowed"),
        ("model.__class__", "model.__class__: no such field"),
        ("[x for x in [1]]", "is not allowed"),
        ("(lambda: 1)()", "is not allowed"),
        ("model.depth if 1 else 2", "is not allowed"),
        ("f'{1}'", "is not allowed"),
        ("b'1'", "is not allowed"),
        ("abs(model.depth)", "abs(model.depth) is not allowed"),
        ("min(1)", "min must have at least two values, but got min(1)"),
        ("model.dept + 1", "'model.dept + 1': model.dept: no such field; did you mean model.depth?"),
        ("train.optimizer == sgd", "sgd is no field; write a path such as model.depth, or a text as 'sgd'"),
        ("model.depth in 3", "`in` must be followed by a list such as [1, 2], but got 3"),
        ("model.depth is 3", "compare with < <= > >= == != or in"),
        ("model.depth >", "'model.depth >' is no expression such as 8 * model.num_heads or model.depth > 2"),
        ("(" * 400 + ")" * 400, "an expression must have at most 500 characters, but got 800"),
        ("(" * 240 + "1", "is no expression such as"),
    ],
)
def test_an_expression_has_only_what_is_allowed(text, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["'a' * 1000000000", "model.events + 1", "not 3", "1 and 2 > 1", "data.frames > 2", "'a' < 'b'"]
)
def test_an_expression_takes_numbers_and_truths_only_where_they_belong(text):
    expression = parse(text)
    with pytest.raises(ConfigError, match=r"must be (a number|true or false) here, but is "):
        expression.of({"model.events": False, "data.frames": None})


# -- mistakes -------------------------------------------------------------------------------------------------------------


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
        ({"model.depth": {"choices": [1, 2, 1]}}, "s.yaml: model.depth: choices must differ, but 1 is given twice"),
        ({"model.depth": {"int": [1, 2], "choices": [1]}}, "s.yaml: model.depth: must be one of int and choices, not both"),
        ({"model.depth": {"if": "model.events"}}, "s.yaml: model.depth: must have values beside `if`: one of {choices: [...]}"),
        ({"model.depth": {"int": [1, 2], "if": {"model.dpth": 1}}},
         "s.yaml: model.depth: if: 'model.dpth == 1': model.dpth: no such"),
        ({"model.depth": {"int": [1, 2], "if": {"model.tau": {"over": 1}}}},
         "s.yaml: model.depth: if: model.tau: 'over' is no condition; did you mean above?"),
        ({"model.depth": {"int": [1, 2], "if": {"model.tau": {"in": 1}}}},
         "condition 'in' must have a list of values, but got 1"),
        ({"model.depth": {"int": [1, 2], "if": "model.tau + 1"}},
         "s.yaml: model.depth: if must be true or false, but model.tau + 1 is 3.0"),
        ({"model.depth": {"int": [1, 2], "if": {}}}, "a condition must be a comparison such as model.depth > 2, but is empty"),
        ({"model.depth": {"int": [1, 2], "if": True}},
         "a condition must be a comparison such as model.depth > 2, but got true"),
        ({"model.depth": {"int": [1, 2], "if": "model.tau > 1 / 0"}},
         "if: 'model.tau > 1 / 0' divides by zero where model.tau=2.0"),
        ({"model.depth": {"int": [1, 2], "if": "data.frames > 2"}}, "if: data.frames must be a number here, but is null"),
        ({"model.depth": {"constant": [1]}}, "constant must be a number, a text, true, false or null, but got [1]"),
        ({"model.depth": {"constant": 0}, "model.tau": {"choices": [2]}}, "s.yaml: model.depth: must be at least 1, but got 0"),
        ({"model.depth": {"constant": 2}}, "s.yaml: names no field to search, constants only"),
        ({"model.depth": {"choices": [[1]]}}, "fields that move together go under a label such as couple.size"),
        ({"couple.size": 3}, "s.yaml: couple.size: must be {choices: [{field: value, ...}, ...]}, but got 3"),
        ({"couple.size": {"int": [1, 2]}},
         "s.yaml: couple.size: fields that move together must be given as {choices: [{model.dep"),
        ({"couple.size": {"choices": [{"model.depth": 1}, {"model.tau": 2}]}},
         "couple.size: every choice must set the same fields model.depth, but got model.tau"),
        ({"couple.size": {"choices": [{"model.dept": 1}]}},
         "s.yaml: couple.size: model.dept: no such field; did you mean model.d"),
        ({"couple.size": {"choices": [{"model.depth": 1}, {"model.depth": 1}]}},
         "choices must differ, but {'model.depth': 1} is"),
        ({"couple.size": {"choices": [{"model.depth": [1]}]}}, "couple.size: values must be numbers, texts"),
        ({"couple.size": {"choices": [{"model.depth": 0}]}}, "s.yaml: model.depth: must be at least 1, but got 0"),
        ({"couple.size": {"choices": [{"scale.workers": 1}]}}, "says how a sweep runs and cannot be searched"),
        ({"couple.size": {"choices": [{"model.depth": 1}]}, "model.depth": {"int": [1, 2]}},
         "s.yaml: model.depth: is set by both couple.size and model.depth; leave one of them out"),
        ({"model.embed_dim": {"int": [64, 512], "multiple_of": "8 * model.heads"}},
         "multiple_of: '8 * model.heads': model.heads: no such field; did you mean model.num_heads?"),
        ({"model.embed_dim": {"int": [64, 512], "multiple_of": 8, "step": 8}}, "multiple_of and step exclude each other"),
        ({"model.embed_dim": {"int": [64, 512], "multiple_of": "model.num_heads / 3"}},
         "multiple_of must be a whole number above 0, but model.num_heads / 3 is 2.6666666666666665 where model.num_heads=8"),
        ({"model.embed_dim": {"int": [80, 100], "multiple_of": "8 * model.num_heads"}},
         "no multiple of 8 * model.num_heads = 64 lies in [80, 100] where model.num_heads=8; the nearest is 64"),
        ({"model.mlp_ratio": {"float": [1, 2], "multiple_of": 2}},
         "'multiple_of' is no option of float; choose from step, log, if"),
        ({"data.frames": {"equals": "model.timestep"}, "model.depth": {"int": [1, 2]}},
         "data.frames: equals: 'model.timestep': "),
        ({"data.frames": {"equals": "model.tau"}, "model.depth": {"int": [1, 2]}},
         "`data.frames` must equal `model.timesteps`"),
        ({"model.block_size": {"divisors_of": "model.tau"}},
         "model.block_size: divisors_of must name a whole number above 0, but model.tau is 2.0"),
        ({"model.depth": {"int": [1, 4], "multiple_of": "model.num_heads"}, "model.num_heads": {"int": [1, 4], "multiple_of":
          "model.depth"}}, "model.depth: depends on itself (model.depth -> model.num_heads -> model.depth); break the circle"),
        ({"model.depth": {"int": [1, 4], "if": "model.depth > 1"}}, "depends on itself (model.depth -> model.depth)"),
        ({"model.depth": {"int": [1, 4]}, "constraint": "model.tau > 1"},
         "s.yaml: constraint: 'model.tau > 1' must name a field of the space; it has model.depth"),
        ({"model.depth": {"int": [1, 4]}, "constraint": "model.depth > 4"},
         "s.yaml: constraint: no combination of the space satisfies 'model.depth > 4'"),
        ({"model.depth": {"int": [1, 4]}, "constraint": 3},
         "constraint: must be a comparison such as model.depth * model.embed"),
        ({"model.depth": {"int": [1, 4]}, "constraint": "model.depth + 1"},
         "s.yaml: constraint: model.depth + 1 must be true or false, but model.depth + 1 is 2"),
        ({"train.lr": {"float": [0.1, 1]}, "constraint": "train.lr % 0.2 < 0.1"},
         "must compare train.lr, which is continuous, with < <= > >= and without // and %; or give train.lr a step"),
        ({"train.lr": {"float": [0.1, 1]}, "constraint": "train.lr < 0.2 or train.lr > 0.5"},
         "s.yaml: constraint: must leave train.lr one piece, and not a narrow one, but leaves 2; write choices, or give "),
        ({"train.lr": {"float": [0.1, 1]}, "constraint": "0.5 < train.lr < 0.5000001"},
         "no combination of the space satisfies"),
        ({"train.seed": {"int": [0, 100000]}, "constraint": "train.seed > 1"},
         "at most 10000 values beside a constraint, but has 100001"),
        ({"model.depth": {"choices": [1, 2]}, "train.seed": {"int": [0, 10**12], "multiple_of": "model.depth"},
          "constraint": "train.seed > 3"}, "train.seed: must have at most 10000 values beside a constraint, but has 10000000"),
        ({"data.split_seed": {"choices": [10**13]}, "train.seed": {"divisors_of": "data.split_seed"}},
         "train.seed: divisors_of must name a number up to 1,000,000,000, but data.split_seed is 10,000,000,000,000"),
        ({"train.seed": {"choices": list(range(20_000))}}, "train.seed: choices must be at most 1000, but are 20000"),
        ({"couple.a": {"choices": [{"train.seed": i} for i in range(20_000)]}}, "couple.a: choices must be at most 1000"),
        ({"train.seed": {"int": [0, 2**63 - 1]}}, "train.seed: must have at most 2**53 steps"),
        ({"train.weight_decay": {"float": [0, 1e300], "step": 1e-5}}, "train.weight_decay: must have at most 2**53 steps"),
        ({"train.weight_decay": {"float": [0, float("inf")]}}, "low, high and the way between them must be finite"),
        ({"train.weight_decay": {"float": [-1.7e308, 1.7e308]}}, "low, high and the way between them must be finite"),
        ({"model.depth": {"int": [1, 4]}, "constraint": f"{10**400} / 7 > model.depth"}, "is too large a number where"),
        ({"constriant": "model.depth > 1"}, "s.yaml: constriant: no such field; did you mean constraint?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tree, sentence):
    assert sentence in problem(tree)


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"train.seed": {"int": [0, 999]}, "train.cooldown_epochs": {"int": [0, 999]}, "constraint":
          "train.seed + train.cooldown_epochs > 2000"}, "train.seed, train.cooldown_epochs"),
        ({"train.seed": {"int": [0, 10**9]}, "data.split_seed": {"int": [0, 9], "if": "train.seed > 5"}}, "data.split_seed"),
        ({"train.seed": {"int": [1, 10**9]}, "data.split_seed": {"divisors_of": "train.seed"}}, "data.split_seed"),
        ({"train.seed": {"int": [1, 10**9]}, "data.split_seed": {"int": [0, 10**9], "multiple_of": "train.seed"}},
         "data.split_seed"),
    ],
)  # fmt: skip
def test_a_space_that_nobody_could_wait_for_is_refused(tree, names, monkeypatch):
    monkeypatch.setattr("statten.space.space.MOST_TRIES", 10_000)
    assert problem(tree) == f"s.yaml: {names}: depend on each other in more than 10,000 combinations; give them fewer values"


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        make_space({"model.dept": {"int": [1, 2]}, "train.lr": {"float": [1, 0]}}, load_config("digits"))
    assert len(caught.value.problems) == 2
