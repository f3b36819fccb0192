"""Train what a sweep found further."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from statten.cluster.trainer import resume, train
from statten.config import get_field, with_overrides
from statten.errors import UserError
from statten.search.sweep import Sweep, open_folder
from statten.storage.checkpoint import weights_file
from statten.storage.run import Run
from statten.training.resuming import changed_shapes


def promote(
    source: Run, config_overrides: dict[str, Any] | list[str], path: Path, recorded: dict[str, Any] | None = None
) -> Run:
    """Train a trial or run further in a new folder, from the (averaged) weights by which its best epoch was judged.

    The schedule may be longer, the timesteps more, the data whole; fields that own parameters must stay.

    Raises:
        UserError: the overrides change the shape of the weights, or anything that `train` refuses.
    """
    config = with_overrides(source.config, config_overrides)
    if changed := changed_shapes(source.config, config):
        fields = ", ".join(f"{field}={get_field(source.config, field)}" for field in changed)
        raise UserError(
            f"--set: a promoted run starts from trained weights, so {fields} must stay as in {source.path}; "
            f"model.timesteps and model.block_size own no weights and may change"
        )
    checkpoint = source.best_checkpoint()
    origin = {"checkpoint": str(checkpoint), **(recorded or {})}
    return train(config, path, weights_file(checkpoint), origin)


def source_of(path: Path, trial: int | None = None) -> tuple[Run, dict[str, Any]]:
    """What is promoted of a folder: a sweep's best trial, or the one of a number, or a run; and where it comes from.

    Raises:
        UserError: there is no such trial, or nothing that could be promoted.
    """
    sweep = open_folder(path)
    if not isinstance(sweep, Sweep):
        if trial is not None:
            raise UserError(f"--trial: {path} is no sweep")
        return Run.open(path), {"run": path.name}
    if trial is not None and not sweep.trial(trial).path.is_dir():
        last = len(list((path / "trials").glob("[0-9]*"))) - 1
        raise UserError(f"--trial: must be between 0 and {last}, but got {trial}")
    number = sweep.best_trial().number if trial is None else trial
    known = next((t for t, _ in sweep.rows() if t.number == number), None)
    return sweep.checked(known) if known else sweep.trial(number), {"sweep": path.name, "trial": number}


def promote_front(
    sweep: Sweep, config_overrides: dict[str, Any] | list[str], places: Mapping[int, Path], begun: Collection[int] = ()
) -> Iterator[tuple[int, Run]]:
    """Promote several trials in turn, and yield each with its number when it is trained.

    Args:
        sweep: whose trials.
        config_overrides: as in `promote`.
        places: new folder of each trial, by number; such as those of `sweep.front()`.
        begun: those of which the folder is there already: they go on where they were.
    """

    def begin(number: int, path: Path) -> Run:
        return promote(sweep.trial(number), config_overrides, path, {"sweep": sweep.name, "trial": number})

    return in_turn(begin, places, begun)


def in_turn(
    begin: Callable[[int, Path], Run], places: Mapping[int, Path], begun: Collection[int] = ()
) -> Iterator[tuple[int, Run]]:
    """Train several runs one after the other, and yield each with its number: `begin` those whose folder is not there yet."""
    for number, path in places.items():
        if number not in begun:
            yield number, begin(number, path)
        else:
            run = Run.open(path)
            yield number, run if run.state == "finished" else resume(run)
