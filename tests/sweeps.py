"""Small sweeps over real studies and real, tiny training, without Ray."""

import contextlib
from pathlib import Path

from evaluated import TINY
from ray.tune.search import Searcher

from statten.config import load_config
from statten.search.searcher import OptunaSearcher
from statten.search.sweep import Sweep
from statten.space.loading import make_space
from statten.storage.run import Run
from statten.training.worker import run_fit

SHORT = {
    **TINY, "model.num_heads": 1, "data.fraction": 0.05, "train.epochs": 2, "train.batch_size": 16, "search.firing_range": None,
}  # fmt: skip
TIMES = {"model.timesteps": {"choices": [1, 2, 4]}, "model.block_size": {"divisors_of": "model.timesteps"}}


class Stopped(BaseException):
    """What Ray's SystemExit is in an actor."""


def new(path, space=TIMES, **fields):
    config = load_config("digits", {**SHORT, **{f"search.{k}": v for k, v in fields.items() if "__" not in k},
                                    **{k.replace("__", "."): v for k, v in fields.items() if "__" in k}})  # fmt: skip
    return Sweep.create(path, config, make_space(space, config))


def drive(sweep, limit=100):
    """Run a sweep as Ray Tune would, one trial at a time; returns the searcher."""
    with sweep.writing() as attempt:
        searcher = OptunaSearcher(sweep, attempt)
        for _ in range(limit):
            started = searcher.suggest("id")
            if started == Searcher.FINISHED:
                break

            def then(row):
                if searcher.judge("id", row):
                    raise Stopped

            with contextlib.suppress(Stopped):
                run_fit(Run(Path(started["run"])), attempt, threads=1, then=then)
            searcher.on_trial_complete("id")
        return searcher


def states(sweep):
    return [trial.state.name for trial, _ in sweep.rows()]
