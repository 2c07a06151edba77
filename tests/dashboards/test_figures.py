"""Figures: what they hold, where they leave gaps, and that a browser can read them."""

from __future__ import annotations

import json
import math
from typing import Any

import plotly.graph_objects as go
import polars as pl
import pytest

from tailwatch_dashboards.baseline import baseline
from tailwatch_dashboards.figures import axes
from tailwatch_dashboards.figures.envelope import envelope, probability
from tailwatch_dashboards.figures.kl import kl
from tailwatch_dashboards.figures.quantiles import quantile_fan
from tailwatch_dashboards.figures.sparkline import HEIGHT, sparkline
from tailwatch_dashboards.figures.survival import pareto_share, survival
from tailwatch_dashboards.pages import figure_json
from tailwatch_dashboards.template import PALETTES, fade
from tailwatch_dashboards.types import EventMark, TailFit, Theme
from tailwatch_dashboards.verdict import limits_for
from tests.dashboards import fakes

FP8 = limits_for(precision="fp8", model_class="dense")


def trace(figure: go.Figure, name: str) -> Any:
    found = [each for each in figure.data if each.name == name]
    assert len(found) == 1, [each.name for each in figure.data]
    return found[0]


def texts(value: Any) -> list[str]:
    """Every string anywhere in a figure's JSON."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in inner for text in texts(each)]


def test_the_fan_draws_bands_with_gaps_where_a_step_has_no_value() -> None:
    table = fakes.series("healthy", 10).with_columns(
        pl.when(pl.col("step") == 4).then(None).otherwise(pl.col("^log_ratio.*$")).name.keep()
    )
    figure = quantile_fan(table, baseline=None, events=[], theme="light")
    band = trace(figure, "0.1–99.9 %")
    # Two closed outlines, of 4 and 5 steps there and back, and a gap between them.
    assert len(band.x) == 2 * 4 + 1 + 2 * 5
    assert band.y[8] is None
    assert trace(figure, "median").y[4] is None
    assert not trace(figure, "median").connectgaps


def test_the_fan_labels_its_arcsinh_axis_in_nats() -> None:
    table = fakes.series("collapsing", 60)
    figure = quantile_fan(table, baseline=None, events=[], theme="light")
    ticks = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert ticks["0"] == 0
    assert ticks["+1"] == pytest.approx(math.asinh(10), abs=1e-6)
    assert ticks["−1"] == -ticks["+1"]
    assert "arcsinh" in figure.layout.yaxis.title.text
    assert "(×" in trace(figure, "P99.9").customdata[0]


def test_rounding_noise_is_not_blown_up() -> None:
    figure = quantile_fan(fakes.series("control", 20), baseline=None, events=[], theme="light")
    low, high = figure.layout.yaxis.range
    assert high - low > 2 * math.asinh(0.019 / axes.LINEAR_REACH)


@pytest.mark.parametrize("reach", [1e-9, 0.03, 0.4, 1.5, 25.0, 5000.0])
def test_arcsinh_labels_never_crowd(reach: float) -> None:
    axis = axes.arcsinh_axis(-reach, reach / 3)
    low, high = axis["range"]
    steps = [b - a for a, b in zip(axis["tickvals"], axis["tickvals"][1:], strict=False)]
    assert min(steps) > (high - low) / 15
    assert len(axis["ticktext"]) == len(axis["tickvals"]) >= 3


def test_kl_marks_a_negative_k1_and_leaves_zero_out() -> None:
    table = pl.DataFrame({"step": [0, 1, 2, 3], "kl_k1": [1e-3, -2e-3, None, 0.0], "kl_k3": [1e-3, 2e-3, 0.0, 4e-3]})
    figure = kl(table, baseline=None, limits=FP8, events=[], theme="light")
    assert trace(figure, "k1").y == (1e-3, 2e-3, None, None)
    assert trace(figure, "k3").y == (1e-3, 2e-3, None, 4e-3)
    marks = trace(figure, "k1 < 0, drawn at |k1|")
    assert (marks.x, marks.y) == ((1,), (2e-3,))
    assert figure.layout.yaxis.type == "log"
    assert "nats per token" in figure.layout.yaxis.title.text


def test_kl_shows_the_line_of_the_class_and_the_baseline() -> None:
    table = fakes.series("healthy", 80)
    past = baseline(table, limits=FP8)
    assert past is not None
    figure = kl(table, baseline=past, limits=FP8, events=[], theme="dark")
    lines = [shape for shape in figure.layout.shapes if shape.type == "line"]
    bands = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [line.y0 for line in lines] == [0.01]
    assert bands[0].y0 < past.median["kl_k3"] < bands[0].y1
    assert trace(figure, "baseline ± MAD (steps 20–70)")


def test_events_are_ticks_or_lines_and_never_a_wall() -> None:
    table = fakes.series("healthy", 2000)
    syncs = [EventMark(kind="weight_sync", at=0.0, step=step) for step in range(2000)]
    rare = [EventMark(kind="resume", at=0.0, step=900), EventMark(kind="step_closed", at=0.0, step=5)]
    figure = quantile_fan(table, baseline=None, events=[*syncs, *rare], theme="light")
    marks = [shape for shape in figure.layout.shapes if shape.xref == "x"]
    assert len(marks) <= axes.MAX_MARKS + 1
    assert [shape.x0 for shape in marks if shape.y1 == 1] == [900]


def test_charts_over_steps_share_one_range() -> None:
    table = fakes.series("healthy", 33, start=7)
    fan = quantile_fan(table, baseline=None, events=[], theme="light")
    lines = kl(table, baseline=None, limits=FP8, events=[], theme="light")
    assert tuple(fan.layout.xaxis.range) == tuple(lines.layout.xaxis.range) == (7, 39)


def test_one_step_is_points_at_one_tick() -> None:
    figure = kl(fakes.series("healthy", 1), baseline=None, limits=FP8, events=[], theme="light")
    assert trace(figure, "k3").mode == "lines+markers"
    assert figure.layout.xaxis.ticktext == ("0",)


def test_the_envelope_draws_no_band_where_tokens_are_few() -> None:
    bins = fakes.envelope_table(0.2).with_columns(
        pl.when(pl.col("lower") == 0.01).then(3).otherwise(pl.col("tokens")).alias("tokens")
    )
    figure = envelope(bins, baseline=fakes.envelope_table(0.1), theme="light")
    index = bins["lower"].to_list().index(0.01)
    lone = trace(figure, "median of fewer than 20 tokens")
    assert trace(figure, "median").y[index] is None
    assert [i for i, y in enumerate(lone.y) if y is not None] == [index]
    assert None in trace(figure, "P2–P98").y
    assert trace(figure, "baseline P2–P98").fill == "toself"
    assert "probability" in figure.layout.xaxis.title.text


def test_the_envelope_axis_holds_the_runs_reach() -> None:
    near = envelope(fakes.envelope_table(0.1), baseline=None, reach=(-20.0, 4.0), theme="light")
    low, high = near.layout.yaxis.range
    assert low < math.asinh(-200)
    assert high > math.asinh(40)


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1e-5, "10⁻⁵"), (3e-4, "3·10⁻⁴"), (0.02, "0.02"), (1.0, "1")])
def test_probability_labels(value: float, text: str) -> None:
    assert probability(value) == text


def test_survival_has_both_tails_and_the_fit_in_its_legend() -> None:
    fit = TailFit(tail="lower", k=0.75, sigma=0.5, threshold=1.5, share=0.1)
    figure = survival(fakes.survival_table(0.3), fits=[fit], tokens=3450, theme="light")
    assert trace(figure, "P(w > x)").y[0] <= 1
    assert trace(figure, "Pareto fit, k̂ = 0.75").line.dash == "dash"
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


@pytest.mark.parametrize("k", [-0.4, 0.0, 0.6, 2.0])
def test_a_fitted_tail_starts_at_its_share_and_falls(k: float) -> None:
    fit = TailFit(tail="upper", k=k, sigma=0.5, threshold=1.5, share=0.1)
    assert pareto_share(fit, 1.5) == pytest.approx(0.1)
    beyond = pareto_share(fit, 2.0)
    assert beyond is not None
    assert 0 < beyond < 0.1
    if k < 0:
        assert pareto_share(fit, 1.5 - 0.5 / k + 1) is None


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_says_why_it_is_empty(theme: Theme) -> None:
    none = fakes.series("healthy", 3).select("step")
    figures = [
        quantile_fan(none, baseline=None, events=[], theme=theme),
        kl(none, baseline=None, limits=FP8, events=[], theme=theme),
        envelope(fakes.envelope_table(0.1).clear(), baseline=None, theme=theme),
        survival(fakes.survival_table(0.3).clear(), fits=[], theme=theme),
    ]
    for figure in figures:
        assert figure.layout.annotations[0].text.startswith("No ")


@pytest.mark.parametrize("kind", ["healthy", "collapsing", "control"])
def test_figures_are_plain_json_without_markup(kind: str) -> None:
    table = fakes.series(kind, 40)
    past = baseline(table, limits=FP8)
    for figure in (
        quantile_fan(table, baseline=past, events=[], theme="light"),
        kl(table, baseline=past, limits=FP8, events=[], theme="light"),
        envelope(fakes.envelope_table(0.2), baseline=None, theme="light"),
        survival(fakes.survival_table(0.3), fits=[], theme="light"),
    ):
        plain = figure_json(figure)
        assert "NaN" not in json.dumps(plain)
        # Plotly turns tags other than <br> and <extra> into inline styles, which the page's policy refuses.
        tags = [
            text
            for text in texts(plain["data"]) + texts(plain["layout"])
            if "<" in text.replace("<extra></extra>", "").replace("k1 < 0", "")
        ]
        assert tags == []


def test_a_sparkline_lifts_the_pen_at_gaps_and_ends_at_its_last_point() -> None:
    line = sparkline([[1.0, 2.0, None, 3.0]], band=(1.0, 1.5), least=1.0)
    assert line is not None
    assert line.paths[0].count("M") == 2
    assert line.last[0][1] < HEIGHT / 2
    assert line.band is not None
    assert sparkline([[None, None]]) is None
    assert sparkline([[0.0, -1.0]], scale="log") is None


def test_palettes_keep_their_contrast() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for palette in PALETTES.values():
        surface = luminance(palette.surface)
        for colour, least in (
            (palette.ink, 4.5),
            (palette.muted, 4.5),
            (palette.first, 3),
            (palette.second, 3),
            (palette.watch, 3),
        ):
            low, high = sorted((surface, luminance(colour)))
            assert (high + 0.05) / (low + 0.05) >= least, colour
    assert fade("#0072B2", 0.2) == "rgba(0,114,178,0.2)"
