"""Routes of runs: create, list, read, change, delete; and their event log."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.types import MAX_NAME_LENGTH, MAX_RANK, MAX_STEP
from tailwatch_service import answers, auth, body
from tailwatch_service.api.deps import ReadableRun, Reader, ServicesDep, WritableRun, Writer
from tailwatch_service.auth import check_project
from tailwatch_service.errors import Unprocessable
from tailwatch_service.gate import Principal
from tailwatch_service.services import Services
from tailwatch_service.storage import events, heartbeats, keys, runs, scalars, steps
from tailwatch_service.types import Event, Run, RunSpec

router = APIRouter(tags=["runs"])

RECORD_BYTES = 256 * 2**10
"""Largest description of a run."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Tags = Annotated[dict[Name, Annotated[str, Field(max_length=1024)]], Field(max_length=64)]


class _Described(BaseModel):
    """What may be said of a run."""

    framework: Name | None = None
    model_class: Name | None = None
    precision: Name | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    logprobs_mode: Name | None = None
    world_size: Annotated[int, Field(ge=1, le=MAX_RANK + 1)] | None = None
    staleness_bound: Annotated[int, Field(ge=0, le=MAX_STEP)] | None = None
    tags: Tags | None = None
    config: dict[str, Any] | None = None


class RunIn(_Described):
    """A run as a client announces it. Fields that are not listed are kept under `config`."""

    model_config = ConfigDict(strict=True, extra="allow")

    project: Name
    name: Name
    session: Name | None = None
    """Launch of the job; a new one starts the next attempt."""
    resume: bool = False
    """Without a session: start the next attempt."""


class RunPatch(_Described):
    """What may be changed of a run; what is not named stays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Name | None = None
    archived: bool | None = None


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.post(
    "/runs",
    status_code=201,
    responses={200: {"description": "The run was known."}, 201: {"description": "The run was created."}},
    openapi_extra=_body_of(RunIn),
    summary="Create a run, or find it by project and name",
)
async def post_run(request: Request, services: ServicesDep, principal: Writer) -> Response:
    """Create a run or find it, and map the client's session to an attempt: eight resuming ranks make one."""
    record = await body.read_json(request, RunIn, limit=RECORD_BYTES)
    check_project(principal, record.project)

    def store() -> runs.Registered:
        _check_room(services, record)
        return runs.register(
            services.db,
            _spec(record),
            now=services.clock(),
            session=record.session,
            resume=record.resume,
            lost_after_s=services.settings.lost_after_s,
        )

    run, attempt, created = await run_in_threadpool(store)
    services.hub.wake(run.run_id)
    content = run_json(run) | {"attempt": attempt, "status": "created" if created else "known", "directive": None}
    headers = {"Location": f"/api/v1/runs/{run.run_id}"} if created else {}
    return answers.json(content, status=201 if created else 200, headers=headers)


@router.get("/runs", summary="List runs, newest first")
def list_runs(
    services: ServicesDep,
    principal: Reader,
    project: Annotated[str | None, Query(max_length=MAX_NAME_LENGTH)] = None,
    archived: bool = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """A page of runs; `next_cursor` names the next one, null on the last."""
    if project is not None:
        check_project(principal, project)
    page = runs.page(
        services.db,
        now=services.clock(),
        project=project if principal.project is None else principal.project,
        archived=archived,
        limit=limit,
        cursor=cursor,
        lost_after_s=services.settings.lost_after_s,
    )
    return answers.json({"runs": [run_json(run) for run in page.runs], "next_cursor": page.next_cursor})


@router.get("/runs/{run}", summary="One run")
def get_run(services: ServicesDep, run: ReadableRun) -> Response:
    """A run with its attempts, its series, its scalars and the last sign of life of each rank."""
    db = services.db
    extent = steps.extent(db, run.run_id)
    content = run_json(run) | {
        "attempts": [attempt._asdict() for attempt in runs.attempts_of(db, run.run_id)],
        "series": [
            {"stream": key.stream, "attempt": key.attempt, "phase": key.phase, "update_index": key.update_index}
            for key in steps.series_of(db, run.run_id)
        ],
        "scalars": scalars.names(db, run.run_id),
        "steps": None if extent is None else {"first": extent.first, "last": extent.last, "count": extent.steps},
        "heartbeats": [
            {"attempt": beat.attempt, "rank": beat.rank, "step": beat.step, "at": beat.at, **beat.payload}
            for beat in heartbeats.of_run(db, run.run_id, attempt=run.attempt)
        ],
    }
    return answers.json(content)


@router.patch("/runs/{run}", openapi_extra=_body_of(RunPatch), summary="Rename, archive or describe a run")
async def patch_run(request: Request, services: ServicesDep, run: WritableRun) -> Response:
    """Change the named fields; null clears a description."""
    record = await body.read_json(request, RunPatch, limit=RECORD_BYTES)
    changes = {name: getattr(record, name) for name in record.model_fields_set}
    for name in ("name", "archived"):
        if name in changes and changes[name] is None:
            raise Unprocessable.of(FieldError(column=name, reason="cannot be null"))

    def store() -> Run:
        changed = runs.update(
            services.db,
            run.run_id,
            changes=changes,
            now=services.clock(),
            lost_after_s=services.settings.lost_after_s,
        )
        events.append(services.db, run.run_id, kind="run_updated", now=services.clock(), payload=_said(changes))
        return changed

    changed = await run_in_threadpool(store)
    services.hub.wake(run.run_id)
    return answers.json(run_json(changed))


@router.delete("/runs/{run}", status_code=204, summary="Delete a run and all that hangs on it")
def delete_run(
    run: str, services: ServicesDep, principal: Annotated[Principal, Depends(auth.require("admin"))]
) -> Response:
    """Needs the admin scope: a trainer's key cannot delete what it wrote."""
    found = auth.visible_run(services, principal, run)
    runs.delete(services.db, found.run_id)
    keys.record(
        services.db,
        actor=principal.key_id or "open",
        action="run_deleted",
        subject=found.run_id,
        now=services.clock(),
        detail={"project": found.spec.project, "name": found.spec.name},
    )
    return Response(status_code=204)


@router.get("/runs/{run}/events", tags=["live"], summary="The event log")
def get_events(
    services: ServicesDep,
    run: ReadableRun,
    after: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Events numbered above `after`, in order; without it the newest ones."""
    if after is None:
        found = events.last(services.db, run.run_id, limit=limit)
    else:
        found = events.after(services.db, run.run_id, seq=after, limit=limit)
    return answers.json({"run_id": run.run_id, "events": [event_json(event) for event in found]})


def run_json(run: Run) -> dict[str, Any]:
    """A run as the API shows it."""
    own = {field.name: getattr(run, field.name) for field in fields(run) if field.name != "spec"}
    return own | {field.name: getattr(run.spec, field.name) for field in fields(run.spec)}


def event_json(event: Event) -> dict[str, Any]:
    """An event as the API shows it."""
    return asdict(event)


def _spec(record: RunIn) -> RunSpec:
    extra = record.model_extra or {}
    config = {**extra, **(record.config or {})} or None
    described = {name: getattr(record, name) for name in _Described.model_fields if name != "config"}
    return RunSpec(project=record.project, name=record.name, config=config, **described)


def _check_room(services: Services, record: RunIn) -> None:
    limit = services.settings.limits.runs_per_project
    if runs.count(services.db, project=record.project) < limit:
        return
    now, name = services.clock(), record.name
    if runs.find(services.db, project=record.project, name=name, now=now) is None:
        reason = f"{record.project!r:.80} has {limit} runs, the limit"
        raise Unprocessable.of(FieldError(column="project", reason=reason))


def _said(changes: dict[str, Any]) -> dict[str, Any]:
    return {"fields": sorted(changes)} | {name: changes[name] for name in ("name", "archived") if name in changes}
