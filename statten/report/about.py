"""What was swept, as facts that a reader of the page can repeat it from; and what became of its trials elsewhere."""

import os
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

from statten.config import dump_yaml, recipe_names
from statten.errors import UserError
from statten.records.reading import read
from statten.records.runs import Environment
from statten.report.trials import SweepTrials
from statten.storage.run import Run


def facts(trials: SweepTrials) -> list[list[str]]:
    """Dataset, recipe, network, space, search, seeds, versions and commit: a name and its text each."""
    config, search, environment = trials.config, trials.config.search, _environment(trials)
    data, model = config.data, config.model
    said = {"backbone": model.backbone, "attention": f"attention {model.attention}", "neuron": f"{model.neuron} neurons"}
    network = [text for name, text in said.items() if f"model.{name}" not in trials.fields]
    parts = [f"validation: {data.validation}", f"split seed {data.split_seed}"]
    parts += [f"{100 * data.fraction:g} % of the training part"] * (data.fraction != 1)
    rates = ", firing rates outside {:g} to {:g}".format(*search.firing_range) if search.firing_range else ""
    sampler = f"{search.sampler}, seed {search.seed}"
    if search.sampler in ("tpe", "gp", "cmaes"):
        sampler += f", {search.startup_trials} trials at random first"
    rows = [
        ["dataset", f"{data.name}{f' in {data.root}' if data.root else ''} ({', '.join(parts)})"],
        ["recipe", trials.recipe or _changed_recipe(dict(environment).get("command", ""))],
        *([["network", ", ".join(network)]] if network else []),
        ["training", ", ".join(_training(trials))],
        *[["space" if i == 0 else "", line] for i, line in enumerate(_space(trials))],
        ["wanted", ", ".join(f"{'highest' if o.maximize else 'lowest'} {o.label}" for o in trials.objectives)],
        *([["kept", ", ".join(search.constraints)]] if search.constraints else []),
        ["sampler", sampler],
        ["stops early", f"scheduler {search.scheduler}{rates}"],
    ]
    return [*rows, *_changes(trials), *environment]


def _changed_recipe(command: str) -> str:
    """What is said where the base config is no recipe as it is shipped."""
    words, known = command.split(), recipe_names()
    # A word after an option is its value, such as the name of a space.
    named = next((word for before, word in pairwise(words) if word in known and not before.startswith("--")), None)
    return f"{named}, with other fields (config.yaml)" if named else "none that is shipped (config.yaml)"


def _training(trials: SweepTrials) -> list[str]:
    train = trials.config.train
    fields = {"epochs": train.total_epochs} | {
        name: getattr(train, name) for name in ("batch_size", "optimizer", "lr", "precision", "seed")
    }
    return [f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if f"train.{name}" not in trials.fields]


def _space(trials: SweepTrials) -> list[str]:
    """A line for each dimension and constraint of the space."""
    tree = trials.sweep.space.tree
    return [dump_yaml({name: line}, flow=True).strip()[1:-1].replace("\n", "") for name, line in tree.items()]


def _changes(trials: SweepTrials) -> list[list[str]]:
    """Rules and budgets that `extend` changed."""
    rows = []
    for record in trials.sweep.study().user_attrs.get("changed", []):
        changed = ", ".join(f"{field} {was} -> {now}" for field, (was, now) in record["fields"].items())
        rows.append([f"from trial {record['from_trial']}", changed])
    return rows


def _environment(trials: SweepTrials) -> list[list[str]]:
    sweep = trials.sweep
    rows = [["begun", sweep.info.get("created", "-")]]
    try:
        found = read(sweep.path / "environment.json", Environment)
    except UserError as error:
        return [*rows, ["environment", str(error)]]
    if found is None:
        return rows
    versions = {"python": found.get("python"), **found.get("versions", {})}
    machine = [found.get("processor"), f"{found['cpus']} cores" if found.get("cpus") else None, *found.get("gpus", [])]
    if command := found.get("command"):
        rows.append(["command", shlex.join([os.path.basename(command[0]), *command[1:]])])
    return [
        *rows,
        ["commit", found.get("commit") or "unknown: installed without its repository"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)],
        ["machine", ", ".join(text for text in machine if text)],
    ]


def evaluations(run: Run) -> list[Path]:
    """Pages of what `evaluate` found of a run."""
    return sorted(run.path.glob("evaluations/*/report.html"))


def promoted(trials: SweepTrials) -> list[tuple[int, Run]]:
    """Runs beside the sweep that went on from one of its trials, with the trial's number."""
    found = []
    for marker in sorted(trials.sweep.path.parent.glob("*/run.json")):
        try:
            run = Run(marker.parent)
            origin: Any = run.origin
        except UserError:  # a damaged neighbour hides no other
            continue
        if origin.get("sweep") == trials.sweep.name and isinstance(origin.get("trial"), int):
            found.append((origin["trial"], run))
    return found
