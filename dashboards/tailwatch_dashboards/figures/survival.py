"""The survival plot: the share of tokens whose ratio is beyond x, both tails on log-log, with the fitted
Pareto tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES, fade
from tailwatch_dashboards.types import Tail, TailFit, Theme

NAMES: dict[Tail, str] = {"upper": "P(w > x)", "lower": "P(1/w > x)"}
"""w = pi/mu. Upper: the trainer likes the token more than the engine did; lower: less."""

FIT_POINTS = 40

_RATIO_TITLE = "ratio x (log scale)"


def survival(table: pl.DataFrame, *, fits: Sequence[TailFit], tokens: int | None = None, theme: Theme) -> go.Figure:
    """P(ratio > x) against x, log-log; fitted generalized Pareto tails dashed, with k-hat in the legend.

    Args:
        table: SURVIVAL_SCHEMA.
        fits: at most one per tail.
        tokens: of the step; the plot ends at one token's share.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    drawn = table.filter((pl.col("share") > 0) & (pl.col("ratio") >= 1))
    if drawn.height == 0:
        axes.note(figure, "No token has a ratio other than 1 at this step", theme=theme)
        return figure
    drawn = drawn.with_columns(excess=pl.col("ratio") - 1)
    tiny = float(drawn.select(pl.col("excess").max()).item()) < axes.TINY
    drawn = drawn.filter(pl.col("excess") > 0) if tiny else drawn
    x_name = "excess" if tiny else "ratio"
    by_tail = {fit.tail: fit for fit in fits}
    colours: dict[Tail, str] = {"upper": palette.first, "lower": palette.second}
    for tail, name in NAMES.items():
        rows = drawn.filter(pl.col("tail") == tail).sort("ratio")
        figure.add_trace(
            go.Scatter(
                x=axes.column(rows, x_name),
                y=axes.column(rows, "share"),
                customdata=[
                    f"{fmt.number(share)} beyond {f'1 + {fmt.number(x)}' if tiny else fmt.times(x)}"
                    for x, share in rows.select(x_name, "share").iter_rows()
                ],
                mode="lines" if rows.height > 1 else "markers",
                line={"color": colours[tail], "width": 2},
                marker={"color": colours[tail]},
                name=name,
                hovertemplate=f"{name}  %{{customdata}}<extra></extra>",
            )
        )
        if tail in by_tail and rows.height:
            _fit_line(figure, by_tail[tail], end=float(rows["ratio"].to_list()[-1]), tiny=tiny, colour=colours[tail])
    furthest = max(2.0, float(drawn.select(pl.col("ratio").max()).item()))
    lowest = min(float(drawn.select(pl.col("share").min()).item()), 1 / tokens if tokens else 1.0, 0.1)
    x_axis = _excess_axis(drawn["excess"]) if tiny else _ratio_axis(furthest)
    figure.update_xaxes(unifiedhovertitle={"text": " "}, showgrid=True, **x_axis)
    figure.update_yaxes(title_text="share of tokens beyond x (log scale)", **axes.log_axis(lowest, 1.0))
    if tiny:
        axes.tiny_note(figure, float(drawn.select(pl.col("excess").max()).item()), theme=theme)
    else:
        _two_fold(figure, palette.watch)
    figure.update_layout(hovermode="x unified")
    return figure


def _fit_line(figure: go.Figure, fit: TailFit, *, end: float, tiny: bool, colour: str) -> None:
    """The fitted tail from its threshold to a little beyond the last ratio seen; drawn over x - 1 where `tiny`."""
    start = max(fit.threshold, 1.0)
    end = 1 + (end - 1) * 1.5 if tiny else max(end, fit.threshold) * 1.5
    parts = [index / (FIT_POINTS - 1) for index in range(FIT_POINTS)]
    xs = [start + (end - start) * part if tiny else start * (end / start) ** part for part in parts]
    ys = [pareto_share(fit, x) for x in xs]
    figure.add_trace(
        go.Scatter(
            x=[x - 1 for x in xs] if tiny else xs,
            y=ys,
            mode="lines",
            line={"color": fade(colour, 0.8), "width": 1.5, "dash": "dash"},
            name=f"Pareto fit, k̂ = {fmt.number(fit.k, digits=2)}",
            hoverinfo="skip",
        )
    )


def pareto_share(fit: TailFit, x: float) -> float | None:
    """Share of tokens beyond x that a fit expects; None past the end of a bounded tail (k < 0)."""
    excess = (x - fit.threshold) / fit.sigma
    if abs(fit.k) < 1e-9:
        return fit.share * math.exp(-excess)
    inside = 1 + fit.k * excess
    return fit.share * inside ** (-1 / fit.k) if inside > 0 else None


def _ratio_axis(furthest: float) -> dict[str, object]:
    """A log axis of ratios from 1: 1, 2, 5, 10 within two decades, powers of ten beyond."""
    if furthest > 100:
        range_ = [0, math.log10(furthest) + 0.1]
        return {"title_text": _RATIO_TITLE, **axes.log_axis(1.0, furthest), "range": range_}
    ticks = [tick for tick in (1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100) if tick <= furthest * 1.1]
    ticks = [tick for tick in ticks if furthest <= 5 or tick not in {1.2, 1.5, 3}]
    return {
        "title_text": _RATIO_TITLE,
        "type": "log",
        "range": [0, math.log10(furthest) + 0.02],
        "tickvals": ticks,
        "ticktext": [f"×{tick:g}" for tick in ticks],
    }


def _excess_axis(excess: pl.Series) -> dict[str, object]:
    """A log axis of how far ratios are above 1, for a run whose ratios all are 1 but for rounding."""
    low, high = float(excess.quantile(0.02) or 1e-12), float(excess.to_frame().select(pl.all().max()).item())
    return {"title_text": "ratio x minus 1 (log scale)", **axes.log_axis(max(low, high * 1e-4), high)}


def _two_fold(figure: go.Figure, colour: str) -> None:
    """A thin mark at x = 2, where outside_2x is counted."""
    figure.add_shape(
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": 2,
            "x1": 2,
            "y0": 0,
            "y1": 1,
            "line": {"color": colour, "width": 1, "dash": "dot"},
            "layer": "between",
        }
    )
    figure.add_annotation(
        x=math.log10(2),
        xref="x",
        xanchor="left",
        y=1,
        yref="paper",
        yanchor="top",
        text=" ×2",
        showarrow=False,
        font={"size": 10, "color": colour},
    )
