"""The figures beside the mismatch: staleness, effective sample sizes, the course of training, marks of alerts, and axes
that follow tiny data."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from tailwatch_dashboards import pages
from tailwatch_dashboards.figures import axes, course, quantiles, staleness, survival
from tailwatch_dashboards.figures.ess import ess
from tailwatch_dashboards.types import LAG_SCHEMA, AlertCard, FindingMark, Theme
from tests.dashboards import fakes

STEPS = pl.DataFrame({"step": list(range(8))})


def lags(rows: list[tuple[int, str, int, float | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=LAG_SCHEMA, orient="row")


def alert(**changes: object) -> AlertCard:
    card = AlertCard(
        alert_id="a1",
        rule="KlSpike",
        state="firing",
        severity="critical",
        summary="KL spike",
        description="KL is high",
        runbook="/runbooks/KlSpike",
        fired_at=fakes.NOW - 60,
        fired_step=3,
    )
    return dataclasses.replace(card, **changes)  # type: ignore[arg-type]


def test_staleness_draws_a_curve_per_lag_and_shares_that_add_up() -> None:
    table = lags(
        [(step, lag, 10 * (i + 1), 1e-3 * (i + 1)) for step in range(8) for i, lag in enumerate(("0", "1", "3-4"))]
    )
    figure = staleness.staleness(table, steps=STEPS, theme="light")
    curves = {trace.name: trace for trace in figure.data if trace.type == "scatter"}
    assert list(curves) == ["lag 0", "lag 1", "lag 3-4"]
    assert list(curves["lag 1"].y) == pytest.approx([2e-3] * 8)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [sum(bar.y[step] for bar in bars) for step in range(8)] == pytest.approx([1.0] * 8, abs=1e-5)
    # k3 of 1, 2, 3 e-3 on 10, 20, 30 tokens: parts of 1, 4 and 9 in 14.
    assert bars[2].y[0] == pytest.approx(9 / 14, rel=1e-5)
    assert figure.layout.barmode == "stack"
    assert figure.layout.yaxis.type == "log"


def test_a_lag_that_comes_back_after_a_sync_is_a_new_stretch() -> None:
    table = lags([(step, "0" if step % 4 == 0 else "1", 10, 1e-3) for step in range(8)])
    figure = staleness.staleness(table, steps=STEPS, theme="dark")
    curve = next(trace for trace in figure.data if trace.name == "lag 1" and trace.type == "scatter")
    assert list(curve.x) == [1, 2, 3, None, 5, 6, 7]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (lags([]), "No steps yet"),
        (lags([(0, "unknown", 5, 1e-3)]), "weight versions"),
        (lags([(0, "0", 5, None)]), "weight"),
    ],
)
def test_staleness_says_why_it_is_empty(table: pl.DataFrame, said: str) -> None:
    figure = staleness.staleness(table, steps=STEPS, theme="light")
    assert said in figure.layout.annotations[0].text
    assert not figure.data


def test_no_mismatch_at_all_has_no_shares() -> None:
    figure = staleness.staleness(lags([(0, "0", 5, 0.0), (1, "0", 5, 0.0)]), steps=STEPS, theme="light")
    assert all(trace.type == "scatter" for trace in figure.data)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_lag_has_a_colour_of_its_own(theme: Theme) -> None:
    colours = staleness.COLOURS[theme]
    assert len(set(colours.values())) == len(colours) == 9


def test_ess_shows_what_length_explains_as_a_dashed_line() -> None:
    table = STEPS.with_columns(
        ess_token=0.9, ess_sequence=pl.when(pl.col("step") != 2).then(0.5), ess_sequence_expected=0.6
    )
    figure = ess(table, steps=STEPS, theme="light")
    assert [trace.line.dash for trace in figure.data] == [None, None, "dash"]
    assert figure.data[1].y[2] is None
    assert figure.layout.yaxis.range == (0, 1.03)
    assert "effective" in ess(STEPS, steps=STEPS, theme="light").layout.annotations[0].text


def test_the_course_takes_the_first_name_that_is_there() -> None:
    table = STEPS.with_columns(reward_mean=0.5, grad_norm=pl.col("step") * 1.0, nothing=None)
    assert course.present(table) == {"reward": "reward_mean", "gradient norm": "grad_norm"}
    figure = course.course(table, steps=STEPS, theme="light")
    assert [(trace.name, trace.yaxis) for trace in figure.data] == [("reward_mean", "y"), ("grad_norm", "y2")]
    low, high = figure.layout.yaxis2.domain
    assert low == pytest.approx(0.0)
    assert high < figure.layout.yaxis.domain[0]
    assert "sends no reward" in course.course(STEPS, steps=STEPS, theme="light").layout.annotations[0].text


def test_a_scalar_sent_now_and_then_is_points() -> None:
    table = STEPS.with_columns(reward=pl.when(pl.col("step") % 4 == 0).then(0.5))
    assert course.course(table, steps=STEPS, theme="light").data[0].mode == "markers"


def test_alerts_and_findings_are_marked_where_they_are() -> None:
    table = fakes.series("collapsing", 40)
    figure = quantiles.quantile_fan(table, baseline=None, events=[], theme="light")
    findings = [FindingMark(step=step, rule="KlSpike", severity="warning") for step in (2, 3)]
    resolved = alert(
        alert_id="a2", rule="EssLow", severity="warning", fired_step=10, resolved_step=20, resolved_at=fakes.NOW
    )
    axes.alert_marks(figure, [alert(), resolved, alert(fired_step=None)], findings, theme="light", last_step=39)
    bands = [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"]
    assert bands == [(3, 39), (10, 20)]
    assert [note.text for note in figure.layout.annotations] == ["KlSpike", "EssLow"]
    assert [note.xanchor for note in figure.layout.annotations] == ["left", "left"]
    late = quantiles.quantile_fan(table, baseline=None, events=[], theme="light")
    axes.alert_marks(late, [alert(fired_step=38)], (), theme="light", last_step=39)
    assert late.layout.annotations[0].xanchor == "right"
    ticks = [shape.x0 for shape in figure.layout.shapes if shape.type == "line" and shape.y0 == 0.975]
    assert ticks == [2, 3]


def test_rounding_noise_fills_its_axis_and_says_how_small_it_is() -> None:
    table = fakes.series("control", 30)
    figure = quantiles.quantile_fan(table, baseline=None, events=[], theme="light")
    drawn = [value for trace in figure.data if trace.name == "P99.9" for value in trace.y]
    low, high = figure.layout.yaxis.range
    assert max(drawn) > 0.4 * high
    assert "10⁻⁶ nats" in figure.layout.yaxis.title.text
    assert any("tiny scale" in note.text for note in figure.layout.annotations)
    assert low < 0 < high


def test_usual_runs_keep_the_usual_axis() -> None:
    assert axes.reach_of([0.5, -3.0]) == axes.LINEAR_REACH
    assert axes.reach_of([]) == axes.reach_of([0.0, None]) == axes.LINEAR_REACH
    assert axes.reach_of([3e-7, -9e-8]) == 1e-7
    axis = axes.arcsinh_axis(-3e-7, 2e-7, reach=1e-7)
    assert axis["ticktext"][0].startswith("−")
    assert all(abs(float(text.replace("−", "-"))) <= 5 for text in axis["ticktext"])


def test_ratios_that_are_1_but_for_rounding_are_drawn_over_x_minus_1() -> None:
    rows = [(tail, 1 + k * 1e-7, 0.5 / k) for tail in ("upper", "lower") for k in range(1, 9)]
    table = pl.DataFrame(rows, schema=["tail", "ratio", "share"], orient="row")
    figure = survival.survival(table, fits=(), tokens=100, theme="light")
    assert figure.data[0].x[-1] == pytest.approx(8e-7, rel=1e-3)
    assert "minus 1" in figure.layout.xaxis.title.text
    assert not figure.layout.shapes


def test_the_page_lists_alerts_with_what_can_be_done() -> None:
    hostile = "<img src=x>"
    cards = (
        alert(summary=hostile),
        alert(alert_id="a2", state="silenced", silenced_until=fakes.NOW + 60, severity="warning"),
        alert(alert_id="a3", state="resolved", resolved_at=fakes.NOW, resolved_reason="run_finished"),
    )
    view = fakes.run_view("healthy", 8, alerts=cards)
    section = pages.run_view(view, theme="light", now=fakes.NOW)["sections"]["alerts"]
    assert section.count('data-act="ack"') == 2
    assert 'data-act="silence" data-seconds="3600" data-alert="a1"' in section
    assert 'data-alert="a3"' not in section
    assert "run finished" in section
    assert "<img" not in section
    none = pages.run_view(fakes.run_view("healthy", 8), theme="light", now=fakes.NOW)["sections"]["alerts"]
    assert none.strip() == ""
