"""The plots of a report: Optuna's own where there are some, with this sweep's names and units; plotly figures by name."""

import textwrap
from typing import TYPE_CHECKING, Any

from statten.report.trials import STATES, SweepTrials, TrialRow, shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CURVES = 150
"""Learning curves, and lines of parallel coordinates, that are drawn at most: a line each is what makes a page slow."""
BARS = 200
"""Bars of the timeline."""
POINTS = 3000
"""Trials in any other plot."""
COLOURS = {"complete": "#2a6fbb", "pruned": "#e8950c", "fail": "#cc2a36", "running": "#3a9d5d", "unfinished": "#8a8a8a"}
IDLE = "#b4b4b4"
"""Of the time between a trial's begin and end in which nothing trained it."""
ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
_CYCLE = ["#2a6fbb", "#e8950c", "#3a9d5d", "#8c5fb0", "#7a7a7a"]
BASE = {"symbol": "star", "size": 16, "color": "#f2c400", "line": {"width": 1, "color": "#444"}}


def finish(figure: "Figure", height: int = 420, **layout: Any) -> "Figure":
    """One look for all: no title, for the section has one, and white ground."""
    figure.update_layout(
        template="plotly_white", title=None, width=None, height=height, margin={"l": 70, "r": 30, "t": 30, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 12}, **layout,
    )  # fmt: skip
    return figure


def history(trials: SweepTrials, index: int) -> "Figure":
    """Value of each trial and the best so far; stopped trials with the value of their best epoch."""
    from optuna.visualization import plot_optimization_history

    objective, name = trials.objectives[index], trials.objectives[index].label
    figure = plot_optimization_history(trials.study(index), target_name=name)
    stopped = [
        (row, value) for row in trials.rows if row.state != "complete" and (value := row.value(index, objective)) is not None
    ]
    figure.update_traces(marker={"color": COLOURS["complete"], "size": 7}, selector={"mode": "markers", "name": name})
    figure.update_traces(name="finished", selector={"name": name})
    figure.update_traces(name="best so far", line={"color": "#d0525f", "shape": "hv"}, selector={"name": "Best Value"})
    figure.add_scatter(
        x=[row.number for row, _ in stopped], y=[value for _, value in stopped], mode="markers", name="not finished",
        marker={"symbol": "x", "size": 6, "color": COLOURS["pruned"]},
        text=[f"{trials.describe(row)}<br>{row.reason or STATES[row.state]}" for row, _ in stopped],
    )  # fmt: skip
    return finish(figure, legend=ABOVE)


def importances(trials: SweepTrials) -> list[dict[str, float]]:
    """Share of each field in the differences between good and other finished trials (PED-ANOVA), for each objective."""
    from optuna.importance import get_param_importances

    if len(trials.complete) < 4 or not trials.differing:
        return []
    return [get_param_importances(trials.study(i)) for i in range(len(trials.objectives))]


def importance(trials: SweepTrials) -> "Figure":
    """A bar for each field and objective."""
    from optuna.visualization import plot_param_importances

    figures = [plot_param_importances(trials.study(i), target_name=o.label) for i, o in enumerate(trials.objectives)]
    figure = figures[0]
    for i, other in enumerate(figures):
        for trace in other.data:
            trace.update(name=trials.objectives[i].label, marker_color=_CYCLE[i % len(_CYCLE)])
            if i:
                figure.add_trace(trace)
    figure.update_layout(xaxis_title="importance (all fields together: 1)", yaxis_title=None, barmode="group")
    figure.update_yaxes(ticksuffix=" ")
    bars = len(trials.searched) * len(trials.objectives)
    return finish(figure, 130 + 26 * bars, legend=ABOVE, showlegend=len(trials.objectives) > 1)


def parallel(trials: SweepTrials) -> "Figure":
    """One line for each finished trial across its fields and objectives."""
    from optuna.visualization import plot_parallel_coordinate
    from plotly.colors import unlabel_rgb

    several = len(trials.objectives) > 1
    study = trials.study(None if several else 0, only=best_numbers(trials, CURVES))
    params = [trials.names[path] for path in trials.differing]
    figure = plot_parallel_coordinate(study, params, target_name=trials.objectives[0].label)
    for trace in figure.data:
        if trace.mode == "lines":
            red, green, blue = unlabel_rgb(trace.line.color)
            # The scale ends in white, where a line could not be seen.
            trace.update(
                line={"width": 1.8, "color": f"rgb({max(0, red - 40):.0f}, {max(0, green - 30):.0f}, {blue - 15:.0f})"},
                opacity=0.8,
            )
    figure.update_annotations(bgcolor="rgba(255, 255, 255, 0.8)", borderpad=0)  # values of ticks, which lines cross
    return finish(figure, 460)


def slices(trials: SweepTrials, index: int) -> "Figure":
    """The objective over each field."""
    from optuna.visualization import plot_slice

    name = trials.objectives[index].label
    params = [trials.names[path] for path in trials.differing]
    figure = plot_slice(trials.study(index, only=newest(trials, POINTS)), params, target_name=name)
    for path in trials.differing:
        if not trials.is_categorical(path) and (ticks := trials.ticks(path)):
            figure.update_xaxes(tickvals=ticks, selector={"title": {"text": trials.names[path]}})
    return _decades(finish(figure, 360))


def contour(trials: SweepTrials, index: int, pair: tuple[str, str]) -> "Figure":
    """The objective over two fields."""
    from optuna.visualization import plot_contour

    x, y = (trials.names[path] for path in pair)
    objective = trials.objectives[index]
    figure = plot_contour(trials.study(index, only=newest(trials, POINTS)), [x, y], target_name=objective.label)
    figure.update_traces(colorbar={"title": {"side": "right"}}, selector={"type": "contour"})
    for axis, path in ((figure.update_xaxes, pair[0]), (figure.update_yaxes, pair[1])):
        if ticks := trials.ticks(path):
            axis(tickvals=ticks)
    return _decades(finish(figure, 420))


def _decades(figure: "Figure") -> "Figure":
    """Logarithmic axes with powers of ten alone: 10⁻³, not 0.001 beside 2 and 5."""
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(dtick=1, exponentformat="power", selector={"type": "log"})
    return figure


def pairs(trials: SweepTrials) -> list[tuple[int, int]]:
    """Objectives for the axes of each plot of the front: what it costs to the right, what one gets upwards."""
    number = range(len(trials.objectives))
    found = [(x, y) for x in number for y in number if x < y]
    return [(y, x) if trials.objectives[x].maximize and not trials.objectives[y].maximize else (x, y) for x, y in found]


def front(trials: SweepTrials, x: int, y: int) -> "Figure":
    """Two objectives of the finished trials: those that none surpasses, the others, and the base config."""
    from optuna.visualization import plot_pareto_front

    names = [trials.objectives[i].label for i in (x, y)]
    study = trials.study(only=newest(trials, POINTS))
    figure = plot_pareto_front(study, targets=lambda t: (t.values[x], t.values[y]), target_names=names)
    figure.update_traces(marker={"showscale": False, "size": 8})
    rows = {(row.values[x], row.values[y]): row for row in trials.complete if row.values}
    for trace in figure.data:
        best = "Best" in trace.hovertemplate
        texts = [f"trial {rows[p].number}: {trials.describe(rows[p])}" for p in zip(trace.x, trace.y, strict=True)]
        trace.update(text=texts, hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>")
        trace.update(showlegend=bool(trace.x), name="Pareto front" if best else "other trials")
        trace.marker.update(color="#cc2a36" if best else "#2a6fbb", size=10 if best else 7, opacity=1 if best else 0.55)
    steps = sorted((row.values[x], row.values[y]) for row in trials.front if row.values)
    if len(trials.objectives) == 2:  # what is reached for sure between two trials of the front is a step, no slope
        shape = "vh" if trials.objectives[x].maximize else "hv"
        figure.add_scatter(
            x=[p[0] for p in steps], y=[p[1] for p in steps], mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": "#cc2a36", "width": 1, "dash": "dot", "shape": shape},
        )  # fmt: skip
    if trials.base and trials.base.state == "complete" and trials.base.values:
        figure.add_scatter(
            x=[trials.base.values[x]], y=[trials.base.values[y]], mode="markers", marker=BASE, name=trials.base_name,
        )  # fmt: skip
    return finish(figure, 460, legend=ABOVE)


def curves(trials: SweepTrials) -> "Figure":
    """The first objective after each epoch, with the epochs at which trials were stopped or failed."""
    from optuna.visualization import plot_intermediate_values

    drawn = curve_numbers(trials)
    rows = {row.number: row for row in trials.rows if row.number in drawn}
    figure = plot_intermediate_values(trials.study(0, drawn, curves=True))
    for row in rows.values():
        if row.state == "fail":  # which Optuna leaves out
            figure.add_scatter(x=list(row.intermediate), y=list(row.intermediate.values()), name=f"Trial{row.number}")
    for trace in figure.data:
        row = rows[int(trace.name.removeprefix("Trial"))]
        trace.update(
            mode="lines" if len(trace.x) > 1 else "markers",
            line={"color": COLOURS[row.state], "width": 1.3},
            opacity=0.85 if row.state == "complete" else 0.6,
            name=f"trial {row.number}",
            text=[trials.describe(row)] * len(trace.x),
            showlegend=False,
        )
    for state in ("complete", "running", "unfinished"):
        if any(row.state == state and row.intermediate for row in rows.values()):
            figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": COLOURS[state]}, name=STATES[state])
    ends = [(row, max(row.intermediate)) for row in rows.values() if row.state in ("pruned", "fail") and row.intermediate]
    for state, symbol in (("pruned", "x"), ("fail", "diamond")):
        these = [(row, epoch) for row, epoch in ends if row.state == state]
        if these:
            figure.add_scatter(
                x=[epoch for _, epoch in these], y=[row.intermediate[epoch] for row, epoch in these], mode="markers",
                marker={"symbol": symbol, "size": 8, "color": COLOURS[state]}, name=STATES[state],
                text=[f"trial {row.number}: {row.reason}" for row, _ in these], hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    figure.update_layout(xaxis_title="epoch", yaxis_title=trials.objectives[0].label)
    if max((epoch for row in rows.values() for epoch in row.intermediate), default=0) <= 20:
        figure.update_xaxes(dtick=1)
    return finish(figure, 460, legend=ABOVE).update_layout(showlegend=True)


def timeline(trials: SweepTrials) -> "Figure":
    """When each trial was trained, how it ended, and when it only waited: while it started, or was interrupted."""
    import plotly.graph_objects as go

    rows = [row for row in trials.rows if row.began][-BARS:]
    figure = go.Figure()
    if idle := [row for row in rows if row.ended and row.began]:
        spans = [(row, row.began, row.ended) for row in idle]
        _add_bars(figure, trials, spans, "starting, waiting or interrupted", IDLE, 0.25)
    for state in COLOURS:
        if mine := [(row, *span) for row in rows if row.state == state for span in row.worked]:
            _add_bars(figure, trials, mine, STATES[state], COLOURS[state], 0.75)
    figure.update_layout(yaxis_title="trial", barmode="overlay")
    figure.update_xaxes(type="date")
    figure.update_yaxes(autorange="reversed")
    return finish(figure, min(900, 200 + 16 * len(trials.rows)), legend=ABOVE)


def _add_bars(
    figure: "Figure", trials: SweepTrials, spans: list[tuple[TrialRow, Any, Any]], name: str, colour: str, width: float
) -> None:
    figure.add_bar(
        orientation="h", name=name, marker={"color": colour, "line": {"width": 0}}, width=width,
        y=[row.number for row, _, _ in spans], base=[begin.isoformat() for _, begin, _ in spans],
        x=[1000 * (end - begin).total_seconds() for _, begin, end in spans],
        text=[_bar(trials, row) for row, _, _ in spans], textposition="none", hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _bar(trials: SweepTrials, row: TrialRow) -> str:
    return f"trial {row.number}, {len(row.epochs)} epochs: {trials.describe(row)}" + (f"<br>{row.reason}" if row.reason else "")


def cells(trials: SweepTrials, index: int, pair: tuple[str, str]) -> "Figure | None":
    """The best finished trial at every pair of values, as a table with colours; None where the values are too many."""
    import plotly.graph_objects as go

    table = best_cells_of(trials, index, pair)
    if table is None:
        return None
    xs, ys, best, number = table
    objective = trials.objectives[index]
    figure = go.Figure(
        go.Heatmap(
            x=[str(x) for x in xs], y=[str(y) for y in ys], z=best, colorscale="Blues", reversescale=not objective.maximize,
            text=[[f"{shown(v)}<br>{n} trials" if v is not None and n > 1 else shown(v) if v is not None else ""
                   for v, n in zip(values, numbers, strict=True)] for values, numbers in zip(best, number, strict=True)],
            texttemplate="%{text}", hoverinfo="skip", xgap=2, ygap=2,
            colorbar={"title": {"text": objective.label, "side": "right"}},
        )
    )  # fmt: skip
    figure.update_xaxes(title=trials.names[pair[0]], type="category", showgrid=False)
    figure.update_yaxes(title=trials.names[pair[1]], type="category", showgrid=False)
    return finish(figure, 160 + 60 * len(ys))


def best_cells_of(
    trials: SweepTrials, index: int, pair: tuple[str, str]
) -> tuple[list[Any], list[Any], list[list[float | None]], list[list[int]]] | None:
    """Values of both fields, and for each pair of them the best objective and the number of finished trials."""
    found: dict[tuple[Any, Any], list[float]] = {}
    for row in trials.complete:
        if row.values and all(path in row.point for path in pair):
            found.setdefault((row.point[pair[0]], row.point[pair[1]]), []).append(row.values[index])
    xs, ys = (sorted({key[i] for key in found}) for i in (0, 1))
    if len(xs) > 12 or len(ys) > 12:
        return None
    pick = max if trials.objectives[index].maximize else min
    best = [[pick(found[x, y]) if (x, y) in found else None for x in xs] for y in ys]
    return xs, ys, best, [[len(found.get((x, y), ())) for x in xs] for y in ys]


def rates(measured: list[dict[str, Any]]) -> "Figure":
    """Firing rates by layer (rows) and timestep (columns), a panel for each trial."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = rate_layers(measured)
    widths = [len(r["layers"][0]["by_timestep"]) for r in measured]
    titles = rate_titles(measured)
    figure = make_subplots(
        1, len(measured), shared_yaxes=True, subplot_titles=[title.replace("\n", "<br>") for title in titles],
        column_widths=[max(w, max(widths) / 3) for w in widths], horizontal_spacing=0.02,
    )  # fmt: skip
    for column, r in enumerate(measured, 1):
        by_layer = {layer["layer"]: layer["by_timestep"] for layer in r["layers"]}
        steps = [str(t + 1) for t in range(widths[column - 1])]
        z = [by_layer.get(name, [None] * len(steps)) for name in names]
        written = [["" if v is None else f"{v:.2f}" for v in line] for line in z] if sum(widths) <= 24 else None
        figure.add_trace(
            go.Heatmap(
                z=z, x=steps, y=names, coloraxis="coloraxis", text=written, texttemplate="%{text}" if written else None,
                hovertemplate="%{y}, timestep %{x}: %{z:.4f}<extra></extra>", xgap=1, ygap=1,
            ),
            1, column,
        )  # fmt: skip
        figure.update_xaxes(title_text="timestep", type="category", showgrid=False, row=1, col=column)
        figure.update_yaxes(autorange="reversed", showgrid=False, ticksuffix=" ", row=1, col=column)
    figure.update_annotations(font_size=11)
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "colorbar": {"title": "rate"}})
    top = 44 + 14 * max(title.count("\n") + 1 for title in titles)
    finish(figure, 100 + top + 20 * len(names))
    return figure.update_layout(margin={"l": 110, "t": top})


def rate_titles(measured: list[dict[str, Any]]) -> list[str]:
    """What stands over each panel, in lines that do not reach the next one."""
    width = 26 if len(measured) < 4 else 20
    return ["\n".join([f"trial {r['number']}", *textwrap.wrap(r["point"], width)]) for r in measured]


def rate_layers(measured: list[dict[str, Any]]) -> list[str]:
    """Names of all layers in the order of the forward pass; the deepest trial has them all, but for other attentions."""
    names = [layer["layer"] for layer in max(measured, key=lambda r: len(r["layers"]))["layers"]]
    others = dict.fromkeys(layer["layer"] for r in measured for layer in r["layers"])
    return names + [name for name in others if name not in names]


def best_numbers(trials: SweepTrials, limit: int) -> set[int]:
    """Numbers of the best finished trials by the first objective, and of the front."""
    sign = -1 if trials.objectives[0].maximize else 1
    ranked = sorted((row for row in trials.complete if row.values), key=lambda row: sign * row.values[0])  # type: ignore[index]
    return set(list(dict.fromkeys(row.number for row in [*trials.front, *ranked]))[:limit])


def newest(trials: SweepTrials, limit: int) -> set[int]:
    """Numbers of the newest trials, with the best and the base config among them."""
    numbers = {row.number for row in trials.rows[-limit:]} | {row.number for row in trials.front[:limit]}
    return numbers | ({trials.base.number} if trials.base else set())


def curve_numbers(trials: SweepTrials) -> set[int]:
    """Numbers of the trials whose learning curves are drawn: the best third, and the newest of the others."""
    curves = [row.number for row in trials.rows if row.intermediate]
    best = best_numbers(trials, CURVES // 3)
    others = [number for number in curves if number not in best]
    return best | set(others[-(CURVES - len(best)) :])
