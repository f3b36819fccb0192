"""Trials that another sweep has trained, taken over into a study where they could have been its own."""

import math

from optuna.trial import FrozenTrial, TrialState

from statten.errors import UserError
from statten.files import write_json
from statten.search.searcher import point_key
from statten.search.sweep import Sweep, is_run, violation
from statten.storage.run import Run


def take_over(sweep: Sweep, other: Sweep) -> tuple[int, int]:
    """Add another sweep's trials to this sweep's study, where they are trials that this one could have run itself.

    Returns their number, and the number of those left out: the configuration lies outside this sweep's space or differs in
    what is not searched, or an objective was not measured.
    """
    study, search = sweep.study(), sweep.config.search
    known = {point_key(t.user_attrs["point"]) for t in study.get_trials(deepcopy=False) if "point" in t.user_attrs}
    left, sources = 0, dict[int, str]()
    for trial in other.study().get_trials(deepcopy=False):
        if not (trial.state.is_finished() and is_run(trial) and trial.state != TrialState.FAIL):
            continue
        run = other.trial(trial.number)
        frozen = _as_ours(sweep, trial, run)
        if frozen is None or point_key(frozen.user_attrs["point"]) in known:
            left += 1
            continue
        study.add_trial(frozen)
        known.add(point_key(frozen.user_attrs["point"]))
        sources[len(study.get_trials(deepcopy=False)) - 1] = frozen.user_attrs["source"]
    if not sources:
        raise UserError(
            f"--from: none of {other.path}'s {left} finished trials could be one of this sweep: the space, the other fields "
            f"of the config and the objectives ({', '.join(search.directions)}) must agree; leave --from out"
        )
    write_json(sweep.path / "sources.json", sources)
    return len(sources), left


def _as_ours(sweep: Sweep, trial: FrozenTrial, run: Run) -> FrozenTrial | None:
    import optuna

    search, config = sweep.config.search, run.config
    space, origin = sweep.space, run.origin
    point = space.from_config(config)
    if point is None or "inherited" in origin:
        return None
    rows = run.metrics()
    best = run.best
    if not rows or any(not math.isfinite(row.get(search.metric, math.nan)) for row in rows):
        return None
    values = [best.get(metric, math.nan) for metric in search.directions] if trial.state == TrialState.COMPLETE else None
    if values and not all(map(math.isfinite, values)):
        return None
    attributes = {"point": point, "source": str(run.path.resolve())}
    if "reason" in trial.user_attrs:
        attributes["reason"] = trial.user_attrs["reason"]
    return optuna.trial.create_trial(
        state=trial.state,
        values=values,
        params=space.params(point),
        distributions=space.distributions(point),
        user_attrs=attributes,
        intermediate_values={int(row["epoch"]): row[search.metric] for row in rows},
        system_attrs={f"constraints:{text}": violation(text, best) for text in search.constraints} if values else {},
    )
