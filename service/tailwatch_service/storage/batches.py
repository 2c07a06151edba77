"""Batches: the one key space of everything that arrives, and the transaction that stores a group of them.

A batch's id is a digest of its key, so that its segment can be named before the row exists and a retry comes to the
same name. First stored wins: the same content, or another kind under the same key, is a duplicate; other content of
the same kind is a conflict. An Idempotency-Key stands for the batch it was first used with: used again with another
key it answers that batch if the content is the same, and is a conflict if not. It never adds a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from tailwatch_service.errors import KeyConflict, NotFound, TailwatchServiceError
from tailwatch_service.storage import runs, schema
from tailwatch_service.storage.database import Database, larger, upsert
from tailwatch_service.types import BatchKey, BatchKind, BatchOutcome, NewBatch, SeriesKey, StepKey

_table = schema.batches
_SERIES = ("run_id", "stream", "phase", "update_index", "attempt")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBatch:
    """A batch as it is stored, without its summary."""

    batch_id: str
    rank: int
    part: int
    kind: BatchKind
    digest: bytes
    """[32] SHA-256 of the content."""
    final: bool
    world_size: int | None
    train_version: int | None
    tokens: int
    sequences: int
    segment: str | None
    """Name of its token segment; None where tokens are not kept."""
    recorded_at: float | None
    received_at: float


def batch_id(key: BatchKey) -> str:
    """[32] hexadecimal digits, the same for the same key everywhere."""
    (series, step), rank, part = key
    text = orjson.dumps([*series, step, rank, part])
    return hashlib.blake2b(text, digest_size=16, person=b"tailwatch batch").hexdigest()


def of_step(db: Database, key: StepKey) -> list[StoredBatch]:
    """The batches of one step by rank and part; empty where there is no such step."""
    columns = (_table.c[name] for name in StoredBatch.__dataclass_fields__)
    query = sa.select(*columns).join(schema.series).where(is_series(key.series), _table.c.step == key.step)
    with db.read() as connection:
        rows = connection.execute(query.order_by(_table.c.rank, _table.c.part)).all()
    return [StoredBatch(**row._mapping) for row in rows]


def segments_in_use(db: Database, names: Collection[str]) -> set[str]:
    """Of these segments, those that a stored batch refers to."""
    wanted = {name.partition("-")[0] for name in names}
    found: set[str] = set()
    with db.read() as connection:
        for group in _groups(sorted(wanted), 500):
            query = sa.select(_table.c.segment).where(_table.c.batch_id.in_(group), _table.c.segment.is_not(None))
            found.update(connection.execute(query).scalars())
    return found & set(names)


def is_series(key: SeriesKey) -> sa.ColumnElement[bool]:
    """Condition on `series` that names one series."""
    return sa.and_(*(schema.series.c[name] == getattr(key, name) for name in _SERIES))


def store(
    connection: sa.Connection, group: Sequence[NewBatch], *, now: float
) -> list[BatchOutcome | TailwatchServiceError]:
    """Store a group of batches inside the caller's write transaction, in a handful of statements.

    Returns:
        For each batch its outcome, or `KeyConflict`, or `NotFound` where its run does not exist. What is refused
        leaves nothing behind and does not touch its neighbours.
    """
    ids = [batch_id(batch.key) for batch in group]
    existing_runs = _existing_runs(connection, {batch.key.step_key.series.run_id for batch in group})
    aliases = _aliases(connection, group)
    known = _known(connection, {*ids, *aliases.values()})
    answers: list[BatchOutcome | TailwatchServiceError] = []
    accepted: list[NewBatch] = []
    new_aliases: list[dict[str, str]] = []
    for batch, own_id in zip(group, ids, strict=True):
        run_id = batch.key.step_key.series.run_id
        if run_id not in existing_runs:
            answers.append(NotFound(f"run {run_id!r:.80} does not exist"))
            continue
        alias = None if batch.idempotency_key is None else (run_id, batch.idempotency_key)
        first_id = own_id if alias is None else aliases.get(alias, own_id)
        first = known.get(first_id)
        if first is not None and (conflict := _conflict(batch, own_id, first)) is not None:
            answers.append(conflict)
            continue
        if first is None:
            first = known[own_id] = _Known(own_id, batch.key, batch.kind, batch.digest)
            accepted.append(batch)
            answers.append(BatchOutcome(batch_id=own_id, status="stored", key=batch.key))
        else:
            answers.append(BatchOutcome(batch_id=first.batch_id, status="duplicate", key=first.key))
        if alias is not None and alias not in aliases:
            aliases[alias] = first.batch_id
            new_aliases.append({"run_id": run_id, "key": alias[1], "batch_id": first.batch_id})
    if accepted:
        _insert(connection, accepted, now=now)
    if new_aliases:
        connection.execute(sa.insert(schema.idempotency_keys), new_aliases)
    if existing_runs:
        runs.touch(connection, existing_runs, now=now)
    return answers


@dataclass(frozen=True, slots=True)
class _Known:
    """What decides about a second batch under the same key."""

    batch_id: str
    key: BatchKey
    kind: str
    digest: bytes


def _conflict(batch: NewBatch, own_id: str, first: _Known) -> KeyConflict | None:
    same_content = batch.digest == first.digest
    (series, step), rank, part = batch.key
    if first.batch_id != own_id and not same_content:
        name = batch.idempotency_key
        return KeyConflict(f"Idempotency-Key {name!r:.80} was used for batch {first.batch_id} with other content")
    if same_content or batch.kind != first.kind:
        return None
    where = f"step {step}, rank {rank}, part {part}, attempt {series.attempt}"
    return KeyConflict(
        f"{where} is stored as batch {first.batch_id} with digest {first.digest.hex()[:16]}; this content has digest "
        f"{batch.digest.hex()[:16]}"
    )


def _existing_runs(connection: sa.Connection, run_ids: set[str]) -> set[str]:
    query = sa.select(schema.runs.c.run_id).where(schema.runs.c.run_id.in_(sorted(run_ids)))
    return set(connection.execute(query).scalars())


def _aliases(connection: sa.Connection, group: Sequence[NewBatch]) -> dict[tuple[str, str], str]:
    """Batch id of each (run, Idempotency-Key) of the group that was used before."""
    named = {(b.key.step_key.series.run_id, b.idempotency_key) for b in group if b.idempotency_key is not None}
    if not named:
        return {}
    table = schema.idempotency_keys
    where = sa.tuple_(table.c.run_id, table.c.key).in_(sorted(named))
    rows = connection.execute(sa.select(table.c.run_id, table.c.key, table.c.batch_id).where(where))
    return {(row.run_id, row.key): row.batch_id for row in rows}


def _known(connection: sa.Connection, ids: set[str]) -> dict[str, _Known]:
    series = schema.series
    columns = (*(series.c[name] for name in SeriesKey._fields), _table.c.step, _table.c.rank, _table.c.part)
    query = sa.select(_table.c.batch_id, _table.c.kind, _table.c.digest, *columns).join(series)
    found = {}
    for row in connection.execute(query.where(_table.c.batch_id.in_(sorted(ids)))):
        key = BatchKey(StepKey(SeriesKey(*row[3:8]), row.step), row.rank, row.part)
        found[row.batch_id] = _Known(row.batch_id, key, row.kind, bytes(row.digest))
    return found


def _insert(connection: sa.Connection, accepted: Sequence[NewBatch], *, now: float) -> None:
    """Rows of new batches, and of the series and steps they belong to, in one order everywhere (no deadlocks)."""
    ordered = sorted(accepted, key=lambda batch: batch.key)
    series_ids = _series_ids(connection, ordered)
    rows = [_row(batch, series_ids[batch.key.step_key.series], now=now) for batch in ordered]
    connection.execute(sa.insert(_table), rows)
    summaries = [{"batch_id": row["batch_id"], "summary": b.summary} for row, b in zip(rows, ordered, strict=True)]
    connection.execute(sa.insert(schema.batch_summaries), summaries)
    _upsert_ranks(connection, rows)
    _upsert_steps(connection, rows, now=now)


def _row(batch: NewBatch, series_id: int, *, now: float) -> dict[str, Any]:
    names = ("kind", "digest", "final", "world_size", "train_version", "tokens", "sequences", "segment", "recorded_at")
    return {
        "batch_id": batch_id(batch.key),
        "series_id": series_id,
        "step": batch.key.step_key.step,
        "rank": batch.key.rank,
        "part": batch.key.part,
        **{name: getattr(batch, name) for name in names},
        "received_at": now,
        "merged": False,
    }


def _series_ids(connection: sa.Connection, group: Sequence[NewBatch]) -> dict[SeriesKey, int]:
    """Id of each series of the group; new ones are made, and first steps brought down."""
    first_steps: dict[SeriesKey, int] = {}
    for batch in group:
        series, step = batch.key.step_key
        first_steps[series] = min(step, first_steps.get(series, step))
    known = _read_series(connection, first_steps)
    changed = [
        {**key._asdict(), "first_step": first}
        for key, first in first_steps.items()
        if key not in known or first < known[key][1]
    ]
    if changed:
        lowest = schema.series.c.first_step
        upsert(
            connection,
            schema.series,
            changed,
            key=_SERIES,
            update=lambda new: {"first_step": sa.case((new.first_step < lowest, new.first_step), else_=lowest)},
        )
        known = _read_series(connection, first_steps)
    return {key: series_id for key, (series_id, _) in known.items()}


def _read_series(connection: sa.Connection, keys: Collection[SeriesKey]) -> dict[SeriesKey, tuple[int, int]]:
    table = schema.series
    columns = [table.c[name] for name in SeriesKey._fields]
    where = sa.tuple_(*columns).in_(sorted(tuple(key) for key in keys))
    rows = connection.execute(sa.select(*columns, table.c.series_id, table.c.first_step).where(where))
    return {SeriesKey(*row[:5]): (row.series_id, row.first_step) for row in rows}


def _upsert_ranks(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    last: dict[tuple[int, int], int] = {}
    for row in rows:
        at = (row["series_id"], row["rank"])
        last[at] = max(row["step"], last.get(at, 0))
    table = schema.series_ranks
    upsert(
        connection,
        table,
        [{"series_id": series_id, "rank": rank, "last_step": step} for (series_id, rank), step in last.items()],
        key=("series_id", "rank"),
        update=lambda new: {"last_step": larger(table.c.last_step, new.last_step)},
    )


def _upsert_steps(connection: sa.Connection, rows: Sequence[dict[str, Any]], *, now: float) -> None:
    made: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        at = (row["series_id"], row["step"])
        step = made.setdefault(at, {**_OPEN, "series_id": at[0], "step": at[1], "first_at": now, "last_at": now})
        step["batch_count"] += 1
        step["tokens"] += row["tokens"]
        step["sequences"] += row["sequences"]
    stored = schema.steps.c
    upsert(
        connection,
        schema.steps,
        list(made.values()),
        key=("series_id", "step"),
        update=lambda new: {
            "pending": True,
            "summaries_kept": True,
            "last_at": new.last_at,
            **{name: stored[name] + new[name] for name in ("batch_count", "tokens", "sequences")},
        },
    )


_OPEN: dict[str, Any] = {
    "closed": False,
    "pending": True,
    "sealed": False,
    "revision": 0,
    "batch_count": 0,
    "merged_count": 0,
    "coverage": 0.0,
    "expected_ranks": 0,
    "tokens": 0,
    "sequences": 0,
    "summaries_kept": True,
    "metrics": {},
    "missing": {},
}


def _groups(values: Sequence[str], size: int) -> list[Sequence[str]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
