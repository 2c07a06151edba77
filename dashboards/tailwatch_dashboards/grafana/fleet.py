"""The dashboard of all runs: which one needs a look, and is the service well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tailwatch_dashboards.grafana import frame, panels
from tailwatch_dashboards.grafana.metric import Bounds, MetricInfo, explain
from tailwatch_dashboards.grafana.sdk import Dashboard, Panel, builders

UID = "tailwatch-fleet"

COLUMNS = ("kl_k3", "tail_khat_upper", "tail_khat_lower", "outside_2x", "ess_token", "invalid_share")
"""Metrics of the table of runs."""

CHARTS = (
    ("kl_k3", True),
    ("tail_khat_upper", False),
    ("tail_khat_lower", False),
    ("outside_2x", False),
    ("ess_token", False),
    ("envelope_width_low", False),
    ("lag_p95", False),
)
"""Metrics drawn by run, and whether on a logarithmic axis."""

_RUNS = '{project=~"$project"}'
_ALERTS = 'project=~"$project|"'
_FIRING = f'sum(ALERTS{{alertstate="firing", {_ALERTS}}}) or vector(0)'
_AGE = f"time() - max by (project, run) (tailwatch_last_update_timestamp_seconds{_RUNS})"
_STEP = f"max by (project, run) (tailwatch_train_step{_RUNS})"
_UP = f"max by (project, run) (tailwatch_run_up{_RUNS})"
_OPEN = f"sum by (project, run) (tailwatch_alert_firing{_RUNS}) or 0 * {_UP}"
_BY_RUN = "{{project}} / {{run}}"
_SILENCE = Bounds(upper=300.0)


def fleet(metrics: Mapping[str, MetricInfo]) -> Dashboard:
    """The Fleet dashboard.

    Raises:
        KeyError: the registry lacks a metric that it shows.
    """
    made = frame.frame(
        uid=UID,
        title="Tailwatch: Fleet",
        description="All runs that are heard of: which one needs a look, and is the service well?",
        alerts=_ALERTS,
    )
    values = "label_values(tailwatch_run_up, project)"
    made = made.with_variable(frame.variable("project", "Project", values, several=True)).with_variable(frame.address())
    made = made.with_row(builders.Row("Now"))
    for number in _numbers():
        made = made.with_panel(number)
    made = made.with_panel(_table(metrics))
    made = made.with_row(builders.Row("Runs over time"))
    for name, log in CHARTS:
        made = made.with_panel(_by_run(metrics[name], log=log))
    for panel in _life():
        made = made.with_panel(panel)
    made = made.with_row(builders.Row("Service"))
    for panel in frame.service_panels():
        made = made.with_panel(panel)
    return made


def _last(metric: MetricInfo) -> str:
    return f"max by (project, run) ({metric.series}{_RUNS})"


def _numbers() -> Iterator[Panel]:
    yield panels.number(
        "Runs",
        about="Runs heard of within TAILWATCH_IDLE_AFTER_S, archived ones left out.",
        unit="short",
        span=5,
        expr=f"count({_UP}) or vector(0)",
    )
    yield panels.number(
        "Runs lost",
        about="Runs that went silent without saying that they had finished.",
        unit="short",
        span=5,
        expr=f"count({_UP} == 0) or vector(0)",
        bounds=Bounds(upper=0.5),
    )
    yield panels.number(
        "Alerts firing",
        about="Of Tailwatch's own rules, silenced ones left out.",
        unit="short",
        span=5,
        expr=f"sum(tailwatch_alert_firing{_RUNS}) or vector(0)",
        bounds=Bounds(upper=0.5),
    )
    yield panels.number(
        "Prometheus alerts",
        about="Rules of Prometheus that fire, those about the service among them; 0 where none are loaded.",
        unit="short",
        span=5,
        expr=_FIRING,
        bounds=Bounds(upper=0.5),
    )
    yield panels.number(
        "Tokens per second",
        about="Taken in over all replicas.",
        unit="short",
        span=4,
        expr="sum(rate(tailwatch_ingest_tokens_total[$__rate_interval]))",
    )


def _table(metrics: Mapping[str, MetricInfo]) -> Panel:
    shown = [metrics[name] for name in COLUMNS]
    return panels.run_table(
        "Runs",
        about="The last closed step of every run.\n\n" + "\n\n".join(explain(metric) for metric in shown),
        columns=[
            *((metric.title, metric.grafana_unit, _last(metric), metric.bounds()) for metric in shown),
            ("Last step", "none", _STEP, None),
            ("Silent for", "s", _AGE, _SILENCE),
            ("Alerts firing", "short", _OPEN, Bounds(upper=0.5)),
        ],
    )


def _by_run(metric: MetricInfo, *, log: bool) -> Panel:
    return panels.chart(
        metric.title,
        about=explain(metric),
        unit=metric.grafana_unit,
        log=log,
        bounds=metric.bounds(),
        by_run=True,
        queries=[panels.query(_last(metric), legend=_BY_RUN)],
    )


def _life() -> Iterator[Panel]:
    yield panels.chart(
        "Last closed step",
        about="A flat line is a run that stands still.",
        unit="none",
        by_run=True,
        queries=[panels.query(_STEP, legend=_BY_RUN)],
    )
    yield panels.chart(
        "Silent for",
        about="Time since a run was last heard of; TAILWATCH_LOST_AFTER_S (300 s) makes it lost.",
        unit="s",
        by_run=True,
        bounds=_SILENCE,
        queries=[panels.query(_AGE, legend=_BY_RUN)],
    )
    yield panels.chart(
        "Coverage",
        about="Ranks delivered over ranks expected, of the last closed step; below 0.9 a step is not judged.",
        unit="percentunit",
        by_run=True,
        bounds=Bounds(lower=0.9),
        queries=[panels.query(f"min by (project, run) (tailwatch_coverage{_RUNS})", legend=_BY_RUN)],
    )
    yield panels.chart(
        "Alerts firing",
        about="Of Tailwatch's own rules, silenced ones left out.",
        unit="short",
        by_run=True,
        queries=[panels.query(_OPEN, legend=_BY_RUN)],
    )
