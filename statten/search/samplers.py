"""Optuna's samplers, and two of our own, for the space of a sweep.

tpe      tree-structured Parzen estimators, multivariate and grouped: made for conditional spaces; one or more objectives
random   every dimension uniformly
grid     every configuration exactly once, in an order of the seed
qmc      scrambled Sobol points: even coverage, conditional and unordered dimensions included
gp       a Gaussian process over the dimensions that are always there; conditional ones are drawn at random
cmaes    covariance matrix adaptation: numbers only, without conditions, one objective
nsga2    genetic, for several objectives; conditional dimensions are mixed only where both parents have them
nsga3    the same, spread along reference directions: for three objectives and more
"""

import copy
import heapq
import random
import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from statten.config import SearchConfig
from statten.errors import UserError
from statten.search.sweep import feasible
from statten.space.domains import Choices, Domain, Grid, Range
from statten.space.space import Space

FITTED = 500
"""Trials that TPE fits its densities to, at most, beside those that run."""

# A grid is held in memory, and nobody waits for more trials than these.
LARGEST_GRID = 100_000


def make_sampler(search: SearchConfig, space: Space, completed: int = 0, objectives: int = 1) -> BaseSampler:
    """The sampler that a config names.

    Args:
        completed: trials that the study has, whatever became of them. A sampler that goes on with a study has another seed
            than the one that began it; with the same it would draw the same points again.
        objectives: number of metrics that the study optimises.

    Raises:
        UserError: the sampler cannot work in this space or with so many objectives.
    """
    _refuse(search.sampler, space, objectives)
    seed, startup = search.seed, search.startup_trials
    if completed:
        seed = int(np.random.SeedSequence([search.seed, completed]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's `group` and others, wanted all the same
        match search.sampler:
            case "tpe":
                kind = BoundedTPESampler if objectives == 1 else FrontTPESampler
                return kind(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup)
            case "random":
                return RandomSampler(seed=seed)
            case "grid":
                return GridSampler(space, search.seed)
            case "qmc":
                return SobolSampler(space, search.seed)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            case "cmaes":
                return ReplayedCmaEs(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=max(2, startup))
            case "nsga3":
                return NSGAIIISampler(seed=seed, population_size=max(2, startup))


def trials_of(search: SearchConfig, space: Space) -> int:
    """Number of trials of a sweep: `search.trials`; where it is empty 16, and for a grid every configuration once."""
    if search.sampler != "grid":
        return search.trials or 16
    configurations = space.count() or 0
    if search.trials and search.trials > configurations:
        raise UserError(
            f"search.trials: must be at most {configurations}, as many as the grid has configurations, but got {search.trials}"
        )
    return search.trials or configurations


def _refuse(sampler: str, space: Space, objectives: int) -> None:
    if sampler == "cmaes":
        if objectives > 1:
            raise UserError(f"search.sampler: cmaes must have one objective, but got {objectives}; nsga2 and tpe take several")
        unfit = dict.fromkeys([*space.unordered, *space.conditional])
        if unfit:
            raise UserError(
                f"search.sampler: cmaes must have numbers that are always there, but {', '.join(unfit)} "
                f"{'has' if len(unfit) == 1 else 'have'} choices or conditions; use tpe, gp or nsga2"
            )
        if len(space.steady) < 2:
            raise UserError(
                f"search.sampler: cmaes must have at least two dimensions, but got {len(space.steady)}; use gp or tpe"
            )
    if sampler == "gp" and not space.steady:
        raise UserError(
            f"search.sampler: gp must have a dimension that is always there, but {', '.join(space.conditional)} "
            f"depend on others; use tpe"
        )
    if sampler == "grid":
        count = space.count()
        if count is None:
            raise UserError(
                f"search.sampler: grid must have finitely many configurations, but {', '.join(space.continuous)} "
                f"{'is' if len(space.continuous) == 1 else 'are'} continuous; give a step or choices, or use qmc"
            )
        if count > LARGEST_GRID:
            raise UserError(f"search.sampler: grid must have at most {LARGEST_GRID} configurations, but got {count}; use qmc")


class BoundedTPESampler(TPESampler):
    """TPE that looks at no more than FITTED trials, so that an ask costs the same however long the study is.

    Optuna's sorts all trials, and builds densities of all, for every group of dimensions. What tells one region from another
    are the best trials, of which it takes 25 at most; the others show where the search has been.
    """

    view: "_View | None" = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As Optuna's, of the trials that are looked at; called once per trial, before any of it is drawn."""
        self.view = self.look(study)
        return super().infer_relative_search_space(self.view, trial)  # type: ignore[arg-type]

    def look(self, study: Study) -> "_View":
        """What is looked at of a study."""
        return _View(study)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As Optuna's, of the trials that are looked at."""
        return super().sample_relative(self.view, trial, search_space)  # type: ignore[arg-type]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As Optuna's, of the trials that are looked at."""
        return super().sample_independent(self.view, trial, param_name, param_distribution)  # type: ignore[arg-type]


class FrontTPESampler(BoundedTPESampler):
    """TPE for several objectives, which may meet stopped trials with values by epoch.

    Optuna's ranks stopped trials by their last value and the study's only direction, which ends in an error where there are
    several. Without their curves it takes them for the worst, as it should: none of them could have been on the front.
    """

    def look(self, study: Study) -> "_View":
        """As above, of stopped trials without their curves."""
        return _View(study, curves=False)


class _View:
    """A study as a sampler sees it at one ask: the trials that run, the best FITTED / 4 and the newest of the others.

    Args:
        study: the study.
        curves: whether stopped trials have their values by epoch.
    """

    def __init__(self, study: Study, curves: bool = True):
        self._study = study
        trials = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        ]
        if len(trials) > FITTED:
            best = {trial.number for trial in _best(study, trials, FITTED // 4)}
            oldest = trials[-(FITTED - FITTED // 4)].number
            trials = [t for t in trials if t.number >= oldest or t.number in best or t.state == TrialState.RUNNING]
        self._seen = trials if curves else [_without_curve(trial) for trial in trials]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        return [trial for trial in self._seen if states is None or trial.state in states]


def _best(study: Study, trials: list[FrozenTrial], most: int) -> list[FrozenTrial]:
    """The best finished trials: of one objective those that keep the constraints and then by value, of several the
    newest on the front."""
    if len(study.directions) > 1:
        return study.best_trials[-most:]
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return heapq.nsmallest(most, finished, key=lambda trial: (not feasible(trial), sign * trial.value))  # type: ignore[operator]


def _without_curve(trial: FrozenTrial) -> FrozenTrial:
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        trial = copy.copy(trial)
        trial.intermediate_values = {}
    return trial


class GridSampler(BaseSampler):
    """Every configuration of a space exactly once, conditional ones too.

    What is left is what no trial of the study has, whoever proposed that trial; so nothing need be kept, and a grid goes on
    after a kill. `optuna.samplers.GridSampler` takes the product of all dimensions and cannot leave any out.
    """

    def __init__(self, space: Space, seed: int):
        self.space = space
        self.left = list(space.points())
        random.Random(seed).shuffle(self.left)
        self.left.reverse()  # taken from the end
        self.next: dict[str, Any] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of the next configuration; none when all have been tried."""
        trials = study.get_trials(deepcopy=False)
        taken = {
            _key(other.params or other.system_attrs.get("fixed_params", {})) for other in trials if other.number != trial.number
        }
        self.next = {}
        passed = []
        while self.left:
            point = self.left[-1]
            params = self.space.params(point)
            if _key(params) in taken:
                self.left.pop()
            elif not _key(trial.params) <= _key(params):  # a killed driver may have left a trial half asked
                passed.append(self.left.pop())
            else:
                self.next = params
                break
        self.left += reversed(passed)
        return self.space.distributions(point) if self.next else {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The next configuration."""
        return self.next

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Reached when nothing is left."""
        raise UserError(f"search.sampler: grid has no configuration left; all {self.space.count()} have been tried")


class SobolSampler(BaseSampler):
    """Scrambled Sobol points: trial n is point n of one sequence, so a resumed sweep goes on in it.

    Every dimension of the space owns a coordinate. Values of a list have equal parts of it; a dimension that is not there
    leaves it unused; one whose values depend on others spreads those that it has over it. `optuna.samplers.QMCSampler` knows
    only the dimensions of the first trial and draws the others at random.
    """

    def __init__(self, space: Space, seed: int):
        self.names = [dimension.name for dimension in space.searched]
        self.seed = seed
        self.blocks: dict[int, list[list[float]]] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: each dimension is asked for when its values are known."""
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value at the trial's coordinate of this dimension."""
        from torch.quasirandom import SobolEngine

        block, row = divmod(trial.number, 64)
        if block not in self.blocks:
            engine = SobolEngine(len(self.names), scramble=True, seed=self.seed).fast_forward(64 * block)
            self.blocks[block] = engine.draw(64).tolist()
        share = self.blocks[block][row][self.names.index(param_name.partition("|")[0])]
        return _domain(param_distribution).at(share)


class ReplayedCmaEs(CmaEsSampler):
    """Optuna's CMA-ES, except that its state is found again by telling it the study's trials, generation by generation.

    Optuna's own keeps the state in the study as a pickle, and whoever opens a study would run what is in it.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        self._completed = completed_trials
        return None  # so that `_init_optimizer` is asked

    def _init_optimizer(self, trans: Any, direction: Any) -> Any:
        optimizer: Any = super()._init_optimizer(trans, direction)
        sign = 1 if direction == optuna.study.StudyDirection.MINIMIZE else -1
        while True:
            told = self._get_solution_trials(self._completed, optimizer.generation)[: optimizer.population_size]
            if len(told) < optimizer.population_size:
                return optimizer
            optimizer.tell([(trans.transform(trial.params), sign * trial.value) for trial in told])  # type: ignore[operator]

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        return {}


def _key(params: dict[str, Any]) -> frozenset[tuple[str, Any]]:
    """Parameters to compare: two ways to reckon a number may differ in its last digits."""
    return frozenset((name, float(f"{v:.12g}") if isinstance(v, float) else v) for name, v in params.items())


def _domain(distribution: BaseDistribution) -> Domain:
    if isinstance(distribution, CategoricalDistribution):
        return Choices(tuple(distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution), distribution
    if distribution.step is None:
        return Range(distribution.low, distribution.high, distribution.log)
    return Grid(distribution.low, distribution.high, distribution.step, distribution.log)
