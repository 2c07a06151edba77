"""Routes of batches: tokens as Arrow or JSON, and summaries.

The body is read on the event loop; decoding and summarising happen in a small pool of threads; the wait for the disk
is a future, so that many connections share one flush and none holds a thread meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from tailwatch_collectors import wire
from tailwatch_collectors.errors import WireError
from tailwatch_collectors.summary import SummaryError
from tailwatch_service import answers, auth, body
from tailwatch_service.errors import TailwatchServiceError, Unavailable
from tailwatch_service.ingest import decode
from tailwatch_service.ingest.records import SummaryMeta
from tailwatch_service.pipeline import COMMIT_TIMEOUT_S, Prepared, Processed
from tailwatch_service.services import Services, ServicesDep

router = APIRouter(tags=["ingest"])

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=256)]

_STORED: dict[int | str, dict[str, Any]] = {
    201: {"description": "Stored, and durable."},
    200: {"description": "A duplicate of what is stored."},
    409: {"description": "The key is stored with other content."},
    413: {"description": "Larger than a limit, which is named."},
    415: {"description": "Neither Arrow nor JSON."},
    422: {"description": "Not a wire record: names row, column and reason."},
}


def _body_of(*media_types: str) -> dict[str, Any]:
    content = {name: {"schema": {"type": "object"}} for name in media_types if name == decode.JSON}
    content |= {name: {"schema": {"type": "string", "format": "binary"}} for name in media_types if name != decode.JSON}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/runs/{run}/batches",
    status_code=201,
    responses=_STORED,
    openapi_extra=_body_of(wire.CONTENT_TYPE, decode.JSON),
    summary="Send one batch of per-token log-probs",
)
async def post_batch(
    run: str,
    request: Request,
    services: ServicesDep,
    principal: auth.Writer,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send one wire record (schema 1) as an Arrow IPC stream, or as JSON where it is small.

    Compressed inside Arrow (zstd, lz4) or by Content-Encoding (zstd, gzip). Acknowledged only once it is durable.
    """
    limits = services.settings.limits
    ignored: tuple[str, ...] = ()

    async def receive() -> Callable[[], Prepared]:
        media_type = body.media_type(request, accepted=decode.BATCH_TYPES)
        raw = await _read(
            request, services, limit=limits.json_bytes if media_type == decode.JSON else limits.body_bytes
        )
        encoding = body.encoding_of(request)

        def prepare() -> Prepared:
            nonlocal ignored
            incoming = decode.batch(
                raw,
                media_type=media_type,
                encoding=encoding,
                limits=limits,
                accept_text=services.settings.accept_text,
            )
            ignored = incoming.ignored_columns
            auth.check_run(services, principal, run)
            return services.pipeline.prepare(
                incoming.batch, run_id=run, body=incoming.body, idempotency_key=idempotency_key
            )

        return prepare

    processed = await _process(services, receive, kind="tokens")
    return _answer(processed, ignored)


@router.post(
    "/runs/{run}/summaries",
    status_code=201,
    responses=_STORED,
    openapi_extra=_body_of(*decode.SUMMARY_TYPES),
    summary="Send one serialised summary in place of tokens",
)
async def post_summary(
    run: str,
    request: Request,
    services: ServicesDep,
    principal: auth.Writer,
    meta: Annotated[SummaryMeta, Query()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a summary made at the edge: the bytes of `tailwatch_collectors.summary.to_bytes` as
    application/octet-stream, the batch's metadata as query parameters."""
    limits = services.settings.limits

    async def receive() -> Callable[[], Prepared]:
        body.media_type(request, accepted=decode.SUMMARY_TYPES)
        raw = await _read(request, services, limit=limits.json_bytes)
        encoding = body.encoding_of(request)

        def prepare() -> Prepared:
            data = body.decompress(raw, encoding=encoding, limit=limits.json_bytes)
            auth.check_run(services, principal, run)
            checked = decode.summary_meta(meta.model_dump())
            return services.pipeline.prepare_summary(data, meta=checked, run_id=run, idempotency_key=idempotency_key)

        return prepare

    return _answer(await _process(services, receive, kind="summary"), ())


async def _read(request: Request, services: Services, *, limit: int) -> bytes:
    raw = await body.read(request, limit=limit)
    services.counters.bytes.inc(len(raw))
    return raw


async def _process(services: Services, receive: Callable[[], Any], *, kind: str) -> Processed:
    """Receive, prepare in the pool, store, and count what became of it."""
    counters = services.counters
    try:
        prepare = await receive()
        started = time.perf_counter()
        prepared = await asyncio.get_running_loop().run_in_executor(services.pool, prepare)
        processed = await _stored(services, prepared)
    except TailwatchServiceError as error:
        counters.rejects.labels(str(error.status)).inc()
        raise
    except (WireError, SummaryError):
        counters.rejects.labels("422").inc()
        raise
    except OSError as error:
        counters.rejects.labels("503").inc()
        raise Unavailable("the tokens cannot be written to the disk at the moment") from error
    counters.seconds.observe(time.perf_counter() - started)
    counters.batches.labels(processed.outcome.status, kind).inc()
    if processed.outcome.status == "stored":
        counters.tokens.inc(processed.tokens)
    return processed


async def _stored(services: Services, prepared: Prepared) -> Processed:
    future = asyncio.wrap_future(services.pipeline.submit(prepared))
    try:
        return prepared.answer(await asyncio.wait_for(future, COMMIT_TIMEOUT_S))
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise Unavailable(f"the batch was not stored within {COMMIT_TIMEOUT_S:g} s") from error


def _answer(processed: Processed, ignored: tuple[str, ...]) -> Response:
    (series, step), rank, part = processed.outcome.key
    stored = processed.outcome.status == "stored"
    content = {
        "batch_id": processed.outcome.batch_id,
        "status": processed.outcome.status,
        "step": step,
        "attempt": series.attempt,
        "phase": series.phase,
        "rank": rank,
        "part": part,
        "sequences": processed.sequences,
        "tokens": processed.tokens,
        "metrics": processed.metrics,
        "ignored_columns": ignored,
        "directive": None,
    }
    return answers.json(content, status=201 if stored else 200)
