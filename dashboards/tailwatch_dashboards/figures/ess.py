"""Effective sample sizes over steps: of tokens, of whole sequences, and what length alone would leave of these."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES
from tailwatch_dashboards.types import AlertCard, EventMark, Theme

COLUMNS = ("ess_token", "ess_sequence", "ess_sequence_expected")

_NAMES = {
    "ess_token": "tokens",
    "ess_sequence": "sequences",
    "ess_sequence_expected": "sequences, as length alone explains",
}


def ess(
    table: pl.DataFrame,
    *,
    steps: pl.DataFrame,
    alerts: Sequence[AlertCard] = (),
    events: Sequence[EventMark] = (),
    theme: Theme,
) -> go.Figure:
    """Shares in (0, 1] on a linear axis from 0. A sequence curve under its dashed one is worse than its length.

    Args:
        table: column `step` and those of COLUMNS it has, null where missing.
        steps: the charts' own table, whose steps the axis spans.
        alerts: marked by where they fired.
        events: marked on the axis.
        theme: light or dark.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    values = {name: axes.column(table, name) for name in COLUMNS}
    if not any(value is not None for column in values.values() for value in column):
        axes.note(figure, "No effective sample size yet", theme=theme)
        return figure
    colours = {"ess_token": palette.first, "ess_sequence": palette.second, "ess_sequence_expected": palette.second}
    for name, title in _NAMES.items():
        expected = name == "ess_sequence_expected"
        figure.add_trace(
            go.Scatter(
                x=table["step"].to_list(),
                y=values[name],
                customdata=[fmt.number(value) for value in values[name]],
                mode="lines+markers" if table.height == 1 else "lines",
                name=title,
                line={"color": colours[name], "width": 1.2 if expected else 2} | ({"dash": "dash"} if expected else {}),
                marker={"size": 6, "color": colours[name]},
                hovertemplate=f"{title}  %{{customdata}}<extra></extra>",
                connectgaps=False,
            )
        )
    figure.update_yaxes(title_text="share of the batch", range=[0, 1.03], tickvals=[0, 0.25, 0.5, 0.75, 1])
    axes.step_axis(figure, steps)
    axes.event_marks(figure, events, theme=theme)
    axes.alert_marks(figure, alerts, (), theme=theme, last_step=None, named=False)
    return figure
