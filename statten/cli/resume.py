"""Going on with what was begun: `resume`, --resume, and how a finished run or sweep is told."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from statten.cli.options import Json, Storage, Target, app, begin, print_json
from statten.config import Config, field_paths, get_field, with_overrides
from statten.errors import UserError, in_shell
from statten.records.reading import read_bytes
from statten.storage.run import Run, RunFolder, locate
from statten.storage.supernet import Supernet

if TYPE_CHECKING:
    from statten.search import Sweep
    from statten.space.space import Space


def begun(path: Path, config: Config, space: "Space | None" = None) -> bool:
    """Whether a run (or, with a space, a sweep) of this config was begun in the folder, and can be resumed.

    Raises:
        UserError: the folder holds something else; the sentence names the fields that differ.
    """
    from statten.data import resolved
    from statten.search.sweep import Sweep

    if not path.exists():
        return False
    folder: RunFolder = Run.open(path) if space is None else Sweep.open(path)
    asked = resolved(config)
    if space is not None:
        from statten.search.samplers import trials_of
        from statten.search.study import with_absolute_database

        # As `tune` writes them down.
        asked = with_absolute_database(with_overrides(asked, {"search.trials": trials_of(asked.search, space)}))
    other = space is not None and read_bytes(path / "space.yaml") != space.dump().encode()
    check_same(folder, asked, ["the search space"] * other)
    return True


def check_same(folder: RunFolder, asked: Config, others: list[str]) -> None:
    """Raise UserError where a folder was begun with another config, or differs in something else, in words."""
    differ = [field for field in field_paths() if get_field(folder.config, field) != get_field(asked, field)] + others
    if differ:
        raise UserError(
            f"--resume: {folder.path} is another {folder.noun}, for it differs in {', '.join(differ)}; choose another --name, "
            f"or go on with what is there: statten resume {in_shell(folder.name)}"
        )


def ended(path: Path) -> bool:
    """Whether a run is finished, all trials of a sweep have ended, or all points of a supernet are evaluated."""
    from statten.search.sweep import Sweep, open_folder

    folder = open_folder(path)
    if isinstance(folder, Supernet):
        return folder.complete
    return folder.ended if isinstance(folder, Sweep) else Run(path).state == "finished"


@app.command()
def resume(target: Target, storage: Storage = None, as_json: Json = False) -> None:
    """Continue a stopped run, sweep or supernet where it was."""
    path, began = locate(target, begin(as_json, storage)), time.monotonic()
    from statten.search.sweep import Sweep, open_folder

    folder = open_folder(path)
    if isinstance(folder, Sweep):
        from statten.search import resume_sweep

        return finish_sweep(resume_sweep(folder), began, as_json)
    if isinstance(folder, Supernet):
        from statten.search.supernet import resume_supernet

        return finish_supernet(resume_supernet(folder), began, as_json)
    run = Run.open(path)
    from statten.cluster import trainer

    return finish_run(trainer.resume(run), began, as_json)


def go_on(path: Path, storage: Path, as_json: bool) -> None:
    """What --resume does with a run or sweep that was begun."""
    if not ended(path):
        return resume(str(path.absolute()), storage, as_json)
    from statten.display import console
    from statten.search.sweep import Sweep, open_folder

    console.print(f"{path}: is finished")
    folder = open_folder(path)
    if isinstance(folder, Sweep):
        return finish_sweep(folder, time.monotonic(), as_json)
    if isinstance(folder, Supernet):
        return finish_supernet(folder, time.monotonic(), as_json)
    return finish_run(Run.open(path), time.monotonic(), as_json)


def finish_run(run: Run, began: float, as_json: bool) -> None:
    from statten.display.run import run_summary

    if not as_json:
        return run_summary(run, began)
    best = run.judged()
    return print_json(
        {
            "name": run.name,
            "path": str(run.path),
            **{key: best.get(f"val/{key}") for key in ("top1", "top5", "loss")},
            "epoch": best["epoch"],
            "epochs": len(run.metrics()),
            "metrics": best,
            "checkpoint": str(run.best_checkpoint()),
            "seconds": time.monotonic() - began,
        }
    )


def finish_sweep(sweep: "Sweep", began: float, as_json: bool) -> None:
    from statten.report.overview import counts, sweep_summary

    if as_json:
        return print_json({"name": sweep.name, "path": str(sweep.path), "trials": counts(sweep), "best": sweep.best()})
    return sweep_summary(sweep, began)


def check_free(places: dict[int, Path], known: list[int]) -> None:
    """Raise UserError where one of the folders of a front is taken, but for those that go on."""
    if taken := [place for number, place in places.items() if place.exists() and number not in known]:
        raise UserError(f"--name: {taken[0]} exists already; choose another --name, or go on with --resume")


def finish_front(promoted: Iterator[tuple[int, Run]], as_json: bool) -> None:
    """Tell of each run of a front, with the number of what it came from, when it is trained."""
    from statten.display import console

    done = []
    for number, run in promoted:
        best = run.judged()
        done.append({"trial": number, "name": run.name, "path": str(run.path), "metrics": best})
        console.print(f"{run.name}: top-1 {best['val/top1']:.2f} %, {best.get('energy_uj', math.nan):.4g} uJ a sample")
    return print_json(done) if as_json else None


def finish_supernet(supernet: Supernet, began: float, as_json: bool) -> None:
    from statten.report.supernet import supernet_details, supernet_summary

    if as_json:
        return print_json(supernet_details(supernet))
    return supernet_summary(supernet, began)
