"""How every figure looks, in one place: one Plotly template per theme, and the palette behind it (Okabe-Ito).

Two things are special. Text carries no HTML tags other than <br>: Plotly would write inline styles for them,
which the content security policy refuses. And marks keep a contrast of 3:1 on their background, so the light
theme draws with the darker half of Okabe-Ito and the dark theme with the lighter half.
"""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from tailwatch_dashboards.types import Theme

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Colours of one theme, as hex."""

    ink: str
    muted: str
    grid: str
    zero: str
    surface: str
    first: str
    """The main curve; the upper tail."""
    second: str
    """The other curve; the lower tail."""
    third: str
    baseline: str
    watch: str
    unhealthy: str
    event: str


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        ink="#1b1f24",
        muted="#59636e",
        grid="#eceef1",
        zero="#c3c9d0",
        surface="#ffffff",
        first="#0072B2",
        second="#D55E00",
        third="#009E73",
        baseline="#7a8490",
        watch="#b87a00",
        unhealthy="#D55E00",
        event="#a05b84",
    ),
    "dark": Palette(
        ink="#e6e9ed",
        muted="#9aa4b0",
        grid="#252a31",
        zero="#4a525c",
        surface="#15181d",
        first="#56B4E9",
        second="#E69F00",
        third="#2bc79a",
        baseline="#8b96a3",
        watch="#E69F00",
        unhealthy="#f0783c",
        event="#CC79A7",
    ),
}


def template(theme: Theme) -> go.layout.Template:
    """The Plotly template of a theme: fonts, grid, margins, hover label, colourway."""
    palette = PALETTES[theme]
    axis = {
        "gridcolor": palette.grid,
        "zerolinecolor": palette.zero,
        "zerolinewidth": 1,
        "linecolor": palette.zero,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": palette.zero,
        "tickfont": {"color": palette.muted, "size": 11},
        "title": {"font": {"color": palette.muted, "size": 12}, "standoff": 8},
        "automargin": False,
        "exponentformat": "none",
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": palette.ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [palette.first, palette.second, palette.third, palette.event, palette.baseline],
            "margin": {"l": 64, "r": 16, "t": 8, "b": 44},
            "xaxis": {**axis, "showgrid": False, "showline": True},
            "yaxis": {**axis, "showline": False},
            "hovermode": "x unified",
            "hoverlabel": {
                "bgcolor": palette.surface,
                "bordercolor": palette.zero,
                "font": {"family": FONT, "size": 12, "color": palette.ink},
            },
            "showlegend": False,
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11, "color": palette.muted},
                "bgcolor": "rgba(0,0,0,0)",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": palette.muted, "activecolor": palette.ink},
            "dragmode": "zoom",
        }
    )


def fade(colour: str, alpha: float) -> str:
    """A hex colour made translucent, as rgba()."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"
