"""Heartbeats: each rank's sign of life, sent every 60 s; the last one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database, larger, upsert

_table = schema.heartbeats


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """The last sign of life of one rank."""

    run_id: str
    attempt: int
    rank: int
    step: int | None
    """Step the rank was at, where it says."""
    payload: Mapping[str, Any]
    """What the collector counts: queued, dropped, failed, ..."""
    at: float
    """Unix seconds."""


def beat(
    db: Database,
    run_id: str,
    *,
    attempt: int,
    rank: int,
    now: float,
    step: int | None = None,
    payload: Mapping[str, Any] | None = None,
) -> None:
    """Store a rank's heartbeat over its last one.

    Raises:
        NotFound: no such run.
    """
    row = {"run_id": run_id, "attempt": attempt, "rank": rank, "step": step, "payload": dict(payload or {}), "at": now}
    runs = schema.runs
    with db.write() as connection:
        seen = {"last_seen_at": larger(runs.c.last_seen_at, sa.literal(now)), "last_heartbeat_at": now}
        if connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(seen)).rowcount == 0:
            raise NotFound(f"run {run_id!r:.80} does not exist")
        upsert(connection, _table, [row], key=("run_id", "attempt", "rank"), update=("step", "payload", "at"))


def of_run(db: Database, run_id: str, *, attempt: int | None = None) -> list[Heartbeat]:
    """The last heartbeat of every rank, by attempt and rank."""
    query = sa.select(_table).where(_table.c.run_id == run_id).order_by(_table.c.attempt, _table.c.rank)
    if attempt is not None:
        query = query.where(_table.c.attempt == attempt)
    with db.read() as connection:
        return [Heartbeat(**row._mapping) for row in connection.execute(query)]
