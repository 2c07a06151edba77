"""KL(infer ‖ train) over steps: the estimators k1 and k3 on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES
from tailwatch_dashboards.types import Baseline, EventMark, Limits, Theme

COLUMNS = ("kl_k1", "kl_k3")


def kl(
    table: pl.DataFrame, *, baseline: Baseline | None, limits: Limits, events: Sequence[EventMark], theme: Theme
) -> go.Figure:
    """k3 as a line, |k1| as a thin one with hollow marks where k1 is negative (it is an unbiased estimate and
    may be), the lines of the run's class, and the baseline of k3. A step whose estimate is exactly 0 has no
    place on a logarithmic axis and is a gap.

    Args:
        table: column `step` and the columns of COLUMNS it has, null where missing.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    steps = table["step"].to_list()
    k1, k3 = axes.column(table, "kl_k1"), axes.column(table, "kl_k3")
    k1_size = [abs(value) if value else None for value in k1]
    k3_drawn = [value if value is not None and value > 0 else None for value in k3]
    present = [value for value in (*k1_size, *k3_drawn) if value is not None]
    if not present:
        axes.note(figure, "No KL estimate yet", theme=theme)
        return figure
    shown = [value for value in (*present, limits.k3_watch) if value is not None]
    figure.update_yaxes(title_text="nats per token (log scale)", **axes.log_axis(min(shown), max(shown)))
    lone = len(steps) == 1
    figure.add_trace(_curve(steps, k3_drawn, k3, name="k3", colour=palette.first, width=2, lone=lone))
    figure.add_trace(_curve(steps, k1_size, k1, name="k1", colour=palette.second, width=1, lone=lone))
    _negative_marks(figure, steps, k1, colour=palette.second)
    axes.baseline_band(figure, baseline, metric="kl_k3", theme=theme)
    axes.limit_line(figure, limits.k3_watch, text=f"watch, {limits.label}", colour=palette.watch)
    if max(present) > (limits.k3_watch or float("inf")):
        axes.limit_line(figure, limits.k3_unhealthy, text="unhealthy", colour=palette.unhealthy)
    axes.step_axis(figure, table)
    axes.event_marks(figure, events, theme=theme)
    return figure


def _curve(
    steps: list[int], drawn: axes.Column, values: axes.Column, *, name: str, colour: str, width: int, lone: bool
) -> go.Scatter:
    return go.Scatter(
        x=steps,
        y=drawn,
        customdata=[fmt.number(value) for value in values],
        mode="lines+markers" if lone else "lines",
        name=name,
        line={"color": colour, "width": width},
        marker={"size": 6, "color": colour},
        hovertemplate=f"{name}  %{{customdata}}<extra></extra>",
        connectgaps=False,
    )


def _negative_marks(figure: go.Figure, steps: list[int], k1: axes.Column, *, colour: str) -> None:
    """Hollow circles at |k1| where k1 < 0."""
    negative = [(step, -value) for step, value in zip(steps, k1, strict=True) if value is not None and value < 0]
    if negative:
        x, y = zip(*negative, strict=True)
        marker = {"symbol": "circle-open", "size": 5, "color": colour, "line": {"width": 1}}
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="markers", marker=marker, name="k1 < 0, drawn at |k1|", hoverinfo="skip")
        )
