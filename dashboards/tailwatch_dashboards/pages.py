"""Pages: records in, HTML and JSON out. The first paint is HTML; afterwards the browser asks for the same
sections again as JSON and morphs them in place, so a page and its updates cannot disagree.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.graph_objects as go
import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards import plotlyjs
from tailwatch_dashboards.figures import axes, course, envelope, ess, kl, quantiles, staleness, survival
from tailwatch_dashboards.figures.sparkline import Sparkline, sparkline
from tailwatch_dashboards.headline import headline
from tailwatch_dashboards.tokens import sequence_rows, worst_ends
from tailwatch_dashboards.types import (
    ENVELOPE_SCHEMA,
    STATES,
    SURVIVAL_SCHEMA,
    EventMark,
    MetricText,
    Replayed,
    RunRow,
    RunView,
    SequenceTokens,
    Theme,
    Verdict,
)
from tailwatch_dashboards.verdict import verdict

STATIC_DIR = Path(__file__).parent / "static"
"""Style sheets, scripts and the icon, to be served under /static."""

SERIES_COLUMNS = tuple(dict.fromkeys((*quantiles.COLUMNS, *kl.COLUMNS, "kl_k3", "ess_token", "envelope_width_low")))
"""Metrics the charts over steps need."""

STALE_AFTER = 120.0
"""Seconds without a sign of life after which a running run is called stale."""

MAX_EVENTS = 12
"""Events listed; the marks in the charts show the rest."""

FIGURE_METRICS = {"quantiles": quantiles.COLUMNS, "kl": kl.COLUMNS, "ess": ess.COLUMNS, "course": course.COLUMNS}
"""Columns behind the figures over steps."""

STEP_FIGURES = ("envelope", "survival")
"""Figures of the chosen step."""

FIGURES = (*FIGURE_METRICS, "staleness", *STEP_FIGURES)
"""Every figure, in the order of the page."""

OPEN_STATES = ("firing", "acknowledged", "silenced")
"""States of an open alert, the loudest first."""

EVENT_WORDS = {
    "weight_sync": "weight sync",
    "config": "configuration",
    "attempt_started": "attempt started",
    "run_created": "run created",
    "state_changed": "became",
    "run_updated": "run updated",
}


_ROUTINE = frozenset({"step_closed", "step_revised", "heartbeat", "scalars"})


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityRow:
    """One validity counter, ready to print."""

    metric: str
    title: str
    text: str
    finding: bool
    clear: bool
    """A check that found nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ListedRow:
    """A run with its sparkline drawn."""

    row: RunRow
    spark: Sparkline | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)


# --- pages


def runs_page(rows: Sequence[RunRow], *, next_cursor: str | None, query: str, origin: str, now: float) -> str:
    """The run list.

    Args:
        rows: the first page of runs, in the order to show.
        next_cursor: where the next page starts; None on the last.
        query: text the filter box starts with.
        origin: scheme and host of this service, for the snippet.
        now: Unix seconds.
    """
    listed = _listed(rows)
    return _render(
        "runs.html",
        rows=listed,
        states=_tally(rows),
        next_cursor=next_cursor,
        query=query,
        origin=origin,
        now=now,
        project=None,
        run_name=None,
    )


def runs_view(rows: Sequence[RunRow], *, next_cursor: str | None, now: float) -> dict[str, Any]:
    """What the run list updates from: its sections as HTML, keyed by element id."""
    sections = {
        "rows": _render("runs_rows.html", rows=_listed(rows), now=now),
        "summary": _render("runs_summary.html", states=_tally(rows)),
    }
    return {"sections": sections, "count": len(rows), "next_cursor": next_cursor}


def run_page(view: RunView, *, origin: str, now: float) -> str:
    """The run page without its figures, which the browser fetches from the run's view."""
    reading = _reading(view)
    return _render(
        "run.html",
        **_section_values(view, reading, now=now),
        origin=origin,
        project=view.project,
        run_name=view.name,
        csv={name: csv_path(view, name) for name in FIGURES},
        calls={name: api_path(view, name) for name in FIGURES},
        definitions=_definitions(view),
        plotly_version=plotlyjs.VERSION,
        plotly_style_ids=plotlyjs.style_ids(),
    )


def run_view(view: RunView, *, theme: Theme, now: float) -> dict[str, Any]:
    """Everything the run page updates from: verdict, headline, sections as HTML, figures as Plotly JSON, the
    steps to play."""
    reading = _reading(view)
    values = _section_values(view, reading, now=now)
    names = ("verdict", "headline", "alerts", "quality", "events", "config")
    sections = {name: _render(f"{name}.html", **values) for name in names}
    sections["run-facts"] = _render("run_facts.html", **values)
    step = step_view(view, theme=theme)
    return {
        "run_id": view.run_id,
        "title": f"{view.name} · {reading.state} · Tailwatch",
        "verdict": {"state": reading.state, "sentence": reading.sentence, "since_step": reading.since_step},
        "headline": {name: view.latest.metrics.get(name) for name in SERIES_COLUMNS} if view.latest else {},
        "sections": {**sections, **step.pop("sections")},
        "figures": {
            **{name: figure_json(figure) for name, figure in _figures(view, theme=theme).items()},
            **step.pop("figures"),
        },
        "steps": view.series["step"].to_list(),
        "sampled": view.sampled,
        **step,
    }


def step_view(view: RunView, *, theme: Theme) -> dict[str, Any]:
    """The part of a run's view that depends on the chosen step alone."""
    tokens = view.chosen.tokens if view.chosen else None
    bins = view.envelope if view.envelope is not None else pl.DataFrame(schema=ENVELOPE_SCHEMA)
    tails = view.survival if view.survival is not None else pl.DataFrame(schema=SURVIVAL_SCHEMA)
    figures = {
        "envelope": envelope.envelope(bins, baseline=view.baseline_envelope, reach=envelope_reach(view), theme=theme),
        "survival": survival.survival(tails, fits=view.fits, tokens=tokens, theme=theme),
    }
    values = _step_values(view)
    names = {"quality": "quality", "worst": "worst", "corrections": "corrections", "step-facts": "step_facts"}
    return {
        "step": view.chosen.step if view.chosen else None,
        "last_step": view.last_step,
        "links": {
            "csv": {name: csv_path(view, name) for name in figures},
            "calls": {name: api_path(view, name) for name in figures},
        },
        "sections": {key: _render(f"{name}.html", **values) for key, name in names.items()},
        "figures": {name: figure_json(figure) for name, figure in figures.items()},
    }


def lag_view(lags: pl.DataFrame, view: RunView, *, theme: Theme) -> dict[str, Any]:
    """The figure of mismatch against staleness, which the page asks for by itself: it is read from many summaries.

    Args:
        lags: LAG_SCHEMA.
        view: the run, for its steps and events.
        theme: light or dark.
    """
    figure = staleness.staleness(lags, steps=view.series, alerts=view.alerts, events=view.events, theme=theme)
    return {"figures": {"staleness": figure_json(figure)}, "steps_read": lags["step"].n_unique()}


def what_if_view(replayed: Replayed) -> dict[str, Any]:
    """What one correction would do, as the section the page puts under its sliders."""
    return {"sections": {"whatif-result": _render("whatif_result.html", found=replayed)}}


def sequence_view(found: SequenceTokens | str) -> dict[str, Any]:
    """A sequence coloured by d, or why it cannot be shown."""
    values: dict[str, Any] = {"reason": found, "sequence": None, "rows": ()}
    if not isinstance(found, str):
        values = {"reason": None, "sequence": found, "rows": sequence_rows(found)}
    return {"sections": {"sequence": _render("sequence.html", **values)}}


def not_found_page(*, run_id: str | None, near: Sequence[RunRow] = ()) -> str:
    """The 404 page: a search box and the most recent runs. run_id None: the address itself is unknown."""
    return _render("not_found.html", run_id=run_id, near=near)


def login_page(*, next_path: str, problem: str | None = None) -> str:
    """The sign-in form; `next_path` is where it leads afterwards."""
    return _render("login.html", next=next_path, problem=problem)


def definitions_page(metrics: Sequence[MetricText]) -> str:
    """Every metric of the registry by family, each with an anchor."""
    families: dict[str, list[MetricText]] = {}
    for metric in metrics:
        families.setdefault(metric.family, []).append(metric)
    return _render("definitions.html", families=list(families.items()))


def figure_csv(view: RunView, name: str) -> str:
    """The table behind a figure as CSV.

    Raises:
        KeyError: unknown figure.
    """
    tables = {"envelope": view.envelope, "survival": view.survival, "ess": view.course, "course": view.course}
    table = tables.get(name, view.series)
    if table is None:
        return ""
    if name in STEP_FIGURES:
        return table.write_csv()
    return table.select("step", *(column for column in FIGURE_METRICS[name] if column in table.columns)).write_csv()


# --- parts


def quality(view: RunView) -> list[QualityRow]:
    """The validity metrics of the chosen step, findings first."""
    if view.chosen is None:
        return []
    rows = [
        _quality_row(text, view.chosen.metrics[name], tokens=view.chosen.tokens)
        for name, text in view.metrics.items()
        if text.family == "validity" and name in view.chosen.metrics
    ]
    return sorted(rows, key=lambda row: not row.finding)


def envelope_reach(view: RunView) -> tuple[float, float] | None:
    """The d range that holds most steps' envelopes, so that playing through the steps does not rescale the
    axis."""
    low = [value for value in axes.column(view.series, "log_ratio_q001") if value is not None]
    high = [value for value in axes.column(view.series, "log_ratio_q999") if value is not None]
    return (min(low), max(high)) if low and high else None


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain JSON values: the form Plotly.react takes."""
    loaded: dict[str, Any] = json.loads(figure.to_json())
    return loaded


def csv_path(view: RunView, name: str) -> str:
    """Address of the table behind a figure."""
    path = f"/runs/{quote(view.run_id, safe='')}/figures/{name}.csv"
    return f"{path}?step={view.chosen.step}" if name in STEP_FIGURES and view.chosen else path


def api_path(view: RunView, name: str) -> str:
    """The API call that answers with the same numbers."""
    root = f"/api/v1/runs/{quote(view.run_id, safe='')}"
    if name in FIGURE_METRICS:
        drawn = course.present(view.course).values() if name == "course" and view.course is not None else None
        return f"{root}/series?metrics={','.join(drawn or FIGURE_METRICS[name])}"
    step = view.chosen.step if view.chosen else 0
    part = {"envelope": "/envelope", "survival": "/histogram", "staleness": ""}[name]
    return f"{root}/steps/{step}{part}"


def _reading(view: RunView) -> Verdict:
    return verdict(view.recent, limits=view.limits, baseline=view.baseline)


def _figures(view: RunView, *, theme: Theme) -> dict[str, go.Figure]:
    """The figures over steps."""
    marks: dict[str, Any] = {"events": view.events, "theme": theme}
    figures = {
        "quantiles": quantiles.quantile_fan(view.series, baseline=view.baseline, **marks),
        "kl": kl.kl(view.series, baseline=view.baseline, limits=view.limits, **marks),
    }
    for figure in figures.values():
        if view.series.height and figure.data:
            axes.alert_marks(figure, view.alerts, view.findings, theme=theme, last_step=view.last_step)
    table = view.course if view.course is not None else view.series.select("step")
    figures["ess"] = ess.ess(table, steps=view.series, alerts=view.alerts, **marks)
    figures["course"] = course.course(table, steps=view.series, alerts=view.alerts, **marks)
    return figures


def _step_values(view: RunView) -> dict[str, Any]:
    """What the sections of the chosen step are rendered from."""
    return {
        "view": view,
        "quality": quality(view),
        "missing": _missing(view),
        "ends": worst_ends(view.worst),
        "corrections": view.corrections,
    }


def _section_values(view: RunView, reading: Verdict, *, now: float) -> dict[str, Any]:
    """What the sections of the run page are rendered from."""
    return _step_values(view) | {
        "verdict": reading,
        "headline": headline(view, verdict=reading),
        "lag": _lag(view),
        "stale_after": STALE_AFTER,
        "open_alerts": sorted(
            (alert for alert in view.alerts if alert.open),
            key=lambda one: (OPEN_STATES.index(one.state), -one.fired_at),
        ),
        "past_alerts": [alert for alert in view.alerts if not alert.open],
        "events": _listed_events(view.events),
        "config": [(name, _plain(value)) for name, value in view.config.items() if value is not None],
        "now": now,
    }


def _definitions(view: RunView) -> list[MetricText]:
    """Metrics a link on the page may point at."""
    used = {
        *SERIES_COLUMNS,
        "tail_khat_upper",
        "ess_sequence",
        "lag_mean",
        "reward_mean",
        *(row.metric for row in quality(view)),
    }
    return [text for name, text in view.metrics.items() if name in used]


def _quality_row(text: MetricText, value: float, *, tokens: int) -> QualityRow:
    check = text.harm == "higher"
    shown = fmt.count(value) if text.unit in {"tokens", "sequences"} else fmt.number(value)
    if check and text.unit == "tokens" and value > 0 and tokens > 0:
        shown = f"{shown} ({fmt.number(100 * value / tokens)} %)"
    return QualityRow(
        metric=text.name, title=text.title, text=shown, finding=check and value > 0, clear=check and value == 0
    )


def _missing(view: RunView) -> list[tuple[str, str]]:
    return sorted(view.chosen.missing.items()) if view.chosen else []


def _listed_events(events: Sequence[EventMark]) -> list[dict[str, Any]]:
    """The latest events worth a line, newest first; what comes often is one line with its count."""
    often = Counter(event.kind for event in events if event.kind in axes.RUG_KINDS)
    listed: list[dict[str, Any]] = []
    seen: set[str] = set()
    for event in reversed(events):
        if event.kind in _ROUTINE or (event.kind in often and event.kind in seen):
            continue
        seen.add(event.kind)
        word = EVENT_WORDS.get(event.kind, event.kind.replace("_", " "))
        count = f"{often[event.kind]} times, last: " if often[event.kind] > 1 else ""
        listed.append({"word": word, "text": count + event.text, "step": event.step, "at": event.at})
    return listed[:MAX_EVENTS]


def _lag(view: RunView) -> str:
    """Policy lag at the last step in versions: mean and largest, or that the trainer does not send it."""
    if view.latest is None:
        return fmt.MISSING
    mean, largest = (view.latest.metrics.get(name) for name in ("lag_mean", "lag_max"))
    if mean is None or largest is None:
        return "not sent"
    return fmt.count(largest) if mean == largest else f"{fmt.number(mean, digits=2)}, max {fmt.count(largest)}"


def _plain(value: Any) -> str:
    """A configuration value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _listed(rows: Sequence[RunRow]) -> list[_ListedRow]:
    return [_ListedRow(row=row, spark=sparkline([row.k3], scale="log", least=1.0)) for row in rows]


def _tally(rows: Sequence[RunRow]) -> list[tuple[str, int]]:
    """Runs per state, worst first, states without runs left out."""
    counts = Counter(row.verdict.state for row in rows)
    return [(state, counts[state]) for state in reversed(STATES) if counts[state]]


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    """Templates with autoescape everywhere: run names, events and configuration come from outside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tailwatch_dashboards"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "age": fmt.age,
        "formula": fmt.formula,
        "count": fmt.count,
        "moment": fmt.moment,
        "number": fmt.number,
        "percent": fmt.percent,
        "times": fmt.times,
        "bound": fmt.bound,
    }
    return environment
