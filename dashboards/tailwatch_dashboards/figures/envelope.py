"""The P2-P50-P98 envelope of the log ratio by inference probability: the figure of the ALP paper."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES, fade
from tailwatch_dashboards.types import Theme

FEW_TOKENS = 20
"""A bin with fewer tokens has no P2 and P98 to speak of: it shows its median alone, as a hollow point."""


def envelope(
    bins: pl.DataFrame, *, baseline: pl.DataFrame | None, reach: tuple[float, float] | None = None, theme: Theme
) -> go.Figure:
    """Band P2..P98 and median of d over the probability bins, evenly spaced (their edges are the axis
    labels), the baseline's envelope under it.

    Args:
        bins: ENVELOPE_SCHEMA.
        baseline: the same of the run's first steady steps, or None.
        reach: (lowest, highest) d the axis must hold, so that playing through the steps does not rescale it.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    quantiles = _quantiles(bins)
    present = [value for column in quantiles.values() for value in column if value is not None]
    lone = [
        value if count < FEW_TOKENS else None
        for value, count in zip(axes.column(bins, "p50"), bins["tokens"], strict=True)
    ]
    present += [value for value in lone if value is not None]
    if not present:
        axes.note(figure, "No tokens in any probability bin at this step", theme=theme)
        return figure
    low, high = reach or (0.0, 0.0)
    linear = axes.reach_of([low, high] if reach else present)
    if baseline is not None and baseline.height == bins.height:
        present += _baseline_envelope(figure, baseline, linear=linear, theme=theme)
    positions = list(range(bins.height))
    placed = {name: [axes.arcsinh(value, reach=linear) for value in column] for name, column in quantiles.items()}
    figure.add_trace(axes.band(positions, placed["p2"], placed["p98"], name="P2–P98", colour=fade(palette.first, 0.22)))
    for name, title in (("p98", "P98"), ("p50", "median"), ("p2", "P2")):
        middle = name == "p50"
        figure.add_trace(
            go.Scatter(
                x=positions,
                y=placed[name],
                customdata=[fmt.number(value) for value in quantiles[name]],
                mode="lines+markers",
                line={"color": palette.first, "width": 2 if middle else 1},
                marker={"color": palette.first, "size": 5 if middle else 3},
                name=title,
                hovertemplate=f"{title}  %{{customdata}}<extra></extra>",
                showlegend=middle,
                connectgaps=False,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=positions,
            y=[axes.arcsinh(value, reach=linear) for value in lone],
            customdata=[fmt.number(value) for value in lone],
            mode="markers",
            marker={"symbol": "circle-open", "size": 6, "color": palette.first},
            name=f"median of fewer than {FEW_TOKENS} tokens",
            hovertemplate="median  %{customdata}<extra></extra>",
            showlegend=any(value is not None for value in lone),
        )
    )
    _hover_counts(figure, bins)
    figure.update_yaxes(**axes.arcsinh_axis(min(low, *present), max(high, *present), reach=linear))
    axes.tiny_note(figure, linear, theme=theme)
    _probability_axis(figure, bins)
    return figure


def _quantiles(bins: pl.DataFrame) -> dict[str, axes.Column]:
    """P2, P50 and P98 of the bins that hold enough tokens; None for the others."""
    thick = bins.with_columns(pl.when(pl.col("tokens") >= FEW_TOKENS).then(pl.col("p2", "p50", "p98")))
    return {name: axes.column(thick, name) for name in ("p2", "p50", "p98")}


def _baseline_envelope(figure: go.Figure, baseline: pl.DataFrame, *, linear: float, theme: Theme) -> list[float]:
    """The baseline's band in grey; what it drew, for the axis range."""
    colour = PALETTES[theme].baseline
    quantiles = _quantiles(baseline)
    low, high = quantiles["p2"], quantiles["p98"]
    placed = [[axes.arcsinh(value, reach=linear) for value in column] for column in (low, high)]
    positions = list(range(baseline.height))
    figure.add_trace(axes.band(positions, placed[0], placed[1], name="baseline P2–P98", colour=fade(colour, 0.2)))
    for values in placed:
        figure.add_trace(
            go.Scatter(
                x=positions,
                y=values,
                mode="lines",
                line={"color": fade(colour, 0.9), "width": 1, "dash": "dot"},
                hoverinfo="skip",
                showlegend=False,
                connectgaps=False,
            )
        )
    return [value for column in (low, high) for value in column if value is not None]


def _hover_counts(figure: go.Figure, bins: pl.DataFrame) -> None:
    """An unseen trace that adds the bin and its token count to the hover label."""
    text = [
        f"{fmt.count(count)} tokens in p {probability(low)} … {probability(high)}"
        for low, high, count in bins.select("lower", "upper", "tokens").iter_rows()
    ]
    figure.add_trace(
        go.Scatter(
            x=list(range(bins.height)),
            y=[0] * bins.height,
            customdata=text,
            mode="lines",
            line={"width": 0},
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )


def _probability_axis(figure: go.Figure, bins: pl.DataFrame) -> None:
    """Even bins with their edges as labels, each second one where they are many."""
    edges = [*bins["lower"].to_list(), bins["upper"][-1]]
    ticks = [index - 0.5 for index in range(len(edges))]
    keep = 2 if len(edges) > 12 else 1
    shown = [index for index in range(len(edges)) if index % keep == 0 or index == len(edges) - 1]
    figure.update_xaxes(
        title_text="token probability under the inference engine",
        tickvals=[ticks[index] for index in shown],
        ticktext=[probability(edges[index]) for index in shown],
        range=[-0.5, bins.height - 0.5],
        showgrid=True,
        tickangle=0,
        unifiedhovertitle={"text": " "},
    )


def probability(value: float) -> str:
    """A bin edge: 0.02, 1e-5 as 10⁻⁵, 0.9999."""
    if value in {0, 1}:
        return f"{value:g}"
    if value < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return ("" if mantissa == "1" else f"{mantissa}·") + "10" + fmt.superscript(int(exponent))
    return f"{value:g}"
