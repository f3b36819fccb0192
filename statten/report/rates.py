"""Firing rates of a sweep's best trials by layer and timestep, on the validation part; kept for the next report."""

from pathlib import Path
from typing import Any

from statten.data import make_loaders
from statten.display import progress_bar
from statten.errors import UserError
from statten.evaluation import open_target
from statten.evaluation.measure import measure
from statten.evaluation.report import accuracy, layers
from statten.files import write_json
from statten.records.measurements import LayerRate, Rates
from statten.records.reading import read
from statten.report.trials import SweepTrials, TrialRow, different

TRIALS = 4
"""Trials that are measured at most."""
SAMPLES = 1024
"""Validation samples of each, spread over the part: enough for a mean over them and all neurons of a layer."""


def best_rates(trials: SweepTrials, folder: Path) -> list[dict[str, Any]]:
    """A document for each of the best trials: number, point, samples, layers (see evaluation/report.py), or `problem`.

    What was measured lies in `rates.json` under a digest of weights, model and data, and is not measured again.
    """
    try:
        kept = read(folder / "rates.json", dict[str, Rates]) or {}
    except UserError:  # damaged, so it is measured anew
        kept = {}
    chosen, found = best_trials(trials), []
    with progress_bar("trials") as bar:
        task = bar.add_task("firing rates", total=len(chosen), rate="")
        for row in chosen:
            about = {"number": row.number, "point": trials.describe(row)}
            try:
                found.append(about | _measure(row, kept))
            except UserError as error:
                found.append(about | {"problem": str(error)})
            bar.advance(task)
    write_json(folder / "rates.json", kept)
    return found


def best_trials(trials: SweepTrials) -> list[TrialRow]:
    """A few of the best finished trials: of a front spread over it, else those with the best values."""
    if len(trials.objectives) > 1:
        front = trials.front
        places = sorted({round(i * (len(front) - 1) / (TRIALS - 1)) for i in range(TRIALS)} if front else ())
        return [front[i] for i in places]
    sign = -1 if trials.objectives[0].maximize else 1
    ranked = sorted((row for row in trials.complete if row.values), key=lambda row: sign * row.values[0])  # type: ignore[index]
    return different(ranked)[:TRIALS]


def _measure(row: TrialRow, kept: dict[str, Rates]) -> Rates:
    target = open_target(row.run.path)
    key = target.key(samples=SAMPLES)
    if key not in kept:
        config = target.evaluated_on(1)
        target.preflight(config)
        loader = make_loaders(config).validation
        loader.indices = loader.indices[:: -(-len(loader.indices) // SAMPLES)]
        loader.samples = len(loader.indices)
        found = measure(target.model(), loader, config)
        rates: list[LayerRate] = [
            {"layer": row["layer"], "rate": row["rate"], "by_timestep": row["by_timestep"], "state": row["state"]}
            for row in layers(found, config.model)
        ]
        kept[key] = {"samples": found.samples, "top1": accuracy(found)["top1"], "layers": rates}
    return kept[key]
