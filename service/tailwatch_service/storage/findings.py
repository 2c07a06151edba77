"""Findings and the state of judging: what rules found at which step, and where each run's judgement stands.

Both are written inside the transaction in which a step closes, so a step is judged once or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import sqlalchemy as sa

from tailwatch_collectors.types import Phase
from tailwatch_service.storage import schema
from tailwatch_service.storage.batches import is_series
from tailwatch_service.storage.database import Database, upsert
from tailwatch_service.storage.steps import DEFAULT_STREAM, lines
from tailwatch_service.types import Finding, SeriesKey, StepKey

_table = schema.findings
_judgements = schema.judgements
_COLUMNS = tuple(field.name for field in fields(Finding))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Where the judgement of one stream of a run stands."""

    run_id: str
    stream: str
    phase: Phase
    """Phase of the series that is judged."""
    attempt: int
    series_id: int
    last_step: int
    """Last step closed in order; later ones are judged, earlier ones came too late."""
    last_closed_at: float
    """Unix seconds at which a step last closed."""
    state: Mapping[str, Any]
    """What the rules remember, as plain JSON."""


class StepFinding(NamedTuple):
    """A finding and where it stands."""

    step: int
    finding: Finding
    revised: bool
    """A late batch has changed the step since it was judged."""


def insert(connection: sa.Connection, *, series_id: int, step: int, findings: Sequence[Finding]) -> None:
    """Store a step's findings inside the caller's write transaction."""
    rows = [{**_row(finding), "series_id": series_id, "step": step, "revised": False} for finding in findings]
    if rows:
        connection.execute(sa.insert(_table), rows)


def mark_revised(connection: sa.Connection, *, series_id: int, step: int) -> None:
    """Note inside the caller's write transaction that a late batch changed what was judged."""
    here = sa.and_(_table.c.series_id == series_id, _table.c.step == step)
    connection.execute(sa.update(_table).where(here).values(revised=True))


def of_step(db: Database, key: StepKey) -> list[StepFinding]:
    """The findings of one step, by rule and slice."""
    query = sa.select(_table).join(schema.series).where(is_series(key.series), _table.c.step == key.step)
    with db.read() as connection:
        return [_found(row) for row in connection.execute(query.order_by(_table.c.rule, _table.c.slice))]


def of_run(
    db: Database,
    run_id: str,
    *,
    stream: str = DEFAULT_STREAM,
    from_step: int | None = None,
    limit: int = 1000,
) -> list[StepFinding]:
    """The newest findings on the headline curve of a run, by step; at most `limit`."""
    made: list[StepFinding] = []
    with db.read() as connection:
        for line in lines(connection, run_id, stream=stream):
            query = sa.select(_table).where(_table.c.series_id == line.series_id)
            if line.end_step is not None:
                query = query.where(_table.c.step < line.end_step)
            if from_step is not None:
                query = query.where(_table.c.step >= from_step)
            rows = connection.execute(query.order_by(_table.c.step.desc(), _table.c.rule).limit(limit))
            made += [_found(row) for row in rows]
    return sorted(made, key=lambda one: (one.step, one.finding.rule, one.finding.slice))[-limit:]


def judgement(connection: sa.Connection, run_id: str, *, stream: str) -> Judgement | None:
    """Where a stream's judgement stands, locked until the caller's write transaction ends; None before its first."""
    where = sa.and_(_judgements.c.run_id == run_id, _judgements.c.stream == stream)
    row = connection.execute(sa.select(_judgements).where(where).with_for_update()).one_or_none()
    return None if row is None else Judgement(**row._mapping)


def put_judgement(connection: sa.Connection, judged: Judgement) -> None:
    """Store where a stream's judgement stands, inside the caller's write transaction."""
    row = asdict(judged)
    columns = tuple(name for name in row if name not in {"run_id", "stream"})
    upsert(connection, _judgements, [row], key=("run_id", "stream"), update=columns)


def silent(db: Database, *, stream: str, closed_before: float) -> list[Judgement]:
    """Judgements of running, unarchived runs in which no step has closed since `closed_before`."""
    runs = schema.runs
    live = sa.and_(runs.c.finished_at.is_(None), runs.c.archived_at.is_(None))
    query = (
        sa.select(_judgements)
        .join(runs, runs.c.run_id == _judgements.c.run_id)
        .where(live, _judgements.c.stream == stream, _judgements.c.last_closed_at < closed_before)
    )
    with db.read() as connection:
        return [Judgement(**row._mapping) for row in connection.execute(query)]


def closed_at(db: Database, run_id: str, *, stream: str) -> Judgement | None:
    """Where a stream's judgement stands, read only; None before its first."""
    where = sa.and_(_judgements.c.run_id == run_id, _judgements.c.stream == stream)
    with db.read() as connection:
        row = connection.execute(sa.select(_judgements).where(where)).one_or_none()
    return None if row is None else Judgement(**row._mapping)


def is_headline(connection: sa.Connection, key: SeriesKey) -> bool:
    """True for the series that rules judge: rollout, else update 0 of a stream that has no rollout."""
    if key.phase == "rollout":
        return True
    if key.phase != "update" or key.update_index != 0:
        return False
    series = schema.series
    rollout = sa.select(series.c.series_id).where(
        series.c.run_id == key.run_id, series.c.stream == key.stream, series.c.phase == "rollout"
    )
    return connection.execute(rollout.limit(1)).scalar() is None


def _row(finding: Finding) -> dict[str, Any]:
    row = asdict(finding)
    row["window_steps"] = row.pop("window")
    return row


def _found(row: sa.Row[Any]) -> StepFinding:
    values = {name: row._mapping["window_steps" if name == "window" else name] for name in _COLUMNS}
    return StepFinding(row.step, Finding(**values), row.revised)
