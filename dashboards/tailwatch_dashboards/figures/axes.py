"""What the figures share: gaps, bands, the step axis with its event marks, logarithmic and arcsinh axes with
honest labels.

Plotly fills between two curves across missing points; a band here is a set of closed polygons instead, one
per unbroken stretch, so that a gap stays a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.template import PALETTES, Palette, fade, template
from tailwatch_dashboards.types import AlertCard, Baseline, EventMark, FindingMark, Theme

Column = list[float | None]

LINEAR_REACH = 0.1
"""Nats: the arcsinh axis is linear well inside ±0.1 and logarithmic well outside."""

TINY = 0.02
"""Nats: where all of a chart is below it, its axis follows the data."""

MAX_ALERTS = 5
"""Alerts marked in one figure, the newest."""

_ARCSINH_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 1e4, 1e5, 1e6)

MAX_MARKS = 120
"""Event marks drawn in one figure; more would be a grey wall."""

RUG_KINDS = frozenset({"weight_sync", "checkpoint"})
"""Events that come often: a short tick on the axis instead of a line through the plot."""

SILENT_KINDS = frozenset(
    {"step_closed", "step_revised", "run_created", "run_updated", "heartbeat", "scalars", "finished"}
)
"""Events that are no marks: they happen at every step, or beside the steps. Alerts have marks of their own."""


def column(table: pl.DataFrame, name: str) -> Column:
    """A metric as a list for Plotly: None where missing, six significant digits; all None where the table
    lacks it."""
    if name not in table.columns:
        return [None] * table.height
    values = table[name].cast(pl.Float64).fill_nan(None)
    rounded: Column = values.round_sig_figs(6).to_list()
    return rounded


def new_figure(theme: Theme) -> go.Figure:
    """An empty figure in our template."""
    figure = go.Figure()
    figure.update_layout(template=template(theme), uirevision="keep")
    return figure


def stretches(*columns: Column) -> Iterator[tuple[int, int]]:
    """Half-open index ranges over which no column is missing."""
    start: int | None = None
    length = len(columns[0])
    for index in range(length + 1):
        whole = index < length and all(values[index] is not None for values in columns)
        if whole and start is None:
            start = index
        elif not whole and start is not None:
            yield start, index
            start = None


def band(
    x: Sequence[float],
    low: Column,
    high: Column,
    *,
    name: str,
    colour: str,
    group: str | None = None,
    show: bool = True,
) -> go.Scatter:
    """The area between two curves as closed polygons, one per unbroken stretch; a lone point becomes a
    hairline."""
    outline_x: list[float | None] = []
    outline_y: Column = []
    for start, end in stretches(low, high):
        if outline_x:
            outline_x.append(None)
            outline_y.append(None)
        outline_x += [*x[start:end], *reversed(x[start:end])]
        outline_y += [*high[start:end], *reversed(low[start:end])]
    return go.Scatter(
        x=outline_x,
        y=outline_y,
        fill="toself",
        fillcolor=colour,
        line={"width": 0},
        mode="lines",
        name=name,
        hoverinfo="skip",
        legendgroup=group,
        showlegend=show,
    )


def step_axis(figure: go.Figure, table: pl.DataFrame) -> None:
    """The shared step axis: whole steps, the same range in every chart, no padding. The page keeps the zoom, along this
    axis only, so nothing is left to Plotly's own memory of what the visitor did."""
    steps = table["step"].to_list()
    first, last = (steps[0], steps[-1]) if steps else (0, 1)
    if first == last:
        figure.update_xaxes(
            title_text="training step", range=[first - 1, last + 1], tickvals=[first], ticktext=[str(first)]
        )
        return
    figure.update_layout(uirevision=None)
    figure.update_yaxes(fixedrange=True)
    figure.update_xaxes(
        title_text="training step",
        range=[first, last],
        tickformat="d",
        hoverformat="d",
        unifiedhovertitle={"text": "step %{x}"},
    )
    # One tick per step at most: fractions of a step do not exist.
    if last - first <= 8:
        figure.update_xaxes(tickmode="linear", dtick=1)


def event_marks(figure: go.Figure, events: Iterable[EventMark], *, theme: Theme) -> None:
    """Thin marks at the steps of events: ticks on the axis for what comes often, a dashed line for what is
    rare."""
    palette = PALETTES[theme]
    marks: dict[tuple[int, bool], EventMark] = {}
    for event in events:
        if event.step is not None and event.kind not in SILENT_KINDS and not event.kind.startswith("alert_"):
            marks[event.step, event.kind in RUG_KINDS] = event
    shapes = [_mark(step, rug=rug, palette=palette) for step, rug in _thinned(sorted(marks))]
    figure.update_layout(shapes=[*figure.layout.shapes, *shapes])


def _thinned(marks: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """All rare marks up to the limit, and every n-th of the frequent ones."""
    rare = [mark for mark in marks if not mark[1]][-MAX_MARKS:]
    often = [mark for mark in marks if mark[1]]
    return [*rare, *often[:: max(1, math.ceil(len(often) / MAX_MARKS))]]


def _mark(step: int, *, rug: bool, palette: Palette) -> dict[str, Any]:
    line = {"color": palette.event, "width": 1, "dash": "solid" if rug else "dot"}
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": step,
        "x1": step,
        "y0": 0,
        "y1": 0.03 if rug else 1,
        "line": line,
        "layer": "between",
    }


def baseline_band(figure: go.Figure, baseline: Baseline | None, *, metric: str, theme: Theme) -> None:
    """The run's own past as a faint band through the whole plot: median ± MAD."""
    if baseline is None or metric not in baseline.median:
        return
    palette = PALETTES[theme]
    middle, spread = baseline.median[metric], baseline.mad[metric]
    low, high = middle - spread, middle + spread
    if figure.layout.yaxis.type == "log" and low <= 0:
        low = middle / 2
    if high <= 0 or low == high:
        return
    shape = {
        "type": "rect",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": low,
        "y1": high,
        "line": {"width": 0},
        "fillcolor": fade(palette.baseline, 0.16),
        "layer": "between",
    }
    figure.add_shape(shape)
    figure.add_trace(legend_swatch(f"baseline ± MAD ({baseline.label})", fade(palette.baseline, 0.35)))


def legend_swatch(name: str, colour: str) -> go.Scatter:
    """A legend entry for something drawn as a shape."""
    marker = {"symbol": "square", "size": 10, "color": colour}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, hoverinfo="skip")


def limit_line(figure: go.Figure, value: float | None, *, text: str, colour: str) -> None:
    """A dashed line at a limit, labelled at its right end."""
    if value is None:
        return
    figure.add_shape(
        {
            "type": "line",
            "xref": "paper",
            "yref": "y",
            "x0": 0,
            "x1": 1,
            "y0": value,
            "y1": value,
            "line": {"color": colour, "width": 1, "dash": "dash"},
            "layer": "above",
        }
    )
    logarithmic = figure.layout.yaxis.type == "log"
    y = math.log10(value) if logarithmic else value
    figure.add_annotation(
        x=1,
        xref="paper",
        xanchor="right",
        y=y,
        yref="y",
        yanchor="bottom",
        text=text,
        showarrow=False,
        font={"size": 10, "color": colour},
    )


def log_axis(low: float, high: float, *, most: int = 7) -> dict[str, Any]:
    """A base-10 axis, labelled at powers of ten in Unicode, and at 2 and 5 where it spans less than two decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / most))
    ticks = [(10.0**exponent, fmt.decade(exponent)) for exponent in range(first, last + 1, stride)]
    if math.log10(high / low) < 2:
        exponents = range(first, last + 1)
        values = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
        ticks = [(value, fmt.limit(value)) for value in values]
    return {
        "type": "log",
        "range": [math.log10(low) - 0.1, math.log10(high) + 0.15],
        "tickvals": [value for value, _ in ticks],
        "ticktext": [label for _, label in ticks],
    }


def reach_of(values: Iterable[float | None]) -> float:
    """Where the arcsinh axis turns from linear to logarithmic: ±0.1 nats, or for a run whose largest |d| is under 0.02
    a power of ten below it, so that rounding noise is seen. Its axis says how small it is."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if largest == 0.0 or largest >= TINY:
        return LINEAR_REACH
    return float(10.0 ** math.floor(math.log10(largest)))


def arcsinh(value: float | None, *, reach: float = LINEAR_REACH) -> float | None:
    """Position of a signed value on the arcsinh axis: value/reach near 0, ±ln(2|value|/reach) far out."""
    return None if value is None else round(math.asinh(value / reach), 6)


def arcsinh_axis(low: float, high: float, *, reach: float = LINEAR_REACH) -> dict[str, Any]:
    """An arcsinh axis of d from low <= 0 to high >= 0, with its title.

    With the usual reach it never zooms in closer than ±0.02 and is labelled in nats; with a smaller one it is labelled
    in a power of ten of a nat, said in the title. Labels stand at least a twelfth of the axis apart.
    """
    unit = reach if reach < LINEAR_REACH else 1.0
    least = 0.2 * reach
    low, high = min(low, -least), max(high, least)
    bottom, top = math.asinh(low / reach), math.asinh(high / reach)
    values = [0.0]
    furthest = max(-low, high) * 1.02
    for tick in sorted((tick * unit for tick in _ARCSINH_TICKS if tick * unit <= furthest), reverse=True):
        taken = [abs(math.asinh(value / reach)) for value in values]
        if all(abs(math.asinh(tick / reach) - other) >= (top - bottom) / 12 for other in taken):
            values += [tick, -tick]
    values.sort()
    pad = 0.04 * (top - bottom)
    return {
        "tickvals": [arcsinh(value, reach=reach) for value in values],
        "ticktext": [f"{'−' if value < 0 else '+' if value > 0 else ''}{abs(value) / unit:.3g}" for value in values],
        "range": [bottom - pad, top + pad],
        "zeroline": True,
        "title_text": f"d in {fmt.decade(round(math.log10(unit)))} nats" if unit < 1 else "d in nats (arcsinh scale)",
    }


def tiny_note(figure: go.Figure, reach: float, *, theme: Theme) -> None:
    """Says in the plot that its whole axis is tiny; nothing on the usual axis."""
    if reach >= LINEAR_REACH:
        return
    figure.add_annotation(
        text=f"a tiny scale: the outermost values are near {fmt.power(reach, digits=1)} nats",
        x=1,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="right",
        yanchor="top",
        showarrow=False,
        font={"size": 11, "color": PALETTES[theme].muted},
    )


def alert_marks(
    figure: go.Figure,
    alerts: Sequence[AlertCard],
    findings: Sequence[FindingMark],
    *,
    theme: Theme,
    last_step: int | None,
    named: bool = True,
) -> None:
    """Alerts as a line where they fired, with the rule's name where `named`, and a faint band to where they ended (or
    to `last_step`); steps that broke a rule as short ticks along the top edge."""
    palette = PALETTES[theme]
    colours = {"critical": palette.unhealthy, "warning": palette.watch}
    shapes: list[dict[str, Any]] = []
    low, high = figure.layout.xaxis.range or (0, 1)
    shown = [alert for alert in alerts if alert.fired_step is not None][:MAX_ALERTS]
    for row, alert in enumerate(sorted(shown, key=lambda one: one.fired_step or 0)):
        colour = colours.get(alert.severity, palette.watch)
        start = alert.fired_step
        end = alert.resolved_step if alert.resolved_step is not None else last_step
        if end is not None and start is not None and end > start:
            shapes.append(_upright(start, end, 0, 1, fill=fade(colour, 0.07)))
        shapes.append(_upright(start, start, 0, 1, line=colour))
        if not named or start is None:
            continue
        late = start > low + 0.75 * (high - low)  # a name that starts here would leave the plot
        figure.add_annotation(
            text=alert.rule,
            x=start,
            y=1,
            xref="x",
            yref="paper",
            xanchor="right" if late else "left",
            yanchor="top",
            yshift=-13 * (row % MAX_ALERTS) - 2,
            xshift=-2 if late else 2,
            showarrow=False,
            font={"size": 10, "color": colour},
        )
    worst = {mark.step: mark.severity for mark in sorted(findings, key=lambda one: one.severity == "critical")}
    for step, severity in sorted(worst.items())[-MAX_MARKS:]:
        shapes.append(_upright(step, step, 0.975, 1, line=colours.get(severity, palette.watch), width=2))
    figure.update_layout(shapes=[*figure.layout.shapes, *shapes])


def _upright(
    start: float | None,
    end: float | None,
    low: float,
    high: float,
    *,
    line: str | None = None,
    fill: str | None = None,
    width: float = 1,
) -> dict[str, Any]:
    """A band or a line along the height of the plot."""
    kind = "rect" if fill else "line"
    stroke = {"color": line, "width": width} if line else {"width": 0}
    place = {"xref": "x", "yref": "paper", "x0": start, "x1": end, "y0": low, "y1": high}
    return {"type": kind, **place, "line": stroke, "layer": "below" if fill else "between"} | (
        {"fillcolor": fill} if fill else {}
    )


def note(figure: go.Figure, text: str, *, theme: Theme) -> None:
    """A sentence in the middle of an empty plot: why there is nothing to see."""
    figure.add_annotation(
        text=text,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 13, "color": PALETTES[theme].muted},
    )
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
