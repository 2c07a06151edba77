"""The log-ratio fan: quantiles of d over steps, from P0.1 to P99.9."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES, fade
from tailwatch_dashboards.types import Baseline, EventMark, Theme

BANDS = (
    ("log_ratio_q001", "log_ratio_q999", "0.1–99.9 %", 0.13),
    ("log_ratio_q02", "log_ratio_q98", "2–98 %", 0.22),
    ("log_ratio_q25", "log_ratio_q75", "25–75 %", 0.38),
)
"""Outermost first: lower column, upper column, name, opacity."""

LINES = (
    ("log_ratio_q999", "P99.9"), ("log_ratio_q98", "P98"), ("log_ratio_q75", "P75"), ("log_ratio_q50", "median"),
    ("log_ratio_q25", "P25"), ("log_ratio_q02", "P2"), ("log_ratio_q001", "P0.1"),
)  # fmt: skip
"""Top to bottom, as the hover label lists them."""

COLUMNS = tuple(name for name, _ in LINES)


def quantile_fan(
    table: pl.DataFrame, *, baseline: Baseline | None, events: Sequence[EventMark], theme: Theme
) -> go.Figure:
    """Bands and median of d = log pi - log mu per step, in nats, on an arcsinh axis; the baseline's P0.1 and
    P99.9 as thin lines.

    Args:
        table: column `step` and the columns of COLUMNS it has, null where missing.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    values = {name: axes.column(table, name) for name in COLUMNS}
    present = [value for column in values.values() for value in column if value is not None]
    if not present:
        axes.note(figure, "No log-ratio quantiles yet", theme=theme)
        return figure
    steps = table["step"].to_list()
    reach = axes.reach_of(present)
    placed = {name: [axes.arcsinh(value, reach=reach) for value in column] for name, column in values.items()}
    for low, high, name, alpha in BANDS:
        figure.add_trace(axes.band(steps, placed[low], placed[high], name=name, colour=fade(palette.first, alpha)))
    lone = len(steps) == 1
    for name, title in LINES:
        strong = name == "log_ratio_q50"
        edge = name in {"log_ratio_q001", "log_ratio_q999"}
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=placed[name],
                customdata=[
                    fmt.number(value)
                    + (
                        f"  ({fmt.times(2.718281828459045**value)})"
                        if value is not None and 1e-3 < abs(value) < 50
                        else ""
                    )
                    for value in values[name]
                ],
                mode="lines+markers" if lone else "lines",
                name=title,
                line={"color": palette.first, "width": 2 if strong else 1 if edge else 0},
                marker={"size": 6, "color": palette.first},
                hovertemplate=f"{title}  %{{customdata}}<extra></extra>",
                showlegend=strong,
                connectgaps=False,
            )
        )
    figure.update_yaxes(**axes.arcsinh_axis(min(present), max(present), reach=reach))
    _baseline_lines(figure, baseline, reach=reach, theme=theme)
    axes.tiny_note(figure, reach, theme=theme)
    axes.step_axis(figure, table)
    axes.event_marks(figure, events, theme=theme)
    return figure


def _baseline_lines(figure: go.Figure, baseline: Baseline | None, *, reach: float, theme: Theme) -> None:
    """The baseline's own P0.1 and P99.9 as a faint band."""
    if baseline is None:
        return
    names = ("log_ratio_q001", "log_ratio_q999")
    low, high = (axes.arcsinh(baseline.median.get(name), reach=reach) for name in names)
    if low is None or high is None:
        return
    colour = PALETTES[theme].baseline
    line = {"color": fade(colour, 0.8), "width": 1, "dash": "dash"}
    for y in (low, high):
        figure.add_shape(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line, "layer": "below"}
        )
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line=line,
            name=f"baseline 0.1, 99.9 % ({baseline.label})",
            hoverinfo="skip",
        )
    )
