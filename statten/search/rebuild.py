"""A study that is behind its trials' folders - restored, copied while it was written, lost - is brought up to them.

Folders are evidence: each holds the configuration that was trained and what came of it. A trial that the study lacks is added
as one that runs; the searcher then tells it as its folder ended, or goes on with it. Numbers without a folder (configurations
that were not run) become trials that are `lost`.
"""

from typing import TYPE_CHECKING, Any

from statten.errors import UserError
from statten.search.sweep import Sweep
from statten.space.space import Point
from statten.storage.run import Run

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


def rebuild(sweep: Sweep, study: "optuna.Study") -> list[str]:
    """Add the trials that have a folder and are not in the study; returns what was done, in sentences.

    Raises:
        UserError: a folder holds another configuration than the study's trial of its number, or the sweep's config was edited.
    """
    trials, here = study.get_trials(deepcopy=False), sweep.path / "trials"
    left, added, problems, edited = list[str](), list[int](), list[str](), dict[str, int]()
    found = dict[int, tuple[Run, Point]]()
    for number, run in sorted(sweep.folders().items()):
        try:
            if found and number < len(trials) and _same(trials[number], run):
                continue
            point = sweep.space.point_of(run.config)
            if number < len(trials) and (problem := sweep.disagreement(trials[number])):
                problems.append(problem)
            if number < len(trials) and (older := sweep.behind(trials[number])):
                left.append(older)
            if run.path.parent == here and (fields := sweep.space.differing(run.config, point)):
                edited = {**dict.fromkeys(fields, number), **edited}
            if run.path.parent != here and not run.ended:
                raise UserError(f"{run.path} is not finished")
        except UserError as error:
            left.append(f"trial {number} is left out: {error}")
            continue
        found[number] = (run, point)
    if edited:
        raise UserError(
            f"{sweep.path / 'config.yaml'}: was edited after its trials were made: {', '.join(edited)} differ from trial "
            f"{min(edited.values())}'s; set them back (search.* and scale.* may change), or start another sweep, with --from"
        )
    if problems:
        raise sweep.contradiction(problems)
    for number, (_, point) in found.items():
        if number < len(trials) and not trials[number].state.is_finished():
            _complete(sweep, study, trials[number], point)
    for number in range(len(trials), max(found, default=-1) + 1):
        if number in found:
            study.add_trial(_running(sweep, *found[number]))
            added.append(number)
        else:
            study.add_trial(_lost())
    if added:
        shown = f"{len(added)} trials" if len(added) > 1 else f"trial {added[0]}"
        return [f"the study was behind the trials' folders: {shown} taken from there", *left]
    return left


def _same(trial: "FrozenTrial", run: Run) -> bool:
    """Whether an ended trial is the one that its folder was made for: a look that takes no time, where trials are thousands."""
    point, ended = trial.user_attrs.get("point"), trial.state.is_finished()
    if not ended or point is None or (trial.state.name == "COMPLETE" and not run.ended):
        return False
    return point == run.origin.get("point")


def _complete(sweep: Sweep, study: "optuna.Study", trial: "FrozenTrial", point: Point) -> None:
    """Write down what the study lacks of a trial that was not ended: the configuration of its folder."""
    from optuna.trial import TrialState

    storage, distributions = study._storage, sweep.space.distributions(point)
    if trial.state == TrialState.WAITING:
        storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    for name, value in sweep.space.params(point).items():
        if name not in trial.params:
            internal = distributions[name].to_internal_repr(value)
            storage.set_trial_param(trial._trial_id, name, internal, distributions[name])
    if "point" not in trial.user_attrs:
        storage.set_trial_user_attr(trial._trial_id, "point", point)


def _running(sweep: Sweep, run: Run, point: Point) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    attributes: dict[str, Any] = {"point": point}
    if (parent := run.origin.get("inherited")) is not None:
        attributes["inherited"] = parent
    if run.path.parent != sweep.path / "trials":
        attributes["source"] = str(run.path)
    space = sweep.space
    return create_trial(
        state=TrialState.RUNNING, params=space.params(point), distributions=space.distributions(point), user_attrs=attributes
    )


def _lost() -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.FAIL, user_attrs={"lost": True, "reason": "not in the study any more, and without a folder"}
    )
