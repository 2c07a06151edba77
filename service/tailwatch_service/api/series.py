"""Route of series: step-indexed curves, thinned so that what stands out stays."""

from __future__ import annotations

import difflib
from typing import Annotated

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response

from tailwatch_collectors import wire
from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.types import MAX_STEP
from tailwatch_service import answers
from tailwatch_service.api.deps import LineDep, ReadableRun, ServicesDep
from tailwatch_service.errors import Unprocessable
from tailwatch_service.services import Services
from tailwatch_service.statistics.registry import HEADLINE, METRICS
from tailwatch_service.storage import scalars, series
from tailwatch_service.storage.chunks import COVERAGE
from tailwatch_service.types import SeriesTable

router = APIRouter(tags=["series"])

MAX_METRICS = 64
"""Most curves of one answer."""


@router.get(
    "/runs/{run}/series",
    responses={200: {"content": {wire.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
    summary="Curves over steps",
)
def get_series(
    request: Request,
    services: ServicesDep,
    run: ReadableRun,
    line: LineDep,
    metrics: Annotated[str | None, Query(description="Names, separated by commas; default: the headline.")] = None,
    from_step: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    to_step: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    max_points: Annotated[int | None, Query(ge=2, le=1_000_000)] = None,
) -> Response:
    """Metrics and scalars by step; NaN is null. `max_points` thins them: of neighbouring steps those stay at which a
    curve is smallest or largest. Arrow where the Accept header asks for it."""
    names = _names(services, run.run_id, line.stream, metrics)
    table = series.read(
        services.db,
        run.run_id,
        metrics=names,
        stream=line.stream,
        phase=line.phase,
        update_index=line.update_index,
        from_step=from_step,
        to_step=to_step,
    )
    if line.attempt is not None:
        table = _of_attempt(table, line.attempt)
    if max_points is not None:
        table = series.downsample(table, max_points=max_points)
    if wire.CONTENT_TYPE in request.headers.get("accept", ""):
        return Response(_arrow(table), media_type=wire.CONTENT_TYPE)
    return answers.json(
        {
            "run_id": run.run_id,
            "stream": table.series.stream,
            "phase": table.series.phase,
            "update_index": table.series.update_index,
            "steps": table.steps_K,
            "attempts": table.attempts_K,
            "metrics": dict(table.columns),
        }
    )


def _names(services: Services, run_id: str, stream: str, given: str | None) -> list[str]:
    """The names asked for.

    Raises:
        Unprocessable: unknown ones, each with what is close to it.
    """
    if given is None:
        return list(HEADLINE)
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    if not names or len(names) > MAX_METRICS:
        raise Unprocessable.of(FieldError(column="metrics", reason=f"{len(names)} names, expected 1 .. {MAX_METRICS}"))
    unknown = [name for name in names if name not in METRICS and name != COVERAGE]
    if unknown:
        known = set(scalars.names(services.db, run_id, stream=stream))
        wrong = [_unknown(name, [*METRICS, COVERAGE, *known]) for name in unknown if name not in known]
        if wrong:
            raise Unprocessable.of(*wrong)
    return names


def _unknown(name: str, known: list[str]) -> FieldError:
    close = difflib.get_close_matches(name[:128], known, n=3, cutoff=0.6)
    hint = f"; close to it: {', '.join(close)}" if close else "; GET /api/v1/registry lists all"
    return FieldError(column="metrics", reason=f"{name!r:.130} is neither a metric nor a scalar of this run{hint}")


def _of_attempt(table: SeriesTable, attempt: int) -> SeriesTable:
    rows = np.flatnonzero(table.attempts_K == attempt)
    return SeriesTable(
        series=table.series._replace(attempt=attempt),
        steps_K=table.steps_K[rows],
        attempts_K=table.attempts_K[rows],
        columns={name: column_K[rows] for name, column_K in table.columns.items()},
    )


def _arrow(table: SeriesTable) -> bytes:
    columns = {"step": pa.array(table.steps_K), "attempt": pa.array(table.attempts_K)}
    columns |= {name: pa.array(values, from_pandas=True) for name, values in table.columns.items()}
    names = {"run_id": table.series.run_id, "stream": table.series.stream, "phase": table.series.phase}
    batch = pa.record_batch(columns).replace_schema_metadata(names)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
