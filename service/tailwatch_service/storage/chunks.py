"""Chunks: closed steps as columns, 256 steps at a time, so that long series read fast.

A chunk is one blob of float64 per metric and one of the step numbers (`step`). It is sealed when all its steps are
closed and a later chunk has begun to close. A step that is merged again loses its seal: its row lies over the chunk
until the chunk is sealed once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database

CHUNK = 256
"""Steps in one chunk."""

STEP = "step"
"""Name under which a chunk's step numbers are stored, int64; no metric has it."""

COVERAGE = "coverage"
"""Name under which a step's coverage is read like a metric."""

_steps = schema.steps
_chunks = schema.series_chunks


def columns_of(rows: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, NDArray[np.float64]]:
    """Coverage and metrics of K steps as [K] columns; NaN where a step lacks a metric."""
    names = {name for _, metrics in rows for name in metrics}
    made = {name: np.array([metrics.get(name, np.nan) for _, metrics in rows], np.float64) for name in sorted(names)}
    return made | {COVERAGE: np.array([coverage for coverage, _ in rows], np.float64)}


def unsealed_series(db: Database) -> list[int]:
    """Ids of all series that have steps outside chunks."""
    query = sa.select(_steps.c.series_id).where(_steps.c.sealed.is_(sa.false())).distinct()
    with db.read() as connection:
        return list(connection.execute(query).scalars())


def seal(db: Database, series_id: int) -> int:
    """Seal every chunk of a series that is ready; how many."""
    with db.read() as connection:
        ready = _ready(connection, series_id)
    return sum(_seal_chunk(db, series_id, chunk) for chunk in ready)


def _ready(connection: sa.Connection, series_id: int) -> list[int]:
    here = _steps.c.series_id == series_id
    newest = connection.execute(sa.select(sa.func.max(_steps.c.step)).where(here, _steps.c.closed.is_(sa.true())))
    last = newest.scalar()
    if last is None:
        return []
    number = _chunk_of(_steps.c.step).label("chunk")
    before = _steps.c.step < last // CHUNK * CHUNK
    query = sa.select(number).where(here, _steps.c.sealed.is_(sa.false()), before).distinct().order_by(number)
    return list(connection.execute(query).scalars())


def _chunk_of(step: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return step.__floordiv__(CHUNK)


def _seal_chunk(db: Database, series_id: int, chunk: int) -> bool:
    span = sa.and_(_steps.c.series_id == series_id, _steps.c.step.between(chunk * CHUNK, chunk * CHUNK + CHUNK - 1))
    columns = (_steps.c.step, _steps.c.closed, _steps.c.pending, _steps.c.coverage, _steps.c.metrics)
    with db.write() as connection:
        rows = connection.execute(sa.select(*columns).where(span).order_by(_steps.c.step).with_for_update()).all()
        if not all(row.closed and not row.pending for row in rows):
            return False
        blobs: dict[str, NDArray[Any]] = dict(columns_of([(row.coverage, row.metrics) for row in rows]))
        blobs[STEP] = np.array([row.step for row in rows], np.int64)
        old = sa.and_(_chunks.c.series_id == series_id, _chunks.c.chunk == chunk)
        connection.execute(sa.delete(_chunks).where(old))
        made = [
            {"series_id": series_id, "name": name, "chunk": chunk, "data": values.tobytes()}
            for name, values in blobs.items()
        ]
        connection.execute(sa.insert(_chunks), made)
        connection.execute(sa.update(_steps).where(span).values(sealed=True))
    return True
