"""The page: a section for each thing that one asks of a sweep, with a sentence where a plot needs more trials."""

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from statten.display import duration, state_word
from statten.display.html import Markup, figure_html, link, page, place, table_html
from statten.report import figures
from statten.report.about import evaluations, promoted
from statten.report.rates import SAMPLES
from statten.report.summary import best_cells, sentences
from statten.report.trials import STATES, SweepTrials, TrialRow, kind_of, shown
from statten.storage.run import Run

ROWS = 1000
"""Trials in the table at most; the CSV has all."""
PAIR = ("model.timesteps", "model.block_size")


CURVES = "Learning curves"
# A click on a trial's `curve` in the table lets the other curves fade.
_FADE = """<script>
addEventListener("click", (event) => {
  const trial = event.target.dataset.trial, plot = document.querySelector("#PLACE .js-plotly-plot");
  if (trial === undefined || !plot) return;
  const mine = (curve) => !curve.name.startsWith("trial ") || curve.name === "trial " + trial;
  Plotly.restyle(plot, {opacity: plot.data.map((curve) => mine(curve) ? 1 : 0.12)});
});
</script>""".replace("PLACE", place(CURVES))


def build(trials: SweepTrials, summary: dict[str, Any], rates: list[dict[str, Any]], folder: Path) -> str:
    """The whole page.

    Args:
        trials: in one unit of energy.
        summary: of them.
        rates: firing rates of the best ones.
        folder: where the page will lie, for its links to runs and evaluations.
    """
    makers: list[tuple[str, Callable[[], list[str]]]] = [
        ("", lambda: _summary(trials, summary)),
        ("What was swept", lambda: [table_html(["", ""], summary["about"], kind="facts")]),
        ("Accuracy against energy" if len(trials.objectives) == 1 else "Pareto front", lambda: _front(trials)),
        ("Optimisation history", lambda: _history(trials)),
        ("Importance of the fields", lambda: _importance(trials)),
        ("Parallel coordinates", lambda: _parallel(trials)),
        ("Slices", lambda: _slices(trials)),
        ("Timesteps and block size", lambda: _contour(trials)),
        (CURVES, lambda: _curves(trials)),
        ("Firing rates of the best trials", lambda: _rates(rates)),
        ("Timeline", lambda: _timeline(trials)),
        ("Stops and failures", lambda: _reasons(trials)),
        ("All trials", lambda: _table(trials, folder)),
    ]
    if trained := promoted(trials):
        makers.insert(2, ("Trained on from it", lambda: _promoted(trained, folder)))
    return page(f"Sweep {trials.sweep.name}", [(heading, "\n".join(make())) for heading, make in makers])


def text(sentence: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(sentence)}</p>"


def needs(trials: SweepTrials, complete: int, what: str) -> str | None:
    """The sentence in place of a plot that needs more finished trials, or fields that differ between them."""
    found = len(trials.complete)
    if found < complete:
        return f"{what} needs at least {complete} finished {'trial' if complete == 1 else 'trials'}; there {_are(found)}."
    return None


def _are(number: int) -> str:
    return "is none" if number == 0 else "is 1" if number == 1 else f"are {number}"


def _differ(trials: SweepTrials, number: int, what: str) -> str | None:
    if len(trials.differing) < number:
        fields = "field" if number == 1 else "fields"
        return f"{what} needs at least {number} searched {fields} that differ between finished trials; there " + (
            f"{_are(len(trials.differing))}."
        )
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Sections.


def _summary(trials: SweepTrials, summary: dict[str, Any]) -> list[str]:
    wanted = ", ".join(f"{'highest' if o.maximize else 'lowest'} {o.label}" for o in trials.objectives)
    made = [text(" ".join(sentences(summary))), text(f"Wanted: {wanted}.")]
    if trials.front:
        columns, cells = best_cells(trials)
        made.append(table_html(columns, cells, right=range(1, len(columns))))
    else:
        made.append(text("No trial is finished yet, so there is no best one."))
    lines = "".join(f"<tr><td>{escape(what)}</td><td><code>{escape(line)}</code></td></tr>" for what, line in summary["next"])
    return [*made, "<p>What to type next:</p>", f'<div class="wide"><table><tbody>{lines}</tbody></table></div>']


def _front(trials: SweepTrials) -> list[str]:
    shown_trials = trials.against_energy()
    if shown_trials is None:
        return [text("The trials report no energy, and one objective has no front: its best trial is above.")]
    if problem := needs(shown_trials, 1, "The front"):
        return [text(problem)]
    made = [figure_html(figures.front(shown_trials, x, y)) for x, y in figures.pairs(shown_trials)]
    return made + _drawn(figures.POINTS, len(trials.complete), "trials")


def _history(trials: SweepTrials) -> list[str]:
    if problem := needs(trials, 1, "The history"):
        return [text(problem)]
    return [figure_html(figures.history(trials, i)) for i in range(len(trials.objectives))]


def _importance(trials: SweepTrials) -> list[str]:
    problem = needs(trials, 4, "The importance of fields") or _differ(trials, 1, "The importance of fields")
    if problem:
        return [text(problem)]
    about = (
        f"How much each field decides whether a trial is among the better ones, by Optuna's PED-ANOVA over "
        f"{len(trials.complete)} finished trials; with few trials this is a hint, no more."
    )
    return [figure_html(figures.importance(trials)), text(about)]


def _parallel(trials: SweepTrials) -> list[str]:
    problem = needs(trials, 2, "Parallel coordinates") or _differ(trials, 1, "Parallel coordinates")
    if problem:
        return [text(problem)]
    drawn = _drawn(figures.CURVES, len(trials.complete), "best trials")
    axes = len(trials.differing) + len(trials.objectives)
    return [figure_html(figures.parallel(trials), least=200 + 90 * axes), *drawn]


def _slices(trials: SweepTrials) -> list[str]:
    if problem := needs(trials, 2, "A slice") or _differ(trials, 1, "A slice"):
        return [text(problem)]
    least = 200 + 130 * len(trials.differing)
    return [figure_html(figures.slices(trials, i), least) for i in range(len(trials.objectives))]


def _contour(trials: SweepTrials) -> list[str]:
    pair = contour_pair(trials)
    if pair is None:
        return [text(needs(trials, 3, "A contour") or _differ(trials, 2, "A contour") or "A contour needs two numeric fields.")]
    made = []
    if pair != PAIR:
        x, y = (trials.names[path] for path in pair)
        made.append(text(f"Timesteps and block size do not both differ between finished trials; shown are {x} and {y}."))
    for i in range(len(trials.objectives)):
        cells = figures.cells(trials, i, pair)
        made += [figure_html(cells)] if cells else []
        made.append(figure_html(figures.contour(trials, i, pair)))
    made.append(
        text("The numbers are the best finished trial of each pair. The contour fills in the rest, also where no trial can be.")
    )
    return made


def contour_pair(trials: SweepTrials) -> tuple[str, str] | None:
    """Timesteps and block size where both differ between finished trials, else the first two numeric fields that do."""
    numeric = [p for p in trials.differing if all(isinstance(r.point.get(p, 0), int | float) for r in trials.complete)]
    if len(trials.complete) < 3 or len(numeric) < 2:
        return None
    return PAIR if set(PAIR) <= set(numeric) else (numeric[0], numeric[1])


def _curves(trials: SweepTrials) -> list[str]:
    curves = [row for row in trials.rows if row.intermediate]
    if not curves:
        return [text("No trial has finished an epoch yet.")]
    drawn = _drawn(figures.CURVES, len(curves), "trials: the best, and the newest of the others")
    return [figure_html(figures.curves(trials)), *drawn]


def _rates(rates: list[dict[str, Any]]) -> list[str]:
    made = [text(f"Trial {r['number']} could not be measured: {r['problem']}.") for r in rates if "problem" in r]
    measured = [r for r in rates if "layers" in r]
    if measured:
        about = (
            f"Spikes per neuron and timestep, over {measured[0]['samples']} samples of the validation part "
            f"({SAMPLES} at most) with the weights of the best epoch. A row that is 0 throughout is a dead layer."
        )
        made += [figure_html(figures.rates(measured), least=200 + 170 * len(measured)), text(about)]
    return made or [text("No finished trial was measured.")]


def _timeline(trials: SweepTrials) -> list[str]:
    if not any(row.began for row in trials.rows):
        return [text("No trial has started yet.")]
    drawn = _drawn(figures.BARS, len(trials.rows), "newest trials")
    return [figure_html(figures.timeline(trials)), *drawn]


def _reasons(trials: SweepTrials) -> list[str]:
    ended = [row for row in trials.rows if row.state in ("fail", "pruned")]
    if not ended:
        return [text("No trial was stopped early, and none failed.")]
    ended.sort(key=lambda row: (row.state != "fail", row.number))
    kinds: dict[tuple[str, str], list[TrialRow]] = {}
    for row in ended:
        kinds.setdefault((row.state, kind_of(row.reason)), []).append(row)
    counted = [
        [len(rows), STATES[state], kind or "-", _numbers(rows)]
        for (state, kind), rows in sorted(kinds.items(), key=lambda item: (item[0][0] != "fail", -len(item[1])))
    ]
    cells = [[row.number, STATES[row.state], len(row.epochs), row.reason or "-"] for row in ended[:ROWS]]
    return [
        table_html(["trials", "state", "reason", "which"], counted, right=(0,)),
        text("Each of them:"),
        table_html(["trial", "state", "epochs", "reason"], cells, right=(0, 2), kind="long"),
    ] + _listed(len(ended))


def _numbers(rows: list[TrialRow], most: int = 12) -> str:
    return ", ".join(str(row.number) for row in rows[:most]) + (", ..." if len(rows) > most else "")


def _promoted(trained: list[tuple[int, Run]], folder: Path) -> list[str]:
    cells = []
    for number, run in trained:
        best = run.judged() if run.metrics() else {}
        top1 = shown(best.get("val/top1"))
        where = Markup(", ".join(_evaluations(run, folder)) or "-")
        cells.append(
            [link(run.name, _address(run.path, folder)), number, state_word(run.state), len(run.metrics()), top1, where]
        )
    columns = ["run", "from trial", "state", "epochs", "validation top-1 (%)", "evaluations"]
    return [table_html(columns, cells, right=(1, 3, 4))]


def _table(trials: SweepTrials, folder: Path) -> list[str]:
    columns = ["trial", "state", *trials.names.values(), *[o.label for o in trials.objectives], "epochs", "time", "see"]
    rows = sorted(trials.rows, key=lambda row: row.number, reverse=True)[:ROWS][::-1]
    drawn = figures.curve_numbers(trials)
    cells = []
    for row in rows:
        point = [shown(row.point.get(path)) for path in trials.fields]
        values = [shown(row.value(i, o)) for i, o in enumerate(trials.objectives)]
        time, links = duration(row.seconds), _links(row, row.number in drawn, folder)
        cells.append([row.number, STATES[row.state], *point, *values, len(row.epochs), time, links])
    about = (
        "Values of trials that are not complete are those of their best epoch. A curve is shown among the others, whose lines "
        "fade; folders and evaluations open where they lie. Everything that was reported is in "
    )
    files = '<a href="trials.csv">trials.csv</a> and <a href="trials.json">trials.json</a>'
    right = [0, *range(2, len(columns) - 1)]
    table = table_html(columns, cells, right, "long")
    return [table, f"<p>{escape(about)}{files}.</p>", *_listed(len(trials.rows), "newest "), _FADE]


def _links(row: TrialRow, drawn: bool, folder: Path) -> Markup:
    """To a trial's curve, its folder and its evaluations."""
    links = [f'<a href="#{place(CURVES)}" data-trial="{row.number}">curve</a>'] if drawn and row.intermediate else []
    if row.run.path.is_dir():
        links += [link("folder", _address(row.run.path, folder)), *_evaluations(row.run, folder)]
    return Markup(", ".join(links))


def _evaluations(run: Run, folder: Path) -> list[Markup]:
    return [link(f"on {page.parent.name.rpartition('-')[0]}", _address(page, folder)) for page in evaluations(run)]


def _address(path: Path, folder: Path) -> str:
    """What a link in the folder's page leads to a file by."""
    return quote(os.path.relpath(path, folder))


def _listed(number: int, which: str = "") -> list[str]:
    return [text(f"Listed are {ROWS} {which}of {number} trials; trials.csv has all.")] if number > ROWS else []


def _drawn(limit: int, number: int, what: str) -> list[str]:
    """The sentence that tells that not all is drawn."""
    return [text(f"Drawn are {limit} of {number} {what}.")] if number > limit else []
