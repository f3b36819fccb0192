"""Samplers: each proposes only valid points, the same ones for the same seed, and others after a sweep was resumed."""

import json
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial

from statten.config import Sampler, SearchConfig, load_config
from statten.errors import UserError
from statten.search import samplers
from statten.search.samplers import make_sampler, trials_of
from statten.space.loading import make_space
from statten.space.space import Space

SAMPLERS = get_args(Sampler)
NUMBERS: dict[str, Any] = {
    "model.depth": {"int": [1, 4]},
    "train.weight_decay": {"float": [0.0, 0.2], "step": 0.05},
    "train.min_lr": {"float": [1e-5, 1e-2], "log": True},
    "train.lr": {"float": [1e-4, 3e-3], "log": True},
    "constraint": ["train.min_lr <= train.lr"],
}
CONDITIONS: dict[str, Any] = {
    "model.timesteps": {"choices": [1, 2, 4]},
    "model.block_size": {"divisors_of": "model.timesteps"},
    "model.depth": {"int": [1, 3]},
    "model.num_heads": {"choices": [4, 8]},
    "model.embed_dim": {"int": [32, 128], "multiple_of": "8 * model.num_heads"},
    "model.drop_path": {"choices": [0.0, 0.1], "if": "model.depth > 1"},
    "constraint": ["model.depth * model.embed_dim <= 256"],
}
# (T, b) 1 + 2 + 3; (heads, D) 4 and 2, of which depth 2 keeps all and depth 3 only D <= 85: 2 and 1; two rates from depth 2
GRID = 6 * (6 + 6 * 2 + 3 * 2)
BOTH = {**CONDITIONS, **NUMBERS, "constraint": [*CONDITIONS["constraint"], *NUMBERS["constraint"]]}


def make(tree: dict[str, Any]) -> Space:
    return make_space(tree, load_config("digits"))


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    return {"cmaes": make(NUMBERS), "grid": make(CONDITIONS), "": make(BOTH)}


def go_on(study: optuna.Study, space: Space, search: SearchConfig, trials: int) -> list[dict[str, Any]]:
    """What a driver does from its start to its end."""
    objectives = len(study.directions)
    study.sampler = make_sampler(search, space, len(study.get_trials()), objectives)
    points = []
    for _ in range(trials):
        trial = study.ask()
        points.append(space.suggest(trial))
        assert space.contains(points[-1])
        value = points[-1].get("train.lr", 0.0) + points[-1]["model.depth"]
        study.tell(trial, [value, -value][:objectives])
    return points


def new(objectives: int = 1) -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * objectives)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_proposes_valid_points_reproducibly_and_new_ones_after_a_resume(sampler, spaces):
    space, search = spaces.get(sampler, spaces[""]), SearchConfig(sampler=sampler)
    trials = 8 if sampler == "gp" else 30  # fitting takes time
    study = new()
    points = go_on(study, space, search, trials)
    for point in points:
        config = space.config(point)
        assert config.train.min_lr <= config.train.lr and config.model.embed_dim % (8 * config.model.num_heads) == 0
    assert points == go_on(new(), space, search, trials)
    assert points != go_on(new(), space, SearchConfig(sampler=sampler, seed=1), trials)
    resumed = go_on(study, space, search, 2 if sampler == "gp" else 5)
    assert resumed != points[: len(resumed)]
    if sampler in ("tpe", "random", "grid", "qmc", "cmaes"):  # the others may take up a good point again
        assert not [point for point in resumed if point in points]


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {"cmaes", "gp"}))
def test_a_sampler_takes_several_objectives(sampler, spaces):
    assert len(go_on(new(2), spaces.get(sampler, spaces[""]), SearchConfig(sampler=sampler), 20)) == 20


def test_gp_takes_several_objectives(spaces):
    assert len(go_on(new(2), spaces["cmaes"], SearchConfig(sampler="gp"), 8)) == 8


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "nsga3"])
def test_a_sampler_learns(sampler, spaces):
    """Its later points are better than the random ones that it began with."""
    study, search = new(), SearchConfig(sampler=sampler, seed=3)
    points = go_on(study, spaces["cmaes"], search, 60)
    values = [point["model.depth"] + point["train.lr"] for point in points]
    assert np.mean(values[-12:]) > np.mean(values[: search.startup_trials]) + 0.5


# -- grid -----------------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_configuration_once(spaces):
    space = spaces["grid"]
    points = go_on(new(), space, SearchConfig(sampler="grid"), GRID)
    assert space.count() == GRID == len({json.dumps(point) for point in points})
    assert points != list(space.points()), "a grid that is cut short must not have seen one corner only"


def test_a_grid_goes_on_where_it_was_killed(spaces, tmp_path):
    space, search = spaces["grid"], SearchConfig(sampler="grid")
    path = str(tmp_path / "study.journal")
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(path)), study_name="s")
    points = go_on(study, space, search, 10)
    half = study.ask()  # the driver dies in the middle of its questions
    first = half.suggest_categorical("model.timesteps", (1, 2, 4))
    study.enqueue_trial(space.params(list(space.points())[-1]))

    study = optuna.load_study(storage=JournalStorage(JournalFileBackend(path)), study_name="s")
    study.sampler = make_sampler(search, space, len(study.get_trials()))
    again = Trial(study, half._trial_id)
    points.append(space.suggest(again))
    study.tell(again, 0.0)
    assert points[-1]["model.timesteps"] == first
    points += go_on(study, space, search, GRID - 11)
    assert len({json.dumps(point) for point in points}) == GRID
    trial = study.ask()
    with pytest.raises(UserError, match=f"grid has no configuration left; all {GRID} have been tried"):
        space.suggest(trial)


def test_a_grid_has_as_many_trials_as_configurations(spaces):
    space, empty = spaces["grid"], SearchConfig.model_construct(trials=None, sampler="grid")
    assert trials_of(empty, space) == GRID
    assert trials_of(SearchConfig(sampler="grid", trials=5), space) == 5
    assert trials_of(SearchConfig(trials=500), space) == 500
    with pytest.raises(UserError, match=f"search.trials: must be at most {GRID}, .* but got {GRID + 1}"):
        trials_of(SearchConfig(sampler="grid", trials=GRID + 1), space)


# -- Sobol ----------------------------------------------------------------------------------------------------------------


def test_sobol_covers_conditional_and_unordered_dimensions_evenly():
    """Of 64 points every list has equal shares, and every divisor of T its share of those with this T, to within two."""
    points = go_on(new(), make({**CONDITIONS, "model.timesteps": {"choices": [1, 2, 3, 4]}}), SearchConfig(sampler="qmc"), 64)
    timesteps = [point["model.timesteps"] for point in points]
    assert [timesteps.count(t) for t in (1, 2, 3, 4)] == [16] * 4
    blocks = [point["model.block_size"] for point in points if point["model.timesteps"] == 4]
    assert all(abs(blocks.count(b) - 16 / 3) <= 2 for b in (1, 2, 4))


def test_sobol_goes_on_in_its_sequence(spaces):
    study, search = new(), SearchConfig(sampler="qmc")
    parts = go_on(study, spaces[""], search, 7) + go_on(study, spaces[""], search, 9)
    assert parts == go_on(new(), spaces[""], search, 16)


# -- CMA-ES ---------------------------------------------------------------------------------------------------------------


def test_cmaes_finds_its_state_again_without_a_pickle(spaces):
    """Told the study's trials again, it stands where Optuna's own stands, which keeps itself in the study as a pickle."""
    space, pickled = spaces["cmaes"], new()
    theirs = optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=6, warn_independent_sampling=False)
    pickled.sampler = theirs
    for _ in range(40):
        trial = pickled.ask()
        point = space.suggest(trial)
        pickled.tell(trial, point["model.depth"] + point["train.lr"])
    done = pickled.get_trials()
    ours = make_sampler(SearchConfig(sampler="cmaes"), space)
    distributions = theirs.infer_relative_search_space(pickled, done[0])
    transform = optuna._transform._SearchSpaceTransform(distributions, transform_0_1=True)
    assert ours._restore_optimizer(done) is None
    replayed, restored = ours._init_optimizer(transform, pickled.direction), theirs._restore_optimizer(done)
    assert replayed.generation == restored.generation == 4
    np.testing.assert_allclose(replayed._mean, restored._mean, rtol=1e-9)
    np.testing.assert_allclose(replayed._C, restored._C, rtol=1e-9)

    go_on(study := new(), space, SearchConfig(sampler="cmaes"), 40)
    attributes = [trial.system_attrs for trial in study.get_trials()]
    assert attributes[-1]["cma:generation"] == 4
    assert {key for attrs in attributes for key in attrs} == {"cma:generation"}


# -- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "tree", "objectives", "sentence"),
    [
        ("cmaes", {"model.attention": {"choices": ["statten", "sdsa"]}, "train.lr": {"float": [0.1, 1]}}, 1,
         "search.sampler: cmaes must have numbers that are always there, but model.attention has choices or conditions"),
        ("cmaes", CONDITIONS, 1,
         "but model.timesteps, model.block_size, model.num_heads, model.drop_path, model.depth, model.embed_dim have choices"),
        ("cmaes", {"model.depth": {"int": [1, 4]}}, 1, "cmaes must have at least two dimensions, but got 1"),
        ("cmaes", NUMBERS, 2, "cmaes must have one objective, but got 2; nsga2 and tpe take several"),
        ("gp", {"model.block_size": {"divisors_of": "model.timesteps"}}, 1,
         "gp must have a dimension that is always there, but model.block_size"),
        ("grid", NUMBERS, 1, "grid must have finitely many configurations, but train.min_lr, train.lr are continuous"),
        ("grid", {"train.lr": {"float": [1, 2], "step": 0.000001}}, 1,
         "grid must have at most 100000 configurations, but got 1000001"),
    ],
)  # fmt: skip
def test_a_sampler_that_cannot_work_is_refused(sampler, tree, objectives, sentence):
    with pytest.raises(UserError) as caught:
        make_sampler(SearchConfig(sampler=sampler), make(tree), objectives=objectives)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "maximize"]])
def test_tpe_draws_as_optuna_s_until_a_study_is_long(spaces, monkeypatch, directions):
    """And then from the best trials, the newest and those that run."""
    search, space = SearchConfig(sampler="tpe", startup_trials=5), spaces[""]
    ours, theirs = (optuna.create_study(directions=directions) for _ in range(2))
    points = go_on(ours, space, search, 20)
    theirs.sampler = optuna.samplers.TPESampler(
        seed=search.seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=5
    )
    for point in points:
        trial = theirs.ask()
        assert space.suggest(trial) == point
        value = point.get("train.lr", 0.0) + point["model.depth"]
        theirs.tell(trial, [value, -value][: len(directions)])

    monkeypatch.setattr(samplers, "FITTED", 8)
    ours.ask()  # goes on running
    go_on(ours, space, search, 10)
    seen = ours.sampler.look(ours)._get_trials()
    kept, finished = {trial.number for trial in seen}, [trial for trial in ours.trials if trial.values]
    newest = {trial.number for trial in ours.trials[-6:]}
    best = {trial.number for trial in sorted(finished, key=lambda trial: -trial.values[0])[:2]}
    if len(directions) > 1:  # whatever is gained in one objective is lost in the other: all are on the front
        best = {trial.number for trial in finished[-2:]}
    assert kept == newest | best | {20}
