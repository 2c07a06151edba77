"""Mismatch against staleness: k3 at equal policy lag over the steps, and which lag the mismatch comes from.

Between weight syncs every statistic of d rises with the lag, so a curve over steps saw-tooths and hides what matters:
whether k3 grows at the same lag.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.types import AlertCard, EventMark, Theme

COLOURS: dict[Theme, dict[str, str]] = {
    "light": {
        "0": "#00224e", "1": "#213d6b", "2": "#45567b", "3-4": "#5f6c7e", "5-8": "#8b8456",
        "9-16": "#a4912f", "17+": "#b37a00", "unknown": "#9aa4b0", "negative": "#D55E00",
    },
    "dark": {
        "0": "#6fa3e0", "1": "#7f9fcb", "2": "#8e9fb8", "3-4": "#a0a29a", "5-8": "#bdb07a",
        "9-16": "#dcc45c", "17+": "#fee838", "unknown": "#6b7480", "negative": "#f0783c",
    },
}  # fmt: skip
"""Cividis by lag, kept at a contrast of 3:1 on each theme's background."""

LAGS = tuple(COLOURS["light"])
"""Buckets of policy lag in versions, in order."""


def staleness(
    table: pl.DataFrame,
    *,
    steps: pl.DataFrame,
    alerts: Sequence[AlertCard] = (),
    events: Sequence[EventMark] = (),
    theme: Theme,
) -> go.Figure:
    """Upper part: k3 of the tokens of each lag, log axis, a curve per lag. Lower part: share of each lag in the step's
    k3, stacked to 1.

    Args:
        table: LAG_SCHEMA.
        steps: the charts' own table, whose steps the axis spans.
        alerts: marked by where they fired.
        events: marked on the axis.
        theme: light or dark.
    """
    figure = axes.new_figure(theme)
    drawn = table.filter(pl.col("kl_k3").is_not_null())
    known = drawn.filter(~pl.col("lag").is_in(["unknown", "negative"]))
    if known.height == 0:
        why = "No steps yet" if table.height == 0 else "No weight versions were sent: lag is unknown"
        axes.note(figure, why, theme=theme)
        return figure
    figure.update_layout(
        yaxis={"domain": [0.36, 1]}, yaxis2={"domain": [0, 0.24], "anchor": "x"}, xaxis={"anchor": "y2"}
    )
    for lag in LAGS:
        rows = drawn.filter(pl.col("lag") == lag)
        if rows.height:
            figure.add_trace(_curve(rows, lag, colour=COLOURS[theme][lag], gap=_gap(drawn)))
    parts = _parts(drawn)
    width = _gap(drawn)
    for lag in LAGS:
        rows = parts.filter(pl.col("lag") == lag)
        if rows.height:
            figure.add_trace(_bar(rows, lag, colour=COLOURS[theme][lag], width=width))
    positive = [value for value in axes.column(drawn, "kl_k3") if value is not None and value > 0]
    if positive:
        figure.update_layout(yaxis={"title": {"text": "k3, nats"}, **axes.log_axis(min(positive), max(positive))})
    figure.update_layout(
        barmode="stack",
        bargap=0,
        yaxis2={"title": {"text": "share of k3"}, "range": [0, 1], "tickvals": [0, 1], "ticktext": ["0", "1"]},
    )
    axes.step_axis(figure, steps)
    axes.event_marks(figure, events, theme=theme)
    axes.alert_marks(figure, alerts, (), theme=theme, last_step=None, named=False)
    return figure


def _gap(table: pl.DataFrame) -> float:
    """The usual distance between the steps of the table."""
    gaps = table["step"].unique().sort().diff().drop_nulls()
    return float(gaps.cast(pl.Float64).quantile(0.5) or 1.0) if len(gaps) else 1.0


def _curve(rows: pl.DataFrame, lag: str, *, colour: str, gap: float) -> go.Scatter:
    """k3 at one lag: points, joined where the lag is there at neighbouring steps."""
    steps, values = rows["step"].to_list(), axes.column(rows, "kl_k3")
    x: list[int | None] = []
    y: axes.Column = []
    text: list[str] = []
    for index, step in enumerate(steps):
        if index and step - steps[index - 1] > 1.5 * gap:
            x.append(None)
            y.append(None)
            text.append("")
        value = values[index]
        x.append(step)
        y.append(value if value else None)
        text.append(fmt.number(value))
    return go.Scatter(
        x=x,
        y=y,
        customdata=text,
        mode="lines+markers",
        name=f"lag {lag}",
        line={"color": colour, "width": 1.5},
        marker={"size": 4, "color": colour},
        hovertemplate=f"k3 at lag {lag}  %{{customdata}}<extra></extra>",
        connectgaps=False,
    )


def _parts(table: pl.DataFrame) -> pl.DataFrame:
    """Share of each lag in the k3 of its step, and in its tokens."""
    weighted = table.with_columns(sum=pl.col("kl_k3") * pl.col("tokens"))
    whole = weighted.with_columns(
        all=pl.col("sum").sum().over("step"), tokens_share=pl.col("tokens") / pl.col("tokens").sum().over("step")
    )
    return whole.filter(pl.col("all") > 0).with_columns(share=pl.col("sum") / pl.col("all"))


def _bar(rows: pl.DataFrame, lag: str, *, colour: str, width: float) -> go.Bar:
    text = [
        f"{fmt.number(100 * share)} % of k3 from {fmt.number(100 * tokens)} % of the tokens"
        for share, tokens in rows.select("share", "tokens_share").iter_rows()
    ]
    return go.Bar(
        x=rows["step"].to_list(),
        y=axes.column(rows, "share"),
        yaxis="y2",
        width=width,
        marker={"color": colour, "line": {"width": 0}},
        name=f"lag {lag}",
        customdata=text,
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
