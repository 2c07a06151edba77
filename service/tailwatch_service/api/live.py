"""Route of the live stream: a run's event log as server-sent events.

Each message's id is the event's sequence number and its data a pointer at what changed, so a client that was away
resumes with Last-Event-ID and misses nothing. `reset` means: your id is not in the log; read everything anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from sse_starlette.sse import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from tailwatch_collectors.types import MAX_STEP
from tailwatch_service import answers
from tailwatch_service.api.deps import ReadableRun, ServicesDep
from tailwatch_service.errors import TooManyRequests
from tailwatch_service.services import Services
from tailwatch_service.storage import events
from tailwatch_service.types import Event

router = APIRouter(tags=["live"])

PAGE = 500
"""Most events read at once."""

RETRY_MS = 1000
"""How long a browser waits before it connects again."""


@router.get(
    "/runs/{run}/live",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    summary="Server-sent events",
)
async def get_live(
    services: ServicesDep,
    run: ReadableRun,
    after: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    last_event_id: Annotated[str | None, Header(max_length=32)] = None,
) -> Response:
    """Events after `Last-Event-ID`, else after `after`, else from now on; then as they happen."""
    limit = services.settings.limits.live_streams
    if services.hub.streams >= limit:
        raise TooManyRequests(f"{limit} live streams are open, the limit", retry_after_s=10.0)
    first, newest = await run_in_threadpool(events.bounds, services.db, run.run_id)
    start, known = _start(last_event_id, after, first=first, newest=newest)
    return EventSourceResponse(
        stream(services, run.run_id, after=start, reset=not known),
        ping=services.settings.live_heartbeat_s,
        sep="\n",
    )


def _start(last_event_id: str | None, after: int | None, *, first: int, newest: int) -> tuple[int, bool]:
    """Sequence number after which to begin, and whether the client's own id still is in the log."""
    given: int | None = after
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdecimal()):
            return newest, False
        given = int(last_event_id)
    if given is None:
        return newest, True
    # An id just below the first event kept has missed nothing.
    return (given, True) if first - 1 <= given <= newest else (newest, False)


async def stream(services: Services, run_id: str, *, after: int, reset: bool) -> AsyncIterator[dict[str, Any]]:
    """The messages of one stream, until the client leaves or the service stops."""
    services.counters.live_streams.inc()
    try:
        with services.hub.listen(run_id) as bell:
            if reset:
                pointer = answers.dumps({"run_id": run_id, "seq": after}).decode()
                yield {"event": "reset", "id": str(after), "data": pointer, "retry": RETRY_MS}
            else:
                yield {"comment": "open", "retry": RETRY_MS}
            while not services.hub.closed:
                bell.clear()
                found = await run_in_threadpool(events.after, services.db, run_id, seq=after, limit=PAGE)
                for event in found:
                    after = event.seq
                    yield message(event)
                if len(found) < PAGE:
                    # Other replicas write too, and ring no bell here.
                    with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                        await asyncio.wait_for(bell.wait(), services.settings.live_poll_s)
    finally:
        services.counters.live_streams.dec()


def message(event: Event) -> dict[str, Any]:
    """An event as a message: where to look, not what is there."""
    pointer = {
        "run_id": event.run_id,
        "seq": event.seq,
        "kind": event.kind,
        "at": event.at,
        "step": event.step,
        "attempt": event.attempt,
        **{
            name: event.payload[name]
            for name in ("stream", "phase", "update_index", "revision", "alert_id", "rule", "severity")
            if name in event.payload
        },
    }
    return {"id": str(event.seq), "data": answers.dumps(pointer).decode()}
