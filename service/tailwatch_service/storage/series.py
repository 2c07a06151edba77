"""Series: the curves of a run, read from sealed chunks with the unsealed rows laid over them.

K steps in ascending order; every column is aligned to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from tailwatch_collectors.types import Phase
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.storage import chunks, schema, steps
from tailwatch_service.storage import scalars as scalars_of
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.scalars import Points
from tailwatch_service.storage.steps import DEFAULT_STREAM, Line
from tailwatch_service.types import SeriesKey, SeriesTable

_Columns = dict[str, NDArray[np.float64]]
_steps = schema.steps
_chunks = schema.series_chunks
_END = 2**62


class _Curve(NamedTuple):
    """One scalar over all attempts."""

    steps_K: NDArray[np.int64]
    attempts_K: NDArray[np.int64]
    values_K: NDArray[np.float64]


def read(
    db: Database,
    run_id: str,
    *,
    metrics: Sequence[str],
    stream: str = DEFAULT_STREAM,
    phase: Phase | None = None,
    update_index: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    max_points: int | None = None,
) -> SeriesTable:
    """Curves of one run.

    Args:
        db: the database.
        run_id: the run.
        metrics: names of the registry, `coverage`, or names of scalars.
        stream: policy, adapter or eval stream.
        phase: None: the headline series; the table's `series` says which it is.
        update_index: for the update phases; None: 0.
        from_step: first step wanted; None: from the start.
        to_step: last step wanted; None: to the end.
        max_points: most steps in the answer, smallest and largest values preserved; None: all.
    """
    from_registry = [name for name in metrics if _is_metric(name)]
    with db.read() as connection:
        found = steps.lines(connection, run_id, stream=stream, phase=phase, update_index=update_index)
        parts = [_line(connection, line, from_registry, from_step, to_step) for line in found]
        scalars = {
            name: _scalar(scalars_of.read(connection, run_id, stream=stream, name=name), found, from_step, to_step)
            for name in metrics
            if name not in from_registry
        }
    steps_K, attempts_K, columns = _joined(parts, [line.key.attempt for line in found], from_registry)
    steps_K, attempts_K, columns = _with_scalars(steps_K, attempts_K, columns, scalars)
    key = found[-1].key if found else SeriesKey(run_id, stream, 1, phase or "rollout", update_index or 0)
    table = SeriesTable(series=key, steps_K=steps_K, attempts_K=attempts_K, columns={n: columns[n] for n in metrics})
    return table if max_points is None else downsample(table, max_points=max_points)


def downsample(table: SeriesTable, *, max_points: int) -> SeriesTable:
    """At most `max_points` steps: of each bucket of neighbouring steps those where a column is smallest or largest.

    The first and the last step stay.
    """
    K = len(table.steps_K)
    if max_points >= K or max_points < 1:
        return table
    keep = {0, K - 1} if max_points > 1 else {K - 1}
    columns = [column_K for column_K in table.columns.values() if not np.isnan(column_K).all()]
    buckets = (max_points - len(keep)) // max(1, 2 * len(columns))
    edges = np.linspace(0, K, buckets + 1).astype(int) if buckets else np.empty(0, int)
    for start, stop in itertools.pairwise(edges):
        for column_K in columns:
            part = column_K[start:stop]
            if not np.isnan(part).all():
                keep |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    rows = np.array(sorted(keep), int)
    return SeriesTable(
        series=table.series,
        steps_K=table.steps_K[rows],
        attempts_K=table.attempts_K[rows],
        columns={name: column_K[rows] for name, column_K in table.columns.items()},
    )


def _is_metric(name: str) -> bool:
    return name in METRICS or name == chunks.COVERAGE


def _line(
    connection: sa.Connection, line: Line, names: Sequence[str], from_step: int | None, to_step: int | None
) -> tuple[NDArray[np.int64], _Columns]:
    """Steps and columns of one attempt, cut to what it shows."""
    low = line.first_step if from_step is None else max(from_step, line.first_step)
    high = min(step for step in (to_step, _last(line), _END) if step is not None)
    sealed_steps, sealed = _sealed(connection, line.series_id, names, low, high)
    open_steps, over = _unsealed(connection, line.series_id, names, low, high)
    # The first of equal steps wins, so the rows stand before the chunks.
    steps_K, rows = np.unique(np.concatenate((open_steps, sealed_steps)), return_index=True)
    columns = {name: np.concatenate((over[name], sealed[name]))[rows] for name in names}
    shown = (steps_K >= low) & (steps_K <= high)
    return steps_K[shown], {name: column_K[shown] for name, column_K in columns.items()}


def _last(line: Line) -> int | None:
    return None if line.end_step is None else line.end_step - 1


def _sealed(
    connection: sa.Connection, series_id: int, names: Sequence[str], low: int, high: int
) -> tuple[NDArray[np.int64], _Columns]:
    where = sa.and_(
        _chunks.c.series_id == series_id,
        _chunks.c.name.in_([*names, chunks.STEP]),
        _chunks.c.chunk.between(low // chunks.CHUNK, high // chunks.CHUNK),
    )
    query = sa.select(_chunks.c.name, _chunks.c.chunk, _chunks.c.data).where(where)
    blobs: dict[str, dict[int, bytes]] = {name: {} for name in (*names, chunks.STEP)}
    for name, chunk, data in connection.execute(query):
        blobs[name][chunk] = data
    numbers = sorted(blobs[chunks.STEP])
    steps_K = np.frombuffer(b"".join(blobs[chunks.STEP][chunk] for chunk in numbers), np.int64)
    columns: _Columns = {}
    for name in names:
        # A metric that no step of a chunk has is not stored: as many NaN as the chunk has steps.
        parts = (blobs[name].get(n) or np.full(len(blobs[chunks.STEP][n]) // 8, np.nan).tobytes() for n in numbers)
        columns[name] = np.frombuffer(b"".join(parts), np.float64)
    return steps_K, columns


def _unsealed(
    connection: sa.Connection, series_id: int, names: Sequence[str], low: int, high: int
) -> tuple[NDArray[np.int64], _Columns]:
    where = sa.and_(
        _steps.c.series_id == series_id,
        _steps.c.sealed.is_(sa.false()),
        _steps.c.closed.is_(sa.true()),
        _steps.c.step.between(low, high),
    )
    query = sa.select(_steps.c.step, _steps.c.coverage, _steps.c.metrics).where(where).order_by(_steps.c.step)
    rows = connection.execute(query).all()
    columns = chunks.columns_of([(row.coverage, row.metrics) for row in rows])
    missing = np.full(len(rows), np.nan)
    return np.array([row.step for row in rows], np.int64), {name: columns.get(name, missing) for name in names}


def _joined(
    parts: Sequence[tuple[NDArray[np.int64], _Columns]], attempts: Sequence[int], names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], _Columns]:
    """The attempts one after the other; they do not overlap."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), {name: np.empty(0) for name in names}
    steps_K = np.concatenate([part for part, _ in parts])
    attempts_K = np.concatenate(
        [np.full(len(part), attempt, np.int64) for (part, _), attempt in zip(parts, attempts, strict=True)]
    )
    return steps_K, attempts_K, {name: np.concatenate([columns[name] for _, columns in parts]) for name in names}


def _scalar(points: Sequence[Points], found: Sequence[Line], from_step: int | None, to_step: int | None) -> _Curve:
    """One scalar over all attempts, each cut where a later one begins, be it by a scalar or by a batch."""
    starts = {line.key.attempt: line.first_step for line in found}
    for part in points:
        starts[part.attempt] = min(int(part.steps_K[0]), starts.get(part.attempt, _END))
    pieces = [_Curve(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for part in points:
        end = min((start for attempt, start in starts.items() if attempt > part.attempt), default=_END)
        high = min(end - 1, _END if to_step is None else to_step)
        shown = (part.steps_K <= high) & (part.steps_K >= (0 if from_step is None else from_step))
        steps_K = part.steps_K[shown]
        pieces.append(_Curve(steps_K, np.full(len(steps_K), part.attempt, np.int64), part.values_K[shown]))
    return _Curve(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))


def _with_scalars(
    steps_K: NDArray[np.int64], attempts_K: NDArray[np.int64], columns: _Columns, scalars: Mapping[str, _Curve]
) -> tuple[NDArray[np.int64], NDArray[np.int64], _Columns]:
    """Columns of metrics and scalars on the union of their steps."""
    if not scalars:
        return steps_K, attempts_K, columns
    union_K = np.unique(np.concatenate([steps_K, *(curve.steps_K for curve in scalars.values())]))
    joined_attempts_K = np.zeros(len(union_K), np.int64)
    joined: _Columns = {}
    for name, curve in scalars.items():
        rows = np.searchsorted(union_K, curve.steps_K)
        joined_attempts_K[rows] = curve.attempts_K
        joined[name] = np.full(len(union_K), np.nan)
        joined[name][rows] = curve.values_K
    rows = np.searchsorted(union_K, steps_K)
    joined_attempts_K[rows] = attempts_K
    for name, column_K in columns.items():
        joined[name] = np.full(len(union_K), np.nan)
        joined[name][rows] = column_K
    return union_K, joined_attempts_K, joined
