"""Prometheus: the last closed step of every run that is not idle, and what the service counts about itself.

One gauge per canonical metric, `tailwatch_<metric>`, labelled with project and run; the quantiles of one quantity
are one gauge with the label `quantile`. Never a label for a step, token, prompt or layer: the number of series grows
with the number of runs and with nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from tailwatch_service.errors import Forbidden
from tailwatch_service.gate import OPEN
from tailwatch_service.services import Services, ServicesDep
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.storage import alerts, heartbeats, runs, steps
from tailwatch_service.types import Run, StepRecord

MAX_RUNS = 1000
"""Most runs in one exposition, the newest first."""

_QUANTILE = re.compile(r"(.+)_q(\d{2,3})")
_PAGE = 200
_LABELS = ("project", "run")
_COLLECTORS: dict[str, tuple[str, str, Callable[[Iterable[float]], float]]] = {
    "queued": ("tailwatch_spool_queued", "Items in the memory of the run's collectors.", sum),
    "spooled": ("tailwatch_spool_pending", "Items on disk at the run's collectors, waiting to be sent.", sum),
    "dropped": ("tailwatch_spool_dropped", "Items the run's collectors dropped since their process began.", sum),
    "rejected": ("tailwatch_spool_rejected", "Items refused for good since their process began.", sum),
    "overhead": ("tailwatch_collector_overhead_ratio", "Largest share of a rank's wall time in the collector.", max),
}
"""Field of a heartbeat: gauge, description, and how the ranks of the latest attempt are put together."""

router = APIRouter()


class Name(NamedTuple):
    """What a canonical metric is called in Prometheus."""

    family: str
    quantile: str | None
    """Value of the label `quantile`; None: the gauge has none."""


def name_of(metric: str) -> Name:
    """The Prometheus name of a canonical metric."""
    found = _QUANTILE.fullmatch(metric)
    if found is None:
        return Name(f"tailwatch_{re.sub('[^a-zA-Z0-9_]', '_', metric)}", None)
    base, digits = found.groups()
    return Name(f"tailwatch_{base}", f"{int(digits) / 10 ** len(digits):g}")


class RunsCollector:
    """Reads the last closed steps when it is scraped."""

    def __init__(self, services: Services, *, project: str | None = None) -> None:
        self._services = services
        self._project = project

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family per metric, one sample per run."""
        services = self._services
        latest = [(run, steps.latest(services.db, run.run_id)) for run in self._busy()]
        yield from _families([(run, step) for run, step in latest if step is not None])
        state = GaugeMetricFamily("tailwatch_run_up", "1 while a run is heard of, 0 once it is lost.", labels=_LABELS)
        alp = GaugeMetricFamily("tailwatch_alp_state", "State of the ALP control; 0 is off.", labels=_LABELS)
        seen = GaugeMetricFamily(
            "tailwatch_last_update_timestamp_seconds", "Unix time a run was last heard of.", labels=_LABELS
        )
        ended = GaugeMetricFamily("tailwatch_run_finished", "1 once a run said that it finished.", labels=_LABELS)
        for run, _ in latest:
            labels = (run.spec.project, run.spec.name)
            ended.add_metric(labels, float(run.state == "finished"))
            state.add_metric(labels, 0.0 if run.state == "lost" else 1.0)
            alp.add_metric(labels, 0.0)
            seen.add_metric(labels, run.last_seen_at)
        yield from (state, alp, seen, ended, self._alerts({(run.spec.project, run.spec.name) for run, _ in latest}))
        yield from self._collectors([run for run, _ in latest])

    def _collectors(self, shown: list[Run]) -> Iterator[GaugeMetricFamily]:
        """What the collectors said of themselves in their last heartbeats; what none of them said is absent."""
        families = {
            field: GaugeMetricFamily(name, text, labels=_LABELS) for field, (name, text, _) in _COLLECTORS.items()
        }
        for run in shown:
            beats = heartbeats.of_run(self._services.db, run.run_id, attempt=run.attempt)
            for field, (_, _, together) in _COLLECTORS.items():
                said = [number for beat in beats if (number := _number(beat.payload.get(field))) is not None]
                if said:
                    families[field].add_metric((run.spec.project, run.spec.name), together(said))
        yield from families.values()

    def _alerts(self, shown: set[tuple[str, str]]) -> GaugeMetricFamily:
        firing = GaugeMetricFamily(
            "tailwatch_alert_firing",
            "1 while a rule fires and is not silenced.",
            labels=(*_LABELS, "rule", "severity"),
        )
        for line in alerts.firing(self._services.db, project=self._project):
            # An idle run leaves the exposition with all it has.
            if (line.project, line.run) in shown:
                firing.add_metric(line, 1.0)
        return firing

    def _busy(self) -> Iterable[Run]:
        """Runs heard of lately, archived ones left out."""
        services = self._services
        now = services.clock()
        cursor: str | None = None
        looked = 0
        while looked < MAX_RUNS:
            page = runs.page(
                services.db,
                now=now,
                project=self._project,
                limit=_PAGE,
                cursor=cursor,
                lost_after_s=services.settings.lost_after_s,
            )
            yield from (run for run in page.runs if now - run.last_seen_at <= services.settings.idle_after_s)
            looked += len(page.runs)
            cursor = page.next_cursor
            if cursor is None:
                return


def _number(value: object) -> float | None:
    """A finite number; a heartbeat may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _families(latest: list[tuple[Run, StepRecord]]) -> Iterator[GaugeMetricFamily]:
    families: dict[str, GaugeMetricFamily] = {}
    for metric, described in METRICS.items():
        family, quantile = name_of(metric)
        labels = _LABELS if quantile is None else (*_LABELS, "quantile")
        if family not in families:
            title = described.title if quantile is None else "Quantiles of the log ratio, nats"
            families[family] = GaugeMetricFamily(family, f"{title} ({described.unit}).", labels=labels)
        for run, step in latest:
            value = step.metrics.get(metric)
            if value is not None:
                own = (run.spec.project, run.spec.name)
                families[family].add_metric(own if quantile is None else (*own, quantile), value)
    train_step = GaugeMetricFamily("tailwatch_train_step", "Last closed step.", labels=_LABELS)
    coverage = GaugeMetricFamily("tailwatch_coverage", "Ranks delivered over ranks expected.", labels=_LABELS)
    for run, step in latest:
        train_step.add_metric((run.spec.project, run.spec.name), step.key.step)
        coverage.add_metric((run.spec.project, run.spec.name), step.coverage)
    yield from families.values()
    yield from (train_step, coverage)


def render(services: Services, registry: CollectorRegistry, *, project: str | None) -> bytes:
    """The whole exposition as text. Blocks on the database."""
    own = CollectorRegistry(auto_describe=False)
    own.register(RunsCollector(services, project=project))
    return generate_latest(registry) + generate_latest(own)


@router.get("/metrics", tags=["health"], summary="Prometheus exposition")
async def get_metrics(request: Request, services: ServicesDep) -> Response:
    """Open on loopback; elsewhere it takes a key with the read scope."""
    principal = OPEN if services.settings.loopback else await services.gate.principal(request)
    if not principal.may("read"):
        raise Forbidden("this key may not read")
    registry: CollectorRegistry = request.app.state.registry
    text = await run_in_threadpool(render, services, registry, project=principal.project)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
