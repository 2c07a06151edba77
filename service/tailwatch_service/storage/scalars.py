"""Scalars: named numbers per step that the trainer sends beside its batches (reward, grad_norm, ...).

One clustered row per (run, stream, name, attempt, step); the last write wins. A NaN is stored as NULL: it does not
exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from tailwatch_service.storage import runs, schema
from tailwatch_service.storage.database import Database, upsert

_KEY = ("run_id", "stream", "name", "attempt", "step")
_table = schema.scalars


class Scalar(NamedTuple):
    """One number of one step."""

    name: str
    step: int
    value: float


class Points(NamedTuple):
    """One scalar of one attempt; K steps in ascending order."""

    attempt: int
    steps_K: NDArray[np.int64]
    values_K: NDArray[np.float64]


def put(db: Database, run_id: str, *, stream: str, attempt: int, values: Iterable[Scalar], now: float) -> int:
    """Store scalars, over what was stored under the same step and name; how many."""
    fixed = {"run_id": run_id, "stream": stream, "attempt": attempt}
    # The last of equal keys wins here too: one statement must not touch a row twice.
    last = {(value.name, value.step): value.value for value in values}
    rows = [
        {**fixed, "name": name, "step": step, "value": None if math.isnan(value) else value}
        for (name, step), value in last.items()
    ]
    with db.write() as connection:
        upsert(connection, _table, rows, key=_KEY, update=("value",))
        runs.touch(connection, [run_id], now=now)
    return len(rows)


def names(db: Database, run_id: str, *, stream: str | None = None) -> list[str]:
    """Names of all scalars of a run, sorted."""
    query = sa.select(_table.c.name).where(_table.c.run_id == run_id).distinct().order_by(_table.c.name)
    if stream is not None:
        query = query.where(_table.c.stream == stream)
    with db.read() as connection:
        return list(connection.execute(query).scalars())


def read(connection: sa.Connection, run_id: str, *, stream: str, name: str) -> list[Points]:
    """One scalar by attempt, attempts ascending."""
    where = sa.and_(_table.c.run_id == run_id, _table.c.stream == stream, _table.c.name == name)
    query = sa.select(_table.c.attempt, _table.c.step, _table.c.value).where(where)
    rows = connection.execute(query.order_by(_table.c.attempt, _table.c.step)).all()
    by_attempt: dict[int, list[tuple[int, float]]] = {}
    for attempt, step, value in rows:
        by_attempt.setdefault(attempt, []).append((step, math.nan if value is None else value))
    return [
        Points(attempt, np.array([s for s, _ in points], np.int64), np.array([v for _, v in points], np.float64))
        for attempt, points in by_attempt.items()
    ]


def latest(db: Database, run_id: str, *, stream: str = "train") -> Mapping[str, tuple[int, float]]:
    """Step and value of each scalar's largest step in its latest attempt."""
    here = sa.and_(_table.c.run_id == run_id, _table.c.stream == stream)
    found: dict[str, tuple[int, float]] = {}
    for name in names(db, run_id, stream=stream):
        query = sa.select(_table.c.step, _table.c.value).where(here, _table.c.name == name)
        with db.read() as connection:
            row = connection.execute(query.order_by(_table.c.attempt.desc(), _table.c.step.desc()).limit(1)).one()
        found[name] = (row.step, math.nan if row.value is None else row.value)
    return found
