"""Routes of alerts and rules: list, acknowledge, silence, send a test, read and change the rules, read a runbook."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.types import MAX_NAME_LENGTH, MAX_STEP
from tailwatch_service import answers, auth, body
from tailwatch_service.alerts.judging import effective
from tailwatch_service.api.deps import ReadableRun, Reader, ServicesDep, Writer
from tailwatch_service.auth import check_project, visible_run
from tailwatch_service.detection import overrides
from tailwatch_service.errors import NotFound, Unprocessable
from tailwatch_service.gate import Principal
from tailwatch_service.services import Services
from tailwatch_service.storage import alerts, findings, keys, outbox, rules
from tailwatch_service.storage.alerts import Placed, Which
from tailwatch_service.storage.findings import StepFinding

router = APIRouter(tags=["alerts"])
runbooks = APIRouter(tags=["alerts"])

RECORD_BYTES = 256 * 2**10
"""Largest body."""

LONGEST_SILENCE_S = 30 * 24 * 3600.0
"""Longest silence."""

TEST_WAIT_S = 6.0
"""How long the answer to a test waits for its delivery."""

_LOOK_S = 0.05

Controller = Annotated[Principal, Depends(auth.require("control"))]
"""Who may change rules."""

Limit = Annotated[int, Query(ge=1, le=1000)]


class AckIn(BaseModel):
    """An acknowledgement."""

    model_config = ConfigDict(strict=True, extra="forbid")

    note: Annotated[str, Field(max_length=2000)] | None = None


class SilenceIn(BaseModel):
    """A silence."""

    model_config = ConfigDict(strict=True, extra="forbid")

    duration_s: Annotated[float, Field(gt=0, le=LONGEST_SILENCE_S)]
    note: Annotated[str, Field(max_length=2000)] | None = None


class TestIn(BaseModel):
    """A test alert."""

    __test__ = False
    model_config = ConfigDict(strict=True, extra="forbid")

    to: Annotated[str, Field(max_length=64)] | None = None
    """Name of a destination; None: all of them."""


class RulesIn(BaseModel):
    """Changes to rules: a table by rule id, over the rules that come with the service."""

    model_config = ConfigDict(strict=True, extra="forbid")

    rules: dict[str, Any]


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.get("/alerts", summary="Alerts of all runs")
def get_alerts(
    services: ServicesDep,
    principal: Reader,
    state: Annotated[Which, Query()] = "open",
    project: Annotated[str | None, Query(max_length=MAX_NAME_LENGTH)] = None,
    limit: Limit = 100,
) -> Response:
    """Newest first. Open ones fire, are acknowledged or silenced."""
    if project is not None:
        check_project(principal, project)
    found = alerts.listed(services.db, project=principal.project or project, which=state, limit=limit)
    return answers.json({"alerts": [alert_json(services, one) for one in found]})


@router.get("/runs/{run}/alerts", summary="Alerts of a run")
def get_run_alerts(
    services: ServicesDep, run: ReadableRun, state: Annotated[Which, Query()] = "all", limit: Limit = 100
) -> Response:
    """Newest first."""
    found = alerts.listed(services.db, run_id=run.run_id, which=state, limit=limit)
    return answers.json({"run_id": run.run_id, "alerts": [alert_json(services, one) for one in found]})


@router.get("/runs/{run}/findings", summary="What rules found, by step")
def get_findings(
    services: ServicesDep,
    run: ReadableRun,
    from_step: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    limit: Limit = 1000,
) -> Response:
    """Hits of rules on the headline series, and where they fired, escalated and cleared."""
    found = findings.of_run(services.db, run.run_id, from_step=from_step, limit=limit)
    return answers.json({"run_id": run.run_id, "findings": [{"step": f.step} | finding_json(f) for f in found]})


@router.post("/alerts/test", openapi_extra=_body_of(TestIn), summary="Send a test alert")
async def post_test(request: Request, services: ServicesDep, principal: Writer) -> Response:
    """Send a test alert by the way real ones go, and wait a few seconds for what becomes of it."""
    record = await body.read_json(request, TestIn, limit=RECORD_BYTES)
    names = tuple(one.name for one in services.desk.destinations)
    if not names:
        reason = "no destination is configured; set TAILWATCH_ALERT_WEBHOOK_URL or TAILWATCH_ALERTMANAGER_URL"
        raise Unprocessable.of(FieldError(column="to", reason=reason))
    if record.to is not None and record.to not in names:
        raise Unprocessable.of(FieldError(column="to", reason=f"{record.to!r} is not one of {', '.join(names)}"))
    to = names if record.to is None else tuple(name for name in names if name == record.to)

    def send() -> list[outbox.Delivery]:
        project = principal.project or "tailwatch"
        by = principal.key_id or "open"
        made = services.desk.queue_test(services.db, to=to, project=project, by=by, now=services.clock())
        deadline = time.monotonic() + TEST_WAIT_S
        while True:
            found = outbox.get(services.db, made)
            tried = all(one.state in {"sent", "failed"} or one.last_error for one in found)
            if tried or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK_S)

    found = await run_in_threadpool(send)
    return answers.json({"deliveries": [_delivery_json(one) for one in found]})


@router.get("/alerts/{alert}", summary="One alert with its evidence")
def get_alert(alert: str, services: ServicesDep, principal: Reader) -> Response:
    """The alert, what was frozen when it fired, and what became of its deliveries."""
    found = _visible(services, principal, alert)
    content = alert_json(services, found) | {
        "evidence": found.alert.evidence,
        "deliveries": [_delivery_json(one) for one in outbox.of_alert(services.db, found.alert.alert_id)],
    }
    return answers.json(content)


@router.post("/alerts/{alert}/ack", openapi_extra=_body_of(AckIn), summary="Acknowledge an alert")
async def post_ack(alert: str, request: Request, services: ServicesDep, principal: Writer) -> Response:
    """Say that somebody is on it. It is told of again only if it becomes worse, and when it ends."""
    record = await body.read_json(request, AckIn, limit=RECORD_BYTES)

    def store() -> Placed:
        found = _visible(services, principal, alert)
        by = principal.key_id or "open"
        services.desk.watch.acknowledge(found.alert.alert_id, by=by, now=services.clock(), note=record.note)
        return alerts.get(services.db, alert)

    return await _changed(services, await run_in_threadpool(store))


@router.post("/alerts/{alert}/silence", openapi_extra=_body_of(SilenceIn), summary="Silence an alert")
async def post_silence(alert: str, request: Request, services: ServicesDep, principal: Writer) -> Response:
    """Let nobody hear of it for a while; if it fires still when that is over, they do."""
    record = await body.read_json(request, SilenceIn, limit=RECORD_BYTES)

    def store() -> Placed:
        found = _visible(services, principal, alert)
        now = services.clock()
        by, until = principal.key_id or "open", now + record.duration_s
        services.desk.watch.silence(found.alert.alert_id, by=by, now=now, until=until, note=record.note)
        return alerts.get(services.db, alert)

    return await _changed(services, await run_in_threadpool(store))


@router.get("/rules", summary="The rules of a project or a run")
def get_rules(
    services: ServicesDep,
    principal: Reader,
    project: Annotated[str | None, Query(min_length=1, max_length=MAX_NAME_LENGTH)] = None,
    run: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The rules in effect, and what was changed for this project or run; without either, those of the service."""
    where = _scope(services, principal, project, run) if project or run else None
    return answers.json(_rules_json(services, where))


@router.put("/rules", openapi_extra=_body_of(RulesIn), summary="Change the rules of a project or a run")
async def put_rules(
    request: Request,
    services: ServicesDep,
    principal: Controller,
    project: Annotated[str | None, Query(min_length=1, max_length=MAX_NAME_LENGTH)] = None,
    run: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Replace the changes of this project or run; an empty table takes them all back. Judged from the next step on."""
    record = await body.read_json(request, RulesIn, limit=RECORD_BYTES)

    def store() -> dict[str, Any]:
        where = _scope(services, principal, project, run)
        now, by = services.clock(), principal.key_id or "open"
        base = services.desk.base
        if where[1] is not None:
            with services.db.read() as connection:
                base = dict(effective(connection, base, project=where[0], run_id=None))
        try:
            overrides.apply(record.rules, base=base)
        except overrides.RuleError as error:
            raise Unprocessable.of(*error.errors) from error
        rules.put(services.db, project=where[0], run_id=where[1], changes=record.rules, actor=by, now=now)
        keys.record(
            services.db,
            actor=by,
            action="rules_changed",
            subject=where[1] or where[0],
            now=now,
            detail={"rules": sorted(record.rules)},
        )
        return _rules_json(services, where)

    return answers.json(await run_in_threadpool(store))


@runbooks.get("/runbooks/{rule}", summary="The runbook of a rule")
def get_runbook(rule: str) -> Response:
    """What an alert means and what to do, as Markdown. Open to whoever an alert reaches: it holds no data."""
    page = resources.files("tailwatch_service.alerts") / "runbooks" / f"{rule}.md"
    if not rule.isalnum() or not page.is_file():
        raise NotFound(f"there is no runbook for {rule!r:.80}")
    return Response(page.read_text(encoding="utf-8"), media_type="text/plain; charset=utf-8")


def alert_json(services: Services, placed: Placed) -> dict[str, Any]:
    """An alert as the API shows it, without its evidence."""
    alert = asdict(placed.alert)
    del alert["evidence"]
    links = services.desk.links
    return alert | {
        "project": placed.project,
        "run": placed.run,
        "runbook_url": links.runbook(placed.alert.rule),
        "dashboard_url": links.run(placed.alert.run_id, step=placed.alert.fired_step),
    }


def finding_json(found: StepFinding) -> dict[str, Any]:
    """A finding as the API shows it."""
    return asdict(found.finding) | {"revised": found.revised}


def _delivery_json(delivery: outbox.Delivery) -> dict[str, Any]:
    own = asdict(delivery)
    del own["payload"]
    return own


async def _changed(services: Services, placed: Placed) -> Response:
    services.hub.wake(placed.alert.run_id)
    services.desk.wake()
    return answers.json(alert_json(services, placed))


def _visible(services: Services, principal: Principal, alert_id: str) -> Placed:
    """An alert, as far as the principal reaches.

    Raises:
        NotFound: no such alert, or one of another project.
    """
    found = alerts.get(services.db, alert_id)
    if principal.project not in {None, found.project}:
        raise NotFound(f"alert {alert_id!r:.80} does not exist")
    return found


def _scope(services: Services, principal: Principal, project: str | None, run: str | None) -> tuple[str, str | None]:
    """(project, run id) that rules are asked for.

    Raises:
        Unprocessable: neither a project nor a run is named, or both.
    """
    if (project is None) == (run is None):
        raise Unprocessable.of(FieldError(column="project", reason="name a project or a run, one of them"))
    if run is not None:
        found = visible_run(services, principal, run)
        return found.spec.project, found.run_id
    check_project(principal, str(project))
    return str(project), None


def _rules_json(services: Services, where: tuple[str, str | None] | None) -> dict[str, Any]:
    if where is None:
        known, changes = services.desk.base, {}
    else:
        project, run_id = where
        with services.db.read() as connection:
            known = effective(connection, services.desk.base, project=project, run_id=run_id)
            changed = rules.read(connection, project=project, run_id=run_id)
        changes = dict(changed.project if run_id is None else changed.run)
    return {"rules": {name: overrides.to_json(rule) for name, rule in known.items()}, "changes": changes}
