"""The report of a sweep: one page that opens from disk, pictures, and all trials as CSV and JSON.

    <sweep>/report/       or another folder
        index.html        the page; plotly.js inside, nothing is fetched
        *.png             the same as pictures
        trials.csv        one line per trial: fields, objectives, the best epoch's metrics, epochs, seconds, run folder
        trials.json       the same
        rates.json        firing rates that were measured, so that the next report need not

It only reads the sweep, which may be running.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from statten.errors import UserError
from statten.files import write_json, write_text
from statten.storage.mirror import check_place, publish

if TYPE_CHECKING:
    from statten.search.sweep import Sweep

__all__ = ["report"]


def report(sweep: "Sweep", output: Path | None = None, rates: bool = True) -> dict[str, Any]:
    """Write a sweep's report and return it as a document: what the page says, every trial, the files.

    Args:
        sweep: with any number of trials, ended or not.
        output: folder; empty means `report` in the sweep's folder. Files of an earlier report in it are replaced.
        rates: also measure the best trials' firing rates, which runs their checkpoints on validation samples.

    Raises:
        UserError: `output` is no folder, or holds something else than a report.
    """
    from statten.report.pictures import draw
    from statten.report.rates import best_rates
    from statten.report.sections import build, contour_pair
    from statten.report.summary import summarize
    from statten.report.trials import SweepTrials, csv_text, documents

    folder = output or sweep.path / "report"
    _check(folder)
    check_place(folder)
    trials = SweepTrials.read(sweep)
    folder.mkdir(parents=True, exist_ok=True)
    summary, rows = summarize(trials), documents(trials)
    write_json(folder / "trials.json", rows)
    write_text(folder / "trials.csv", csv_text(rows))
    measured = best_rates(trials, folder) if rates else []
    shown = trials.in_one_unit()
    write_text(folder / "index.html", build(shown, summary, measured, folder))
    pictures = draw(shown, measured, contour_pair(shown), folder)
    publish(folder)
    files = {"page": str(folder / "index.html"), "csv": str(folder / "trials.csv"), "json": str(folder / "trials.json")}
    return {**summary, "rates": measured, "trials": rows, "files": {**files, "pictures": [str(path) for path in pictures]}}


def _check(folder: Path) -> None:
    """Raise UserError unless a report may be written to a folder: files that are not ours stay as they are."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: must be a folder, but {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "trials.json").is_file():
        raise UserError(f"--output: must be a new folder, an empty one or that of a report, but {folder} holds something else")
