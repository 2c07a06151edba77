"""What every dashboard shares: variables, links, time, the firing alerts as marks, the panels of the service itself."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tailwatch_dashboards.grafana import panels
from tailwatch_dashboards.grafana.sdk import Builder, Dashboard, Panel, builders, models

DEFAULT_TAILWATCH = "http://127.0.0.1:8321"
"""Where compose publishes the service; the variable `tailwatch` changes it."""

WALL_CLOCK = "Prometheus samples the last closed step at every scrape: the axis is wall-clock time, not steps."


def frame(*, uid: str, title: str, description: str, alerts: str) -> Dashboard:
    """An empty dashboard.

    Args:
        uid: stable id, also its address.
        title: its name.
        description: what it answers.
        alerts: label matchers of the firing alerts it marks.
    """
    mark = builders.AnnotationQuery().name("Firing alerts").datasource(panels.SOURCE).enable(True)
    mark = mark.icon_color(panels.VERMILION).expr(f'ALERTS{{alertstate="firing", {alerts}}}')
    made = builders.Dashboard(title).uid(uid).description(f"{description} {WALL_CLOCK}").tags(["tailwatch"])
    made = made.time("now-6h", "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    return made.annotation(mark).with_variable(_source()).version(1)


def variable(name: str, label: str, values: str, *, several: bool) -> Builder:
    """A variable filled by the data source; `several` offers all of them at once."""
    made = builders.QueryVariable(name).label(label).datasource(panels.SOURCE)
    made = made.query({"qryType": 1, "query": values, "refId": f"{name}-values"})
    made = made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)
    made = made.multi(several).include_all(several)
    if not several:
        return made
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return made.all_value(".*").current(everything)


def address() -> Builder:
    """Where the links lead."""
    return builders.TextBoxVariable("tailwatch").label("Tailwatch at").default_value(DEFAULT_TAILWATCH)


def _source() -> Builder:
    current = models.VariableOption(selected=True, text="Prometheus", value="prometheus")
    return builders.DatasourceVariable("datasource").label("Data source").type("prometheus").current(current)


_MEMORY = "process_resident_memory_bytes and on (job, instance) tailwatch_live_streams"


def service_panels() -> Iterable[Panel]:
    """How the service itself is: intake, refusals, time to acknowledge, HTTP, memory."""
    rate = "[$__rate_interval]"
    seconds = f"sum by (le) (rate(tailwatch_ingest_seconds_bucket{rate}))"
    yield panels.chart(
        "Tokens taken in",
        about="Tokens per second in batches stored for the first time, over all replicas.",
        unit="short",
        linked=False,
        queries=[panels.query(f"sum(rate(tailwatch_ingest_tokens_total{rate}))", legend="tokens/s")],
    )
    yield panels.chart(
        "Batches",
        about="Batches per second by what became of them. Duplicates are retries whose first answer was lost; of a "
        "refused batch (4xx) nothing was stored.",
        unit="reqps",
        linked=False,
        queries=[
            panels.query(f"sum by (status) (rate(tailwatch_ingest_batches_total{rate}))", legend="{{status}}"),
            panels.query(f"sum(rate(tailwatch_ingest_rejects_total{rate})) or vector(0)", legend="refused", ref="B"),
        ],
    )
    yield panels.chart(
        "Time to acknowledge",
        about="From the end of a batch's body to its durable answer. Training waits for none of it.",
        unit="s",
        log=True,
        linked=False,
        queries=[
            panels.query(f"histogram_quantile(0.5, {seconds})", legend="median"),
            panels.query(f"histogram_quantile(0.99, {seconds})", legend="P99", ref="B"),
        ],
    )
    yield panels.chart(
        "HTTP answers",
        about="Requests per second, by status: 4xx are refusals that name their reason, 5xx failures of the service.",
        unit="reqps",
        linked=False,
        queries=[panels.query(f"sum by (status) (rate(tailwatch_http_requests_total{rate}))", legend="{{status}}")],
    )
    yield panels.chart(
        "Open live streams",
        about="Pages that follow a run, per replica; the limit is TAILWATCH_LIMIT_LIVE_STREAMS.",
        unit="short",
        linked=False,
        queries=[panels.query("tailwatch_live_streams", legend="{{instance}}")],
    )
    yield panels.chart(
        "Memory",
        about="Resident memory of the service, per replica.",
        unit="bytes",
        linked=False,
        queries=[panels.query(_MEMORY, legend="{{instance}}")],
    )


def to_json(made: Dashboard) -> str:
    """The file of a dashboard: sorted keys, stable ids, a newline at the end."""
    document = panels.plain(made.build())
    number = 0
    for panel in document["panels"]:
        for one in (panel, *panel.get("panels", ())):
            number += 1
            one["id"] = number
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
