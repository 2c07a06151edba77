"""Pending steps: what the closer has left to do, and the transaction in which a step closes.

A step is pending while it is open, and again when a batch arrives after it closed. The closer reads and merges
outside any lock; `commit` takes the step's row lock and goes through only if the step still has exactly the batches
that were merged. Two replicas that close the same step therefore close it once, and none merges half of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from tailwatch_service.storage import events, schema
from tailwatch_service.storage.batches import is_series
from tailwatch_service.storage.database import Database, larger, upsert
from tailwatch_service.types import Event, SeriesKey, StepKey

_steps = schema.steps
_series = schema.series
_batches = schema.batches
_blobs = schema.batch_summaries
_pending = _steps.c.pending.is_(sa.true())


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingStep:
    """A step that waits to be closed or merged again."""

    key: StepKey
    series_id: int
    closed: bool
    batch_count: int
    """Batches it has; `commit` compares."""
    merged_count: int
    """Batches that were merged when it last closed; 0 while open."""
    finals: Mapping[int, bool]
    """For each rank that delivered: did it send `final`?"""
    moved_on: frozenset[int]
    """Ranks that sent anything for a later step of the series."""
    world_size: int | None
    """Largest one its batches declare, else the run's; None: unknown."""
    last_at: float
    """Unix seconds of its last batch."""


class Parts(NamedTuple):
    """The serialised summaries of a step, in the order in which they are merged."""

    base: bytes | None
    """The step's own summary, where those of its first batches are dropped already; merged first."""
    summaries: list[bytes]
    """Those of its batches by (rank, part); beside a base only those not merged yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What closing a step writes into its row."""

    coverage: float
    expected_ranks: int
    tokens: int
    sequences: int
    metrics: Mapping[str, float]
    missing: Mapping[str, str]
    summary: bytes


def of_series(db: Database, key: SeriesKey, *, after: int = -1, limit: int = 256) -> list[PendingStep]:
    """Pending steps of one series above `after`, ascending; at most `limit`."""
    runs, ranks = schema.runs, schema.series_ranks
    with db.read() as connection:
        query = sa.select(_series.c.series_id, runs.c.world_size).join(runs).where(is_series(key))
        found = connection.execute(query).one_or_none()
        if found is None:
            return []
        series_id, run_world_size = found
        query_steps = sa.select(_steps).where(_steps.c.series_id == series_id, _steps.c.step > after, _pending)
        rows = connection.execute(query_steps.order_by(_steps.c.step).limit(limit)).all()
        if not rows:
            return []
        moved = sa.select(ranks.c.rank, ranks.c.last_step).where(ranks.c.series_id == series_id)
        last_steps = {row.rank: row.last_step for row in connection.execute(moved)}
        delivered = _delivered(connection, series_id, [row.step for row in rows])
    return [
        PendingStep(
            key=StepKey(key, row.step),
            series_id=series_id,
            closed=row.closed,
            batch_count=row.batch_count,
            merged_count=row.merged_count,
            finals={rank: final for rank, (final, _) in delivered[row.step].items()},
            moved_on=frozenset(rank for rank, step in last_steps.items() if step > row.step),
            world_size=max((w for _, w in delivered[row.step].values() if w is not None), default=run_world_size),
            last_at=row.last_at,
        )
        for row in rows
    ]


def series_due(db: Database, *, open_before: float, late_before: float) -> list[SeriesKey]:
    """Series with work to do.

    Args:
        db: the database.
        open_before: those with an open step whose last batch came before this, in Unix seconds.
        late_before: those with a closed step that has a batch to merge, come before this.
    """
    columns = [_series.c[name] for name in SeriesKey._fields]
    quiet_since: sa.ColumnElement[float] = sa.case((_steps.c.closed, late_before), else_=open_before)
    query = sa.select(*columns).join(_steps).where(_pending, _steps.c.last_at < quiet_since).distinct()
    with db.read() as connection:
        return [SeriesKey(*row) for row in connection.execute(query)]


def previous_ranks(db: Database, step: PendingStep) -> frozenset[int] | None:
    """Ranks of the series' closed step before this one; None where there is none."""
    number = step.key.step
    closed = sa.and_(_steps.c.series_id == step.series_id, _steps.c.step < number, _steps.c.closed.is_(sa.true()))
    with db.read() as connection:
        before = connection.execute(sa.select(sa.func.max(_steps.c.step)).where(closed)).scalar()
        if before is None:
            return None
        where = sa.and_(_batches.c.series_id == step.series_id, _batches.c.step == before)
        return frozenset(connection.execute(sa.select(_batches.c.rank).where(where).distinct()).scalars())


def recent_starts(db: Database, series_id: int, *, limit: int = 33) -> list[float]:
    """Times at which the series' newest closed steps began, by step; Unix seconds."""
    where = sa.and_(_steps.c.series_id == series_id, _steps.c.closed.is_(sa.true()))
    query = sa.select(_steps.c.first_at).where(where).order_by(_steps.c.step.desc()).limit(limit)
    with db.read() as connection:
        return list(connection.execute(query).scalars())[::-1]


def parts(db: Database, step: PendingStep) -> Parts | None:
    """What is to be merged; None where the step has changed since it was read."""
    here = sa.and_(_batches.c.series_id == step.series_id, _batches.c.step == step.key.step)
    query = sa.select(_batches.c.merged, _blobs.c.summary).outerjoin(_blobs).where(here)
    own = schema.step_summaries
    with db.read() as connection:
        rows = connection.execute(query.order_by(_batches.c.rank, _batches.c.part)).all()
        if len(rows) != step.batch_count:
            return None
        if all(row.summary is not None for row in rows):
            return Parts(None, [bytes(row.summary) for row in rows])
        mine = sa.and_(own.c.series_id == step.series_id, own.c.step == step.key.step)
        base = connection.execute(sa.select(own.c.summary).where(mine)).scalar_one()
    return Parts(bytes(base), [bytes(row.summary) for row in rows if not row.merged])


def commit(
    db: Database,
    step: PendingStep,
    merged: Merged,
    *,
    now: float,
    judge: Callable[[sa.Connection], None] = lambda _connection: None,
) -> Event | None:
    """Close a step, or raise its revision, with its event; None where it changed meanwhile (it stays pending).

    `judge` is called last, inside the transaction.
    """
    series, number = step.key
    here = sa.and_(_steps.c.series_id == step.series_id, _steps.c.step == number)
    with db.write() as connection:
        locked = sa.select(_steps.c.batch_count, _steps.c.merged_count, _steps.c.closed_at, _steps.c.revision)
        row = connection.execute(locked.where(here).with_for_update()).one_or_none()
        if row is None or (row.batch_count, row.merged_count) != (step.batch_count, step.merged_count):
            return None
        revision = row.revision + 1 if step.closed else 0
        connection.execute(
            sa.update(_steps)
            .where(here)
            .values(
                closed=True,
                pending=False,
                sealed=False,
                revision=revision,
                merged_count=step.batch_count,
                closed_at=now if row.closed_at is None else row.closed_at,
                merged_at=now,
                **_row(merged),
            )
        )
        blob = {"series_id": step.series_id, "step": number, "summary": merged.summary}
        upsert(connection, schema.step_summaries, [blob], key=("series_id", "step"), update=("summary",))
        mine = sa.and_(_batches.c.series_id == step.series_id, _batches.c.step == number)
        connection.execute(sa.update(_batches).where(mine, _batches.c.merged.is_(sa.false())).values(merged=True))
        largest = schema.runs.c.last_step
        run = sa.update(schema.runs).where(schema.runs.c.run_id == series.run_id)
        connection.execute(run.values(last_step=larger(sa.func.coalesce(largest, number), sa.literal(number))))
        event = events.insert(
            connection,
            series.run_id,
            kind="step_revised" if step.closed else "step_closed",
            now=now,
            step=number,
            attempt=series.attempt,
            payload=_pointer(series, revision=revision, coverage=merged.coverage),
        )
        judge(connection)
        return event


def drop_summaries(db: Database, *, merged_before: float, limit: int = 20) -> int:
    """Drop the batch summaries of steps that were merged before this moment; how many steps.

    Keys and digests stay; a batch that still arrives is merged into the step's own summary.
    """
    kept = sa.and_(
        _steps.c.summaries_kept.is_(sa.true()), _steps.c.merged_at < merged_before, _steps.c.pending.is_(sa.false())
    )
    with db.write() as connection:
        query = sa.select(_steps.c.series_id, _steps.c.step).where(kept).limit(limit).with_for_update()
        rows = [tuple(row) for row in connection.execute(query)]
        for series_id, step in rows:
            here = sa.and_(_batches.c.series_id == series_id, _batches.c.step == step)
            ids = sa.select(_batches.c.batch_id).where(here)
            connection.execute(sa.delete(_blobs).where(_blobs.c.batch_id.in_(ids)))
            one = sa.and_(_steps.c.series_id == series_id, _steps.c.step == step)
            connection.execute(sa.update(_steps).where(one).values(summaries_kept=False))
    return len(rows)


def _delivered(
    connection: sa.Connection, series_id: int, numbers: list[int]
) -> dict[int, dict[int, tuple[bool, int | None]]]:
    """For each step and each rank that delivered: whether it sent `final`, and the world size it declared."""
    final = sa.func.max(sa.case((_batches.c.final, 1), else_=0))
    columns = (_batches.c.step, _batches.c.rank, final, sa.func.max(_batches.c.world_size))
    where = sa.and_(_batches.c.series_id == series_id, _batches.c.step.in_(numbers))
    found: dict[int, dict[int, tuple[bool, int | None]]] = {number: {} for number in numbers}
    for number, rank, sent_final, world_size in connection.execute(
        sa.select(*columns).where(where).group_by(_batches.c.step, _batches.c.rank)
    ):
        found[number][rank] = (bool(sent_final), world_size)
    return found


def _row(merged: Merged) -> dict[str, Any]:
    return {
        "coverage": merged.coverage,
        "expected_ranks": merged.expected_ranks,
        "tokens": merged.tokens,
        "sequences": merged.sequences,
        "metrics": dict(merged.metrics),
        "missing": dict(merged.missing),
    }


def _pointer(series: SeriesKey, *, revision: int, coverage: float) -> dict[str, Any]:
    return {
        "stream": series.stream,
        "phase": series.phase,
        "update_index": series.update_index,
        "revision": revision,
        "coverage": coverage,
    }
