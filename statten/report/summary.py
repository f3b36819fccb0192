"""What a sweep found and cost, in a few numbers."""

from collections import Counter
from typing import Any

from statten.display import duration
from statten.report.about import facts
from statten.report.trials import NOT_RUN, STATES, SweepTrials, common_reason, shown
from statten.search.repeats import sentence

_WAS = ("was", "were")


def summarize(trials: SweepTrials) -> dict[str, Any]:
    """What was swept, states, the best trial or the front, the cost, and what to type next."""
    own = [row for row in trials.rows if not row.taken_over]
    epochs, seconds = sum(len(row.epochs) for row in own), sum(row.seconds for row in own)
    began = [row.began for row in own if row.began]
    ended = [row.ended for row in own if row.ended]
    per_trial = trials.config.train.total_epochs
    saved = sum(per_trial - len(row.epochs) for row in own if row.state == "pruned")
    states = dict(Counter(row.state for row in trials.rows))
    return {
        "sweep": trials.sweep.name,
        "path": str(trials.sweep.path),
        "about": facts(trials),
        "objectives": [{"name": o.name, "direction": "max" if o.maximize else "min"} for o in trials.objectives],
        "states": states,
        "not_run": trials.not_run,
        "taken_over": len(trials.rows) - len(own),
        "common_reason": common_reason((row.state, row.reason) for row in trials.rows),
        "certainty": sentence(trials.sweep),
        "best": [row.number for row in trials.front],
        "base": trials.base.number if trials.base else None,
        "epochs": epochs,
        "epochs_saved": saved,
        "hours": seconds / 3600,
        "span_hours": (max(ended) - min(began)).total_seconds() / 3600 if began and ended else 0.0,
        "next": _next(trials),
    }


def _next(trials: SweepTrials) -> list[list[str]]:
    """Commands that make sense now: what they do, and what to type."""
    path, best = trials.sweep.typed, trials.front
    unfinished = not trials.sweep.ended
    lines = []
    if unfinished:
        lines += [["watch it while it runs", f"statten show {path} --watch"]]
        lines += [["finish it, when nothing runs any more", f"statten resume {path}"]]
    further = f"--set train.epochs={2 * trials.config.train.epochs}"
    if len(best) > 1:
        lines += [["train the whole front further", f"statten promote {path} --front {further}"]]
    if best:
        lines += [[f"train trial {best[0].number} further", f"statten promote {path} {further}"]]
    if best:
        name = "the first of them" if len(best) > 1 else "it"
        lines += [[f"measure {name} on the test part, once", f"statten evaluate {best[0].run.typed}"]]
    if not unfinished:
        lines += [["look further", f"statten extend {path} --trials {max(8, trials.sweep.trials // 2)}"]]
    return lines


def sentences(summary: dict[str, Any]) -> list[str]:
    """The cost in words."""
    states = ", ".join(f"{summary['states'][state]:,} {name}" for state, name in STATES.items() if state in summary["states"])
    number = sum(summary["states"].values())
    lines = [f"{number:,} {'trial' if number == 1 else 'trials'}" + (f": {states}." if states else ".")]
    for why, count in summary["not_run"].items():
        lines.append(f"{count} more {_WAS[count > 1]} not run: {NOT_RUN[why]}.")
    if summary["taken_over"]:
        lines.append(f"{summary['taken_over']} of them were taken over from another sweep, and cost nothing here.")
    spent = duration(3600 * summary["hours"])
    lines.append(
        f"{summary['epochs']:,} epochs trained in {spent} of trial time, {_span(summary)} from the first start to the last end."
    )
    if summary["epochs_saved"]:
        whole = summary["epochs"] + summary["epochs_saved"]
        share = 100 * summary["epochs_saved"] / whole
        lines.append(f"Stopping early saved {summary['epochs_saved']:,} epochs, {share:.0f} % of what these trials would take.")
    if summary["common_reason"]:
        lines.append(f"{summary['common_reason']}.")
    if summary["certainty"]:
        lines.append(summary["certainty"])
    return lines


def _span(summary: dict[str, Any]) -> str:
    return duration(3600 * summary["span_hours"])


def best_cells(trials: SweepTrials) -> tuple[list[str], list[list[str]]]:
    """The best trial or the front as a table: number, point, objectives, epochs; the base config last."""
    columns = ["", "trial", *trials.names.values(), *[o.label for o in trials.objectives], "best epoch", "time"]
    rows = [("front" if len(trials.objectives) > 1 else "best", row) for row in trials.front]
    if trials.base and trials.base not in trials.front:
        rows.append((trials.base_name.partition(" (")[0], trials.base))
    cells = []
    for what, row in rows:
        point = [shown(row.point.get(path)) for path in trials.fields]
        values = [shown(row.value(i, o)) for i, o in enumerate(trials.objectives)]
        cells.append([what, str(row.number), *point, *values, shown(row.metrics.get("epoch")), duration(row.seconds)])
    return columns, cells
