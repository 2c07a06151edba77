"""The course of training beside the mismatch: reward, entropy and gradient norm, one above the other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.template import PALETTES
from tailwatch_dashboards.types import AlertCard, EventMark, Theme

KINDS = {
    "reward": ("reward", "reward_mean", "rewards/mean", "critic/rewards/mean", "train/reward"),
    "entropy": ("entropy", "entropy_train", "actor/entropy", "train/entropy"),
    "gradient norm": ("grad_norm", "actor/grad_norm", "train/grad_norm", "optim/grad_norm"),
}
"""What is looked for, and the names trainers send it by; the first that is there is drawn."""

COLUMNS = tuple(name for names in KINDS.values() for name in names)

_GAP = 0.07


def course(
    table: pl.DataFrame,
    *,
    steps: pl.DataFrame,
    alerts: Sequence[AlertCard] = (),
    events: Sequence[EventMark] = (),
    theme: Theme,
) -> go.Figure:
    """Up to three curves with an axis each.

    Args:
        table: column `step` and those of COLUMNS it has, null where missing.
        steps: the charts' own table, whose steps the axis spans.
        alerts: marked by where they fired.
        events: marked on the axis.
        theme: light or dark.
    """
    figure, palette = axes.new_figure(theme), PALETTES[theme]
    found = present(table)
    if not found:
        axes.note(figure, "The trainer sends no reward, entropy or gradient norm", theme=theme)
        return figure
    colours = (palette.third, palette.first, palette.second)
    height = (1 - _GAP * (len(found) - 1)) / len(found)
    for index, (kind, name) in enumerate(found.items()):
        axis = "" if index == 0 else str(index + 1)
        values = axes.column(table, name)
        rows = [(step, value) for step, value in zip(table["step"], values, strict=True) if value is not None]
        top = 1 - index * (height + _GAP)
        figure.update_layout(
            {
                f"yaxis{axis}": {
                    "domain": [max(0.0, top - height), top],
                    "anchor": "x",
                    "title": {"text": kind},
                    "nticks": 4,
                    "rangemode": "tozero" if min(value for _, value in rows) >= 0 else "normal",
                }
            }
        )
        figure.add_trace(
            go.Scatter(
                x=table["step"].to_list(),
                y=values,
                yaxis=f"y{axis}",
                customdata=[fmt.number(value) for value in values],
                mode="lines" if _dense(rows, table.height) else "markers",
                connectgaps=False,
                name=name,
                line={"color": colours[index], "width": 1.5},
                marker={"size": 4, "color": colours[index]},
                hovertemplate=f"{kind}  %{{customdata}}<extra></extra>",
            )
        )
    figure.update_layout(xaxis={"anchor": "y" + ("" if len(found) == 1 else str(len(found)))})
    axes.step_axis(figure, steps)
    axes.event_marks(figure, events, theme=theme)
    axes.alert_marks(figure, alerts, (), theme=theme, last_step=None, named=False)
    return figure


def present(table: pl.DataFrame) -> dict[str, str]:
    """Kind to the column that has it; kinds without any value are left out."""
    made = {}
    for kind, names in KINDS.items():
        name = next((name for name in names if any(value is not None for value in axes.column(table, name))), None)
        if name is not None:
            made[kind] = name
    return made


def _dense(rows: Sequence[object], height: int) -> bool:
    """A curve with a value at most steps is a line; one sent now and then is points."""
    return len(rows) > 1 and len(rows) >= 0.5 * height
