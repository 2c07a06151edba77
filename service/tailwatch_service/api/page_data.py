"""What the pages show, read from storage and statistics into the records of `tailwatch_dashboards`.
Everything here blocks on the database; routes call it from the thread pool.

A run changes only with its event number, so what is read of the series is remembered by (run, event number):
a list of fifty runs polled every three seconds costs one query while nothing happens.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import polars as pl

from tailwatch_collectors.summary import Summary, merge
from tailwatch_dashboards import pages
from tailwatch_dashboards.baseline import LAST_STEP, baseline
from tailwatch_dashboards.figures import course, ess
from tailwatch_dashboards.types import (
    ENVELOPE_SCHEMA,
    LAG_SCHEMA,
    SURVIVAL_SCHEMA,
    AlertCard,
    Baseline,
    EventMark,
    FindingMark,
    MetricText,
    RunRow,
    RunView,
    StepFacts,
    TailFit,
    WorstRow,
)
from tailwatch_dashboards.verdict import METRICS as VERDICT_METRICS
from tailwatch_dashboards.verdict import limits_for, verdict
from tailwatch_service.api import page_tokens
from tailwatch_service.api.stored import summary_or_none, summary_or_reason
from tailwatch_service.errors import NotFound
from tailwatch_service.statistics import registry
from tailwatch_service.statistics.envelope import envelope
from tailwatch_service.statistics.histogram import Tail, survival
from tailwatch_service.statistics.intervals import intervals
from tailwatch_service.statistics.slices import slice_rows
from tailwatch_service.statistics.worst import worst_tokens
from tailwatch_service.storage import alerts, events, findings, scalars, series, steps
from tailwatch_service.storage.database import Database
from tailwatch_service.types import Event, Run, SeriesTable, StepRecord

MAX_POINTS = 600
"""Steps in a chart over steps; a longer run is downsampled, and says so."""

RECENT_STEPS = 400
"""Steps the verdict is read from."""

LISTED_STEPS = 100
"""Steps behind a line of the run list."""

BASELINE_SUMMARIES = 12
"""Steps merged into the baseline's envelope, evenly spread over its window."""

TAIL_POINTS = 160
"""Points of one survival curve."""

LAG_STEPS = 160
"""Most steps whose summaries are opened for mismatch against staleness."""

MAX_ALERTS = 20
"""Alerts listed, the newest."""

MAX_EVENTS = 400
"""Events marked in the charts."""

MARKED_KINDS = (
    "weight_sync", "resume", "checkpoint", "config", "config_change", "attempt_started", "finished", "state_changed",
)  # fmt: skip
"""Kinds looked for further back than the newest events."""

_CHART_METRICS = tuple(dict.fromkeys((*pages.SERIES_COLUMNS, *VERDICT_METRICS)))
_NOT_SAID = frozenset({"idempotency_key"})
_LOG_RATIO_LIMIT = 690.0
"""Beyond e^690 a ratio has no float64."""

T = TypeVar("T")


class _Remembered:
    """The last few results of reads whose inputs cannot change."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under a key, made now if it is not known."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                known: T = self._values[key]
                return known
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return made


# Run ids are random and never reused, so that applications in one process do not meet here.
_rows = _Remembered(512)
_charts = _Remembered(64)
_baseline_envelopes = _Remembered(64)
_extents = _Remembered(512)
_lags = _Remembered(64 * LAG_STEPS)


def run_row(db: Database, run: Run) -> RunRow:
    """A line of the run list."""
    made = _rows.get((run.run_id, run.last_event_seq, run.updated_at), lambda: _row(db, run))
    return replace(made, activity=run.state, last_seen_at=run.last_seen_at)


def run_view(db: Database, run: Run, *, step: int | None, full: bool = False) -> RunView:
    """A whole run page.

    Args:
        db: the database.
        run: the run.
        step: the chosen step, or the closed step nearest to it; None: the latest.
        full: every step instead of at most MAX_POINTS, for exports.
    """
    key = (run.run_id, run.last_event_seq, run.updated_at, full)
    view = _charts.get(key, lambda: _run_charts(db, run, full=full))
    view = replace(view, activity=run.state, last_seen_at=run.last_seen_at)
    record = _chosen(db, run, step, view.series)
    if record is None:
        return replace(view, corrections=page_tokens.corrections(None))
    summary = summary_or_reason(record)
    if isinstance(summary, str):
        return replace(view, chosen=_facts(record), corrections=page_tokens.corrections(summary))
    tails = survival(summary)
    return replace(
        view,
        chosen=_facts(record),
        envelope=_envelope_table(summary),
        baseline_envelope=_baseline_envelope(db, run, view.baseline),
        survival=pl.concat([_tail_table(tails.upper, "upper"), _tail_table(tails.lower, "lower")]),
        fits=_fits(tails.upper, tails.lower),
        worst=tuple(WorstRow(**asdict(token)) for token in worst_tokens(summary)),
        kept=page_tokens.kept(db, record.key),
        corrections=page_tokens.corrections(summary),
    )


def chosen_step(db: Database, run: Run, step: int | None) -> StepRecord | None:
    """The closed step asked for, the nearest one where it is not there, or the latest; None before the first."""
    key = (run.run_id, run.last_event_seq, run.updated_at, False)
    return _chosen(db, run, step, _charts.get(key, lambda: _run_charts(db, run, full=False)).series)


def lag_table(db: Database, run: Run, view: RunView) -> pl.DataFrame:
    """LAG_SCHEMA of the charts' steps, at most LAG_STEPS of them, evenly spread.

    A step's slice is read once: the key holds the number of the run's last revision, so that a late batch is seen.
    """
    drawn = view.series["step"].to_list()
    if len(drawn) > LAG_STEPS:
        drawn = [drawn[index] for index in np.unique(np.linspace(0, len(drawn) - 1, LAG_STEPS).round().astype(int))]
    revised = events.last(db, run.run_id, limit=1, kinds=("step_revised",))
    state = (run.run_id, run.attempt, revised[-1].seq if revised else 0)

    def rows(step: int) -> list[tuple[int, str, int, float | None]]:
        summary = summary_or_none(steps.get(db, run.run_id, step=step))
        found = [] if summary is None else slice_rows(summary, "lag")
        return [(step, row.label, int(row.metrics["tokens"]), row.metrics.get("kl_k3")) for row in found]

    made = [row for step in drawn for row in _lags.get((*state, step), lambda step=step: rows(step))]  # type: ignore[misc]
    return pl.DataFrame(made, schema=LAG_SCHEMA, orient="row")


@cache
def metric_texts() -> Mapping[str, MetricText]:
    """The registry, in the words of the dashboards."""
    return {name: MetricText(**asdict(metric)) for name, metric in registry.METRICS.items()}


def _row(db: Database, run: Run) -> RunRow:
    limits = limits_for(precision=run.spec.precision, model_class=run.spec.model_class)
    table, past = _empty(), None
    latest = steps.latest(db, run.run_id)
    if latest is not None:
        step = latest.key.step
        recent = series.read(db, run.run_id, metrics=VERDICT_METRICS, from_step=step - LISTED_STEPS + 1)
        start = series.read(db, run.run_id, metrics=VERDICT_METRICS, to_step=_first_step(db, run, step) + LAST_STEP)
        table, past = _frame(recent), baseline(_frame(start), limits=limits)
    return RunRow(
        run_id=run.run_id,
        project=run.spec.project,
        name=run.spec.name,
        activity=run.state,
        verdict=verdict(table, limits=limits, baseline=past),
        k3=tuple(table["kl_k3"].to_list()) if table.height else (),
        last_step=latest.key.step if latest else None,
        last_seen_at=run.last_seen_at,
        tokens=latest.tokens if latest else None,
        precision=run.spec.precision,
        framework=run.spec.framework,
    )


def _run_charts(db: Database, run: Run, *, full: bool) -> RunView:
    """The part of a run page that no choice of step changes."""
    # One read serves the charts, the verdict and the baseline: 1e5 steps take some 60 ms.
    whole = series.read(db, run.run_id, metrics=_CHART_METRICS)
    table = _frame(whole)
    drawn = table if full else _frame(series.downsample(whole, max_points=MAX_POINTS))
    start = table.filter(pl.col("step") <= pl.col("step").min() + LAST_STEP)
    latest = steps.latest(db, run.run_id)
    limits = limits_for(precision=run.spec.precision, model_class=run.spec.model_class)
    return RunView(
        run_id=run.run_id,
        project=run.spec.project,
        name=run.spec.name,
        activity=run.state,
        attempt=run.attempt,
        created_at=run.created_at,
        last_seen_at=run.last_seen_at,
        last_step=int(table["step"][-1]) if table.height else None,
        config=_config(run),
        limits=limits,
        series=drawn,
        recent=table.tail(RECENT_STEPS),
        baseline=baseline(start, limits=limits),
        latest=replace(_facts(latest), intervals=_intervals(latest)) if latest else None,
        chosen=None,
        envelope=None,
        baseline_envelope=None,
        survival=None,
        fits=(),
        events=_events(db, run),
        metrics=metric_texts(),
        course=_course(db, run, full=full),
        alerts=_alerts(db, run),
        findings=tuple(
            FindingMark(step=one.step, rule=one.finding.rule, severity=one.finding.severity)
            for one in findings.of_run(db, run.run_id, limit=MAX_EVENTS)
            if one.finding.transition != "cleared"
        ),
        sampled=drawn.height < table.height,
    )


def _empty() -> pl.DataFrame:
    return pl.DataFrame(schema={"step": pl.Int64, **dict.fromkeys(_CHART_METRICS, pl.Float64)})


def _frame(table: SeriesTable) -> pl.DataFrame:
    """Column `step` and the metrics, null where missing."""
    frame = pl.DataFrame({"step": table.steps_K, **table.columns})
    return frame.with_columns(pl.exclude("step").fill_nan(None))


def _first_step(db: Database, run: Run, step: int) -> int:
    """The first closed step shown; `step` where there is none before it."""
    extent = _extents.get((run.run_id, run.attempt), lambda: steps.extent(db, run.run_id))
    return step if extent is None else extent.first


def _chosen(db: Database, run: Run, step: int | None, drawn: pl.DataFrame) -> StepRecord | None:
    """The step asked for; where it is not there or still open, the closed one nearest to it in the charts."""
    if step is None:
        return steps.latest(db, run.run_id)
    record = steps.get(db, run.run_id, step=step)
    if (record is None or not record.closed) and drawn.height:
        nearest = drawn.select(pl.col("step").sort_by((pl.col("step") - step).abs()).first()).item()
        record = steps.get(db, run.run_id, step=int(nearest))
    return record if record is not None and record.closed and record.summary else None


def _facts(record: StepRecord) -> StepFacts:
    return StepFacts(
        step=record.key.step,
        phase=record.key.series.phase,
        revision=record.revision,
        coverage=record.coverage,
        tokens=record.tokens,
        sequences=record.sequences,
        closed_at=record.closed_at,
        metrics=record.metrics,
        missing=record.missing,
    )


def _intervals(record: StepRecord) -> dict[str, tuple[float, float]]:
    """95 % intervals of the numbers that are shown large."""
    summary = summary_or_none(record)
    if summary is None:
        return {}
    names = (*registry.HEADLINE, "tail_khat_upper", "tail_khat_lower")  # the tails decide whether there is one
    return intervals(summary, {name: record.metrics[name] for name in names if name in record.metrics}).values


def _envelope_table(summary: Summary) -> pl.DataFrame:
    """ENVELOPE_SCHEMA, one row per probability bin."""
    rows = [asdict(bin_) for bin_ in envelope(summary)]
    return pl.DataFrame(rows, schema=ENVELOPE_SCHEMA).with_columns(pl.col("p2", "p50", "p98").fill_nan(None))


def _baseline_envelope(db: Database, run: Run, past: Baseline | None) -> pl.DataFrame | None:
    """The envelope of the baseline's steps, merged."""
    if past is None:
        return None
    key = (run.run_id, run.attempt, past.steps)
    return _baseline_envelopes.get(key, lambda: _merged_envelope(db, run, past))


def _merged_envelope(db: Database, run: Run, past: Baseline) -> pl.DataFrame | None:
    spread = np.unique(np.linspace(0, len(past.steps) - 1, BASELINE_SUMMARIES).round().astype(int))
    found = (steps.get(db, run.run_id, step=past.steps[index]) for index in spread)
    summaries = [summary for summary in map(summary_or_none, found) if summary is not None]
    return _envelope_table(merge(summaries)) if summaries else None


def _tail_table(tail: Tail, name: str) -> pl.DataFrame:
    """SURVIVAL_SCHEMA of one tail, thinned to evenly spread cells; the last stays."""
    keep = tail.log_ratio < _LOG_RATIO_LIMIT
    log_ratio, share = tail.log_ratio[keep], tail.share[keep]
    if len(log_ratio) > TAIL_POINTS:
        spread = np.unique(np.linspace(0, len(log_ratio) - 1, TAIL_POINTS).round().astype(int))
        log_ratio, share = log_ratio[spread], share[spread]
    columns = {"tail": [name] * len(share), "ratio": np.exp(log_ratio), "share": share}
    return pl.DataFrame(columns, schema=SURVIVAL_SCHEMA)


def _fits(upper: Tail, lower: Tail) -> tuple[TailFit, ...]:
    fits = []
    for tail, name in ((upper, "upper"), (lower, "lower")):
        fit = tail.fit
        if isinstance(fit, str) or fit.log_threshold >= _LOG_RATIO_LIMIT:
            continue
        threshold = math.exp(fit.log_threshold)
        side: Any = name
        fits.append(TailFit(tail=side, k=fit.shape, sigma=fit.scale * threshold, threshold=threshold, share=fit.share))
    return tuple(fits)


def _course(db: Database, run: Run, *, full: bool) -> pl.DataFrame:
    """Effective sample sizes and the scalars that are drawn, at most MAX_POINTS steps."""
    sent = set(scalars.names(db, run.run_id, stream=steps.DEFAULT_STREAM))
    names = [*ess.COLUMNS, *(name for name in course.COLUMNS if name in sent or name in registry.METRICS)]
    table = series.read(db, run.run_id, metrics=names, max_points=None if full else MAX_POINTS)
    return _frame(table)


def _alerts(db: Database, run: Run) -> tuple[AlertCard, ...]:
    """The newest alerts of a run."""
    return tuple(
        AlertCard(
            alert_id=one.alert_id,
            rule=one.rule,
            state=one.state,
            severity=one.severity,
            summary=one.summary,
            description=one.description,
            runbook=f"/runbooks/{one.rule}",
            fired_at=one.fired_at or one.started_at,
            fired_step=one.fired_step,
            acknowledged_by=one.acknowledged_by,
            silenced_until=one.silenced_until,
            note=one.note,
            resolved_at=one.resolved_at,
            resolved_step=one.resolved_step,
            resolved_reason=one.resolved_reason,
        )
        for one, _, _ in alerts.listed(db, run_id=run.run_id, limit=MAX_ALERTS)
    )


def _events(db: Database, run: Run) -> tuple[EventMark, ...]:
    """The newest events of any kind, and those of the marked kinds from further back; oldest first."""
    newest = events.last(db, run.run_id, limit=MAX_EVENTS)
    marked = events.last(db, run.run_id, limit=MAX_EVENTS, kinds=MARKED_KINDS)
    by_number = {event.seq: event for event in (*marked, *newest)}
    return tuple(
        EventMark(kind=event.kind, at=event.at, step=event.step, text=_event_text(event))
        for _, event in sorted(by_number.items())
    )


def _event_text(event: Event) -> str:
    """The payload of an event on one line."""
    payload = event.payload
    if event.kind == "state_changed":
        return str(payload.get("state", ""))
    if event.kind.startswith("alert_") and "summary" in payload:
        return str(payload["summary"])[:200]
    said = (
        (key, value) for key, value in payload.items() if key not in _NOT_SAID and isinstance(value, str | int | float)
    )
    return ", ".join(f"{key} {value}" for key, value in said)[:200]


def _config(run: Run) -> dict[str, Any]:
    """What the run declared, the free-form part last."""
    declared = {
        name: value for name, value in asdict(run.spec).items() if name not in {"project", "name", "tags", "config"}
    }
    return {**declared, **(run.spec.tags or {}), **(run.spec.config or {})}


def require_figure(name: str) -> str:
    """The name of a figure with a table behind it.

    Raises:
        NotFound: there is no such figure.
    """
    if name not in pages.FIGURES:
        raise NotFound(f"figure {name!r:.40} does not exist")
    return name
