"""The plots of a report as PNG for slides and papers, drawn with matplotlib: no browser is asked for."""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

from statten.display.plots import figure as empty
from statten.display.plots import save_figure
from statten.report.figures import (
    COLOURS,
    CURVES,
    IDLE,
    STATES,
    best_cells_of,
    best_numbers,
    curve_numbers,
    importances,
    pairs,
    rate_layers,
    rate_titles,
)
from statten.report.trials import SweepTrials, TrialRow, shown


def draw(trials: SweepTrials, measured: list[dict[str, Any]], pair: tuple[str, str] | None, folder: Path) -> list[Path]:
    """Write a PNG for each plot that there are trials enough for; those of an earlier report that are not go."""
    made = {
        "front": _front(trials.against_energy()),
        "history": _history(trials),
        "importance": _importance(trials),
        "parallel": _parallel(trials),
        "slices": _slices(trials),
        "timesteps_block_size": _cells(trials, pair) if pair else None,
        "curves": _curves(trials),
        "firing_rates": _rates([r for r in measured if "layers" in r]),
        "timeline": _timeline(trials),
    }
    paths = []
    for name, figure in made.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            save_figure(figure, path)
            paths.append(path)
    return paths


def _front(trials: SweepTrials | None) -> Any:
    if trials is None or not trials.complete:
        return None
    drawn = pairs(trials)
    figure = empty(6.5, 4.2 * len(drawn))
    best = {row.number for row in trials.front}
    for axes, (x, y) in zip(_rows(figure, len(drawn)), drawn, strict=True):
        for which, name, style in (
            (False, "other trials", {"color": COLOURS["complete"], "alpha": 0.55, "s": 22}),
            (True, "Pareto front", {"color": COLOURS["fail"], "s": 45, "zorder": 3}),
        ):
            points = [row.values for row in trials.complete if row.values and (row.number in best) == which]
            axes.scatter([p[x] for p in points], [p[y] for p in points], label=name, linewidths=0, **style)
        steps = sorted((row.values[x], row.values[y]) for row in trials.front if row.values)
        if len(trials.objectives) == 2:
            where = "pre" if trials.objectives[x].maximize else "post"
            axes.step(*_columns(steps), where=where, color=COLOURS["fail"], linewidth=1, linestyle=":")
        for row in trials.front:
            kinds = [value for path in trials.differing if isinstance(value := row.point.get(path), str)]
            if kinds and row.values:  # such as the backbone
                spot, text = (row.values[x], row.values[y]), ", ".join(kinds)
                axes.annotate(text, spot, (5, -11), textcoords="offset points", fontsize=8, color="#444")
        base = trials.base
        if base and base.state == "complete" and base.values:
            star = {"marker": "*", "s": 170, "color": "#f2c400", "edgecolors": "#444", "zorder": 4}
            axes.scatter([base.values[x]], [base.values[y]], label=trials.base_name, **star)
        _axes(axes, trials.objectives[x].label, trials.objectives[y].label)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _history(trials: SweepTrials) -> Any:
    if not trials.complete:
        return None
    figure = empty(7, 3.4 * len(trials.objectives))
    for index, axes in enumerate(_rows(figure, len(trials.objectives))):
        objective = trials.objectives[index]
        done = [(row.number, row.values[index]) for row in trials.complete if row.values]
        other = [
            (row.number, v) for row in trials.rows if row.state != "complete" and (v := row.value(index, objective)) is not None
        ]
        axes.scatter(*_columns(done), color=COLOURS["complete"], s=22, label="finished")
        axes.scatter(*_columns(other), color=COLOURS["pruned"], s=22, marker="x", label="not finished")
        so_far = list(accumulate((value for _, value in done), max if objective.maximize else min))
        axes.step([n for n, _ in done], so_far, where="post", color="#d0525f", label="best so far")
        _axes(axes, "trial", objective.label)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _importance(trials: SweepTrials) -> Any:
    found = importances(trials)
    if not found:
        return None
    names = list(found[0])[::-1]
    figure = empty(6.5, 1 + 0.3 * len(names) * len(found))
    axes = figure.add_subplot()
    height = 0.8 / len(found)
    for i, values in enumerate(found):
        places = [y - 0.4 + height * (i + 0.5) for y in range(len(names))]
        axes.barh(places, [values.get(name, 0.0) for name in names], height, label=trials.objectives[i].label)
    axes.set_yticks(range(len(names)), names)
    _axes(axes, "importance (all fields together: 1)", "")
    if len(found) > 1:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _parallel(trials: SweepTrials) -> Any:
    if len(trials.complete) < 2 or not trials.differing:
        return None
    best = best_numbers(trials, CURVES)
    rows = sorted((r for r in trials.complete if r.number in best and r.values), key=lambda r: _goodness(trials, r))
    axes_of: list[tuple[str, list[Any], bool]] = [
        (o.label, [r.values[i] for r in rows if r.values], False) for i, o in enumerate(trials.objectives)
    ]
    axes_of += [(trials.names[p], [r.point.get(p) for r in rows], trials.is_log(p)) for p in trials.differing]
    figure = empty(1.5 * len(axes_of) + 1, 4)
    axes = figure.add_subplot()
    heights = []
    for x, (_, values, log) in enumerate(axes_of):
        height, ticks = _scale(values, log)
        heights.append([height(value) for value in values])
        axes.axvline(x, color="#888", linewidth=0.8, zorder=1)
        for tick in ticks:
            style = {"ha": "right", "va": "center", "fontsize": 7, "zorder": 4}
            axes.text(
                x - 0.03, height(tick), shown(tick), bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "lw": 0}, **style
            )
    for i in range(len(rows)):
        # From light to dark: the best by the first objective lies on top.
        colour = _blues()(0.25 + 0.75 * i / max(1, len(rows) - 1))
        axes.plot([line[i] for line in heights], color=colour, linewidth=1.2, alpha=0.8, zorder=2)
    axes.set_xticks(range(len(axes_of)), [name.replace(" (", "\n(") for name, _, _ in axes_of], fontsize=8)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"{len(rows)} finished trials, the darker the better in {trials.objectives[0].label}", fontsize=9)
    return figure


def _goodness(trials: SweepTrials, row: TrialRow) -> float:
    value = row.values[0] if row.values else 0.0
    return value if trials.objectives[0].maximize else -value


def _blues() -> Any:
    from matplotlib import colormaps

    return colormaps["Blues"]


def _scale(values: Sequence[Any], log: bool) -> tuple[Callable[[Any], float], list[Any]]:
    """Where a value stands on an axis from 0 to 1, nan where there is none, and the values that are written there."""
    known = [value for value in values if value is not None]
    choices = sorted(set(known), key=lambda v: (isinstance(v, str), v))
    if len(choices) <= 6 or not all(isinstance(value, int | float) for value in choices):
        places = {value: i / max(1, len(choices) - 1) for i, value in enumerate(choices)}
        return lambda value: places.get(value, math.nan), choices
    of: Callable[[Any], float] = math.log if log else float
    low, high = of(choices[0]), of(choices[-1])
    return lambda value: math.nan if value is None else (of(value) - low) / (high - low), [choices[0], choices[-1]]


def _slices(trials: SweepTrials) -> Any:
    paths, objectives = trials.differing, trials.objectives
    if len(trials.complete) < 2 or not paths:
        return None
    figure = empty(1 + 2.4 * len(paths), 2.8 * len(objectives))
    grid = figure.subplots(len(objectives), len(paths), sharey="row", squeeze=False)
    for i, objective in enumerate(objectives):
        for axes, path in zip(grid[i], paths, strict=True):
            rows = [row for row in trials.complete if path in row.point and row.values]
            values = [row.point[path] for row in rows]
            if trials.is_categorical(path):
                choices = sorted(set(values), key=lambda v: (isinstance(v, str), v))
                slanted = {"rotation": 25, "ha": "right"} if max(len(str(choice)) for choice in choices) > 6 else {}
                axes.set_xticks(range(len(choices)), [str(choice) for choice in choices], **slanted)
                axes.set_xlim(-0.5, len(choices) - 0.5)
                values = [choices.index(value) for value in values]
            elif trials.is_log(path):
                axes.set_xscale("log")
            elif ticks := trials.ticks(path):
                axes.set_xticks(ticks)
            axes.scatter(values, [row.values[i] for row in rows if row.values], color=COLOURS["complete"], s=16, alpha=0.7)
            _axes(axes, trials.names[path], objective.label if path == paths[0] else "")
    return figure


def _cells(trials: SweepTrials, pair: tuple[str, str]) -> Any:
    tables = [best_cells_of(trials, i, pair) for i in range(len(trials.objectives))]
    if not all(tables):
        return None
    figure = empty(6, 3.2 * len(tables))
    for objective, axes, table in zip(trials.objectives, _rows(figure, len(tables)), tables, strict=True):
        xs, ys, best, _ = table  # type: ignore[misc]
        cells = [[float("nan") if value is None else value for value in line] for line in best]
        image = axes.imshow(cells, cmap="Blues" if objective.maximize else "Blues_r", aspect="auto", origin="lower")
        axes.set_xticks(range(len(xs)), [str(x) for x in xs])
        axes.set_yticks(range(len(ys)), [str(y) for y in ys])
        for j, line in enumerate(best):
            for i, value in enumerate(line):
                if value is not None:
                    dark = sum(image.cmap(image.norm(value))[:3]) < 1.5
                    axes.text(i, j, shown(value), ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xlabel(trials.names[pair[0]])
        axes.set_ylabel(trials.names[pair[1]])
        axes.set_title(f"best {objective.label} of finished trials", fontsize=10)
    return figure


def _curves(trials: SweepTrials) -> Any:
    drawn = curve_numbers(trials)
    rows = [row for row in trials.rows if row.number in drawn and row.intermediate]
    if not rows:
        return None
    figure = empty(7, 4.2)
    axes = figure.add_subplot()
    for row in sorted(rows, key=lambda row: row.state == "complete"):
        points = sorted(row.intermediate.items())
        axes.plot(*_columns(points), color=COLOURS[row.state], linewidth=1.1, alpha=0.8 if row.state == "complete" else 0.5)
        if row.state in ("pruned", "fail"):
            axes.plot(*points[-1], marker="x" if row.state == "pruned" else "D", markersize=5, color=COLOURS[row.state])
    _states(axes, rows)
    _axes(axes, "epoch", trials.objectives[0].label)
    return figure


def _rates(measured: list[dict[str, Any]]) -> Any:
    if not measured:
        return None
    names = rate_layers(measured)
    widths = [len(r["layers"][0]["by_timestep"]) for r in measured]
    figure = empty(2.4 + sum(max(1.4, 0.45 * w) for w in widths), 1.4 + 0.2 * len(names))
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False, width_ratios=[max(3, w) for w in widths])[0]
    top = max(v for r in measured for layer in r["layers"] for v in layer["by_timestep"])
    for axes, r, width, title in zip(panels, measured, widths, rate_titles(measured), strict=True):
        by_layer = {layer["layer"]: layer["by_timestep"] for layer in r["layers"]}
        cells = [by_layer.get(name, [float("nan")] * width) for name in names]
        image = axes.imshow(cells, aspect="auto", cmap="viridis", vmin=0, vmax=top or 1)
        axes.set_xticks(range(width), [str(t + 1) for t in range(width)], fontsize=8)
        axes.set_title(title, fontsize=7)
        axes.set_xlabel("timestep", fontsize=8)
    panels[0].set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=list(panels), label="spikes per neuron and timestep")
    return figure


def _timeline(trials: SweepTrials, limit: int = 200) -> Any:
    rows = [row for row in trials.rows if row.began][-limit:]
    if not rows:
        return None
    zero = min(row.began for row in rows if row.began)
    worked = [(row, begin - zero, end - begin) for row in rows for begin, end in row.worked]
    idle = [(row, row.began - zero, row.ended - row.began) for row in rows if row.began and row.ended]
    last = max((begin + length for _, begin, length in [*worked, *idle]), default=timedelta()).total_seconds()
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if last >= 2 * u or u == 1)
    figure = empty(7, min(9, 1.2 + 0.13 * len(rows)))
    axes = figure.add_subplot()
    for bars, height in ((idle, 0.25), (worked, 0.75)):
        axes.barh(
            [row.number for row, _, _ in bars], [length.total_seconds() / unit for _, _, length in bars], height,
            left=[begin.total_seconds() / unit for _, begin, _ in bars],
            color=[COLOURS[row.state] if bars is worked else IDLE for row, _, _ in bars],
        )  # fmt: skip
    axes.invert_yaxis()
    _states(axes, rows)
    _axes(axes, f"time since the start ({name}); thin: starting, waiting or interrupted", "trial")
    return figure


# ---------------------------------------------------------------------------------------------------------------------


def _rows(figure: Any, number: int) -> list[Any]:
    return list(figure.subplots(number, 1, squeeze=False)[:, 0])


def _columns(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in points], [y for _, y in points]


def _axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        if name in ("trial", "epoch"):
            axis.get_major_locator().set_params(integer=True)


def _states(axes: Any, rows: list[TrialRow]) -> None:
    """A legend of the states that occur."""
    states = [state for state in COLOURS if any(row.state == state for row in rows)]
    handles = [axes.plot([], [], color=COLOURS[state], linewidth=3, label=STATES[state])[0] for state in states]
    axes.legend(handles=handles, fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
