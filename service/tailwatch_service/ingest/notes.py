"""Routes of the small records: scalars, events, heartbeats."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from tailwatch_collectors.errors import FieldError
from tailwatch_service import answers, auth, body
from tailwatch_service.errors import Unprocessable
from tailwatch_service.ingest import limits as limited
from tailwatch_service.ingest.records import EventIn, HeartbeatIn, ScalarsIn
from tailwatch_service.services import Services, ServicesDep
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.storage import events, heartbeats, runs, scalars
from tailwatch_service.storage.chunks import COVERAGE
from tailwatch_service.storage.scalars import Scalar
from tailwatch_service.types import Run

router = APIRouter(tags=["ingest"])

OWN_KINDS = frozenset({"step_closed", "step_revised", "run_created", "attempt_started", "state_changed"}) | {
    f"alert_{what}" for what in ("firing", "escalated", "acknowledged", "silenced", "unsilenced", "resolved")
}
"""Kinds of events that only the service makes."""

_LOOK_BACK = 256
_KEY = "idempotency_key"

Record = TypeVar("Record", bound=BaseModel)


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/runs/{run}/scalars", openapi_extra=_body_of(ScalarsIn), summary="Send numbers of one step")
async def post_scalars(request: Request, services: ServicesDep, run: auth.WritableRun) -> Response:
    """Send what the trainer computes anyway: reward, grad_norm, entropy, ... The last write of a name and step wins."""
    record = await _read(request, services, ScalarsIn)

    def store() -> dict[str, Any]:
        # A scalar under a computed metric's name would hide behind it: left out, and named.
        ignored = sorted(name for name in record.values if name in METRICS or name == COVERAGE)
        values = [
            Scalar(name, record.step, math.nan if value is None else value)
            for name, value in record.values.items()
            if name not in ignored
        ]
        limited.check_scalars(services.db, run.run_id, names=(v.name for v in values), limits=services.settings.limits)
        attempt = _attempt(services, run, record)
        stored = scalars.put(
            services.db, run.run_id, stream=record.stream, attempt=attempt, values=values, now=services.clock()
        )
        return {"step": record.step, "attempt": attempt, "stored": stored, "ignored": ignored, "directive": None}

    return answers.json(await run_in_threadpool(store))


@router.post("/runs/{run}/events", status_code=201, openapi_extra=_body_of(EventIn), summary="Send an event")
async def post_event(
    request: Request,
    services: ServicesDep,
    run: auth.WritableRun,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=256)] = None,
) -> Response:
    """Say that something happened: weight_sync, resume, checkpoint, config, finished, ... Sent again with the same
    Idempotency-Key it is stored once."""
    record = await _read(request, services, EventIn)
    if record.kind in OWN_KINDS:
        raise Unprocessable.of(FieldError(column="kind", reason=f"{record.kind!r} is a kind of the service's own"))
    limited.check_payload(record.payload, column="payload")

    def store() -> tuple[int, dict[str, Any]]:
        payload = dict(record.payload)
        if idempotency_key is not None:
            payload[_KEY] = idempotency_key
            for event in events.last(services.db, run.run_id, limit=_LOOK_BACK, kinds=(record.kind,)):
                if event.payload.get(_KEY) == idempotency_key:
                    return 200, {"seq": event.seq, "kind": event.kind, "status": "duplicate", "directive": None}
        event = events.append(
            services.db,
            run.run_id,
            kind=record.kind,
            now=services.clock(),
            step=record.step,
            attempt=_attempt(services, run, record),
            payload=payload,
        )
        return 201, {"seq": event.seq, "kind": event.kind, "status": "stored", "directive": None}

    status, content = await run_in_threadpool(store)
    services.hub.wake(run.run_id)
    return answers.json(content, status=status)


@router.post("/runs/{run}/heartbeat", openapi_extra=_body_of(HeartbeatIn), summary="Send a sign of life")
async def post_heartbeat(request: Request, services: ServicesDep, run: auth.WritableRun) -> Response:
    """Say every minute that a rank lives, and what its collector counts."""
    record = await _read(request, services, HeartbeatIn)
    extra = record.model_extra or {}
    limited.check_payload(extra, column="heartbeat")

    def store() -> dict[str, Any]:
        attempt = _attempt(services, run, record)
        now = services.clock()
        heartbeats.beat(
            services.db, run.run_id, attempt=attempt, rank=record.rank, now=now, step=record.step, payload=extra
        )
        return {"state": "running" if run.state == "lost" else run.state, "attempt": attempt, "directive": None}

    return answers.json(await run_in_threadpool(store))


async def _read(request: Request, services: Services, model: type[Record]) -> Record:
    return await body.read_json(request, model, limit=min(2**21, services.settings.limits.json_bytes))


def _attempt(services: Services, run: Run, record: Any) -> int:
    return runs.attempt_of(
        services.db, run.run_id, now=services.clock(), session=record.session, attempt=record.attempt
    )
