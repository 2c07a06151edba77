"""Events: a run's log, numbered without gaps, which the live stream, alerts and the pages follow.

The number is taken from the run's row in the transaction that inserts the event: readers never see 7 before 6, and
an event that was rolled back leaves no hole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database
from tailwatch_service.types import Event

FINISHED = "finished"
"""Kind of the event that ends a run."""


def append(
    db: Database,
    run_id: str,
    *,
    kind: str,
    now: float,
    step: int | None = None,
    attempt: int | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Event:
    """Append an event that a client sent. `finished` ends the run.

    Raises:
        NotFound: no such run.
    """
    with db.write() as connection:
        changes = {"last_seen_at": now} | ({"finished_at": now} if kind == FINISHED else {})
        connection.execute(sa.update(schema.runs).where(schema.runs.c.run_id == run_id).values(changes))
        return insert(connection, run_id, kind=kind, now=now, step=step, attempt=attempt, payload=payload)


def insert(
    connection: sa.Connection,
    run_id: str,
    *,
    kind: str,
    now: float,
    step: int | None = None,
    attempt: int | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Event:
    """Append an event inside the caller's write transaction.

    Raises:
        NotFound: no such run.
    """
    following = schema.runs.c.last_event_seq + 1
    statement = sa.update(schema.runs).where(schema.runs.c.run_id == run_id).values(last_event_seq=following)
    seq = connection.execute(statement.returning(schema.runs.c.last_event_seq)).scalar()
    if seq is None:
        raise NotFound(f"run {run_id!r} does not exist")
    made = Event(run_id=run_id, seq=seq, kind=kind, at=now, step=step, attempt=attempt, payload=dict(payload or {}))
    connection.execute(sa.insert(schema.events).values(asdict(made)))
    return made


def after(db: Database, run_id: str, *, seq: int, limit: int = 1000) -> list[Event]:
    """Events numbered above `seq`, in order; at most `limit`."""
    table = schema.events
    query = sa.select(table).where(table.c.run_id == run_id, table.c.seq > seq).order_by(table.c.seq).limit(limit)
    with db.read() as connection:
        return [Event(**row._mapping) for row in connection.execute(query)]


def last(db: Database, run_id: str, *, limit: int = 100, kinds: tuple[str, ...] = ()) -> list[Event]:
    """The newest events, in order; of these kinds only where any are named."""
    table = schema.events
    query = sa.select(table).where(table.c.run_id == run_id).order_by(table.c.seq.desc()).limit(limit)
    if kinds:
        query = query.where(table.c.kind.in_(kinds))
    with db.read() as connection:
        return [Event(**row._mapping) for row in connection.execute(query)][::-1]


def bounds(db: Database, run_id: str) -> tuple[int, int]:
    """Smallest and largest number kept; (0, 0) where there is none. An id below the first is too old to resume."""
    table = schema.events
    query = sa.select(sa.func.min(table.c.seq), sa.func.max(table.c.seq)).where(table.c.run_id == run_id)
    with db.read() as connection:
        first, newest = connection.execute(query).one()
    return first or 0, newest or 0
