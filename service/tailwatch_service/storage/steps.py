"""Steps as they are read: one in full, the newest, and which steps a run has.

A run's steps come in attempts. The steps of an attempt end where a later attempt's first step begins: after a resume
from step 50 the abandoned steps from 50 on are not shown any more. The headline series of a run is `rollout` if it
has any step, else `update` with update_index 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tailwatch_collectors.types import Phase
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database
from tailwatch_service.types import SeriesKey, StepKey, StepRecord

DEFAULT_STREAM = "train"

_table = schema.steps
_series = schema.series


class Line(NamedTuple):
    """One attempt's part of a curve."""

    series_id: int
    key: SeriesKey
    first_step: int
    end_step: int | None
    """First step of a later attempt: from here on this attempt is not shown. None: to its end."""


class StepRange(NamedTuple):
    """Closed steps of a curve."""

    key: SeriesKey
    """The latest attempt's series."""
    first: int
    last: int
    steps: int
    """How many there are."""


def lines(
    connection: sa.Connection,
    run_id: str,
    *,
    stream: str = DEFAULT_STREAM,
    phase: Phase | None = None,
    update_index: int | None = None,
) -> list[Line]:
    """The curve of one phase, by attempt; `phase` None: the headline series. Empty where there is none."""
    candidates: list[Phase] = ["rollout", "update"] if phase is None else [phase]
    for candidate in candidates:
        where = {"run_id": run_id, "stream": stream, "phase": candidate, "update_index": update_index or 0}
        query = sa.select(_series).where(*(_series.c[name] == value for name, value in where.items()))
        rows = connection.execute(query.order_by(_series.c.attempt)).all()
        if rows:
            break
    made: list[Line] = []
    end: int | None = None
    for row in reversed(rows):
        key = SeriesKey(*(row._mapping[name] for name in SeriesKey._fields))
        made.append(Line(row.series_id, key, row.first_step, end))
        end = row.first_step if end is None else min(end, row.first_step)
    return [line for line in reversed(made) if line.end_step is None or line.first_step < line.end_step]


def get(
    db: Database,
    run_id: str,
    *,
    step: int,
    stream: str = DEFAULT_STREAM,
    phase: Phase | None = None,
    update_index: int | None = None,
    attempt: int | None = None,
) -> StepRecord | None:
    """One step, open or closed, with its summary; None where it does not exist.

    Args:
        db: the database.
        run_id: the run.
        step: the step.
        stream: policy, adapter or eval stream.
        phase: None: the headline series.
        update_index: for the update phases; None: 0.
        attempt: None: the attempt that shows this step.
    """
    with db.read() as connection:
        if attempt is None:
            found = lines(connection, run_id, stream=stream, phase=phase, update_index=update_index)
            line = next((x for x in found if x.end_step is None or step < x.end_step), None)
            # An attempt ends where the next one shown begins, so the first that has not ended is the one.
            if line is None or step < line.first_step:
                return None
        else:
            line = _line_of(connection, run_id, stream=stream, phase=phase, update_index=update_index, attempt=attempt)
            if line is None:
                return None
        return _read(connection, line, step)


def latest(
    db: Database,
    run_id: str,
    *,
    stream: str = DEFAULT_STREAM,
    phase: Phase | None = None,
    update_index: int | None = None,
) -> StepRecord | None:
    """The largest closed step of the latest attempt that has one; None where no step is closed."""
    with db.read() as connection:
        for line in reversed(lines(connection, run_id, stream=stream, phase=phase, update_index=update_index)):
            query = _shown([sa.func.max(_table.c.step)], line).where(_table.c.closed.is_(sa.true()))
            step = connection.execute(query).scalar()
            if step is not None:
                return _read(connection, line, step)
    return None


def extent(
    db: Database,
    run_id: str,
    *,
    stream: str = DEFAULT_STREAM,
    phase: Phase | None = None,
    update_index: int | None = None,
) -> StepRange | None:
    """First, last and number of the closed steps shown; None where there is none."""
    step = _table.c.step
    columns: list[sa.ColumnElement[Any]] = [sa.func.min(step), sa.func.max(step), sa.func.count()]
    with db.read() as connection:
        found = lines(connection, run_id, stream=stream, phase=phase, update_index=update_index)
        closed = _table.c.closed.is_(sa.true())
        parts = [tuple(connection.execute(_shown(columns, line).where(closed)).one()) for line in found]
    parts = [part for part in parts if part[2]]
    if not parts:
        return None
    return StepRange(found[-1].key, min(p[0] for p in parts), max(p[1] for p in parts), sum(p[2] for p in parts))


def series_of(db: Database, run_id: str) -> list[SeriesKey]:
    """Every series a run has: which streams, phases and attempts."""
    columns = [_series.c[name] for name in SeriesKey._fields]
    query = sa.select(*columns).where(_series.c.run_id == run_id).order_by(*columns)
    with db.read() as connection:
        return [SeriesKey(*row) for row in connection.execute(query)]


def _line_of(
    connection: sa.Connection,
    run_id: str,
    *,
    stream: str,
    phase: Phase | None,
    update_index: int | None,
    attempt: int,
) -> Line | None:
    """The whole of one attempt, also of steps that a later attempt took over."""
    if phase is None:
        found = lines(connection, run_id, stream=stream)
        phase = found[-1].key.phase if found else "rollout"
    key = SeriesKey(run_id, stream, attempt, phase, update_index or 0)
    query = sa.select(_series.c.series_id, _series.c.first_step)
    row = connection.execute(query.where(*(_series.c[n] == v for n, v in key._asdict().items()))).one_or_none()
    return None if row is None else Line(row.series_id, key, row.first_step, None)


def _shown(columns: Sequence[sa.ColumnElement[Any]], line: Line) -> sa.Select[Any]:
    query: Any = sa.select(*columns).where(_table.c.series_id == line.series_id)
    if line.end_step is not None:
        query = query.where(_table.c.step < line.end_step)
    shown: sa.Select[Any] = query
    return shown


def _read(connection: sa.Connection, line: Line, step: int) -> StepRecord | None:
    blobs = schema.step_summaries
    same = sa.and_(blobs.c.series_id == _table.c.series_id, blobs.c.step == _table.c.step)
    query = sa.select(_table, blobs.c.summary).outerjoin(blobs, same)
    row = connection.execute(query.where(_table.c.series_id == line.series_id, _table.c.step == step)).one_or_none()
    if row is None:
        return None
    return StepRecord(
        key=StepKey(line.key, step),
        closed=row.closed,
        revision=row.revision,
        coverage=row.coverage,
        expected_ranks=row.expected_ranks,
        tokens=row.tokens,
        sequences=row.sequences,
        metrics=row.metrics,
        missing=row.missing,
        summary=bytes(row.summary or b""),
        first_at=row.first_at,
        closed_at=row.closed_at,
    )
