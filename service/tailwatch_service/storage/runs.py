"""Runs and their attempts.

An attempt is one launch of the job. Clients send the launch's `session`; the first of its ranks to arrive makes the
attempt, under a lock on the run's row, and the others get the same number. Whether a run is running, finished or
lost is computed when it is read, from what was last heard of it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import sqlalchemy as sa

from tailwatch_collectors.errors import FieldError
from tailwatch_service.errors import KeyConflict, NotFound, Unprocessable
from tailwatch_service.storage import events, schema
from tailwatch_service.storage.database import Database, larger
from tailwatch_service.types import Run, RunSpec, RunState

LOST_AFTER_S = 300.0
"""Silence after which a run counts as lost, where the settings do not say otherwise."""

_SPEC = tuple(field.name for field in fields(RunSpec))
_TOUCH_S = 1.0
_table = schema.runs


class Registered(NamedTuple):
    """The answer to a client that names its run."""

    run: Run
    attempt: int
    """The attempt of this client's session."""
    created: bool
    """True where the run is new."""


class Attempt(NamedTuple):
    """One launch of a run's job."""

    attempt: int
    """Number, from 1."""
    session: str | None
    """What the client calls the launch; None where it did not say."""
    created_at: float
    """Unix seconds."""


class RunPage(NamedTuple):
    """One page of the run list."""

    runs: list[Run]
    next_cursor: str | None
    """Where the next page starts; None on the last."""


def register(
    db: Database,
    spec: RunSpec,
    *,
    now: float,
    session: str | None = None,
    resume: bool = False,
    lost_after_s: float = LOST_AFTER_S,
) -> Registered:
    """Create a run, or find it by project and name and update what the client says of it; map its session.

    Args:
        spec: what the client says; fields that are None leave the stored value.
        now: Unix seconds.
        session: the client's launch; a new one starts the next attempt. None: the latest attempt.
        resume: without a session, start the next attempt.
        lost_after_s: silence after which the run counts as lost.
    """
    said = {name: getattr(spec, name) for name in _SPEC if getattr(spec, name) is not None}
    said |= {name: dict(said[name]) for name in ("tags", "config") if name in said}
    with db.write() as connection:
        run_id, created = _insert(connection, said, now=now)
        _lock(connection, run_id)
        attempt = _attempt(connection, run_id, session=session, resume=resume and not created, now=now)
        changes = {name: value for name, value in said.items() if name not in {"project", "name"}}
        changes |= {"updated_at": now, "last_seen_at": larger(_table.c.last_seen_at, sa.literal(now))}
        connection.execute(sa.update(_table).where(_table.c.run_id == run_id).values(changes))
        run = _get(connection, run_id, now=now, lost_after_s=lost_after_s)
    return Registered(run, attempt, created)


def attempt_of(db: Database, run_id: str, *, now: float, session: str | None = None, attempt: int | None = None) -> int:
    """The attempt a batch, scalar or event belongs to; `attempt` wins over `session`; neither: the latest.

    A session that is not known yet starts the next attempt.

    Raises:
        NotFound: no such run.
        Unprocessable: no such attempt.
    """
    known = schema.attempts
    with db.read() as connection:
        latest = connection.execute(sa.select(_table.c.attempt).where(_table.c.run_id == run_id)).scalar()
        if latest is None:
            raise NotFound(f"run {run_id!r} does not exist")
        if attempt is None and session is None:
            return int(latest)
        wanted = known.c.attempt == attempt if attempt is not None else known.c.session == session
        found = connection.execute(sa.select(known.c.attempt).where(known.c.run_id == run_id, wanted)).scalar()
    if found is not None:
        return int(found)
    if attempt is not None:
        reason = f"{attempt} does not exist, the latest attempt of this run is {latest}"
        raise Unprocessable.of(FieldError(column="attempt", reason=reason))
    with db.write() as connection:
        _lock(connection, run_id)
        return _attempt(connection, run_id, session=session, resume=False, now=now)


def attempts_of(db: Database, run_id: str) -> list[Attempt]:
    """The attempts of a run, first to last; empty where there is no such run."""
    known = schema.attempts
    query = sa.select(known.c.attempt, known.c.session, known.c.created_at).where(known.c.run_id == run_id)
    with db.read() as connection:
        return [Attempt(*row) for row in connection.execute(query.order_by(known.c.attempt))]


def get(db: Database, run_id: str, *, now: float, lost_after_s: float = LOST_AFTER_S) -> Run:
    """One run.

    Raises:
        NotFound: no such run.
    """
    with db.read() as connection:
        return _get(connection, run_id, now=now, lost_after_s=lost_after_s)


def find(db: Database, *, project: str, name: str, now: float, lost_after_s: float = LOST_AFTER_S) -> Run | None:
    """The run of that name; None where there is none."""
    query = sa.select(_table).where(_table.c.project == project, _table.c.name == name)
    with db.read() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else _run(row, now=now, lost_after_s=lost_after_s)


def page(
    db: Database,
    *,
    now: float,
    project: str | None = None,
    archived: bool = False,
    limit: int = 50,
    cursor: str | None = None,
    lost_after_s: float = LOST_AFTER_S,
) -> RunPage:
    """Runs, newest first.

    Raises:
        Unprocessable: not a cursor of ours.
    """
    query = sa.select(_table).order_by(_table.c.created_at.desc(), _table.c.run_id.desc()).limit(limit + 1)
    if project is not None:
        query = query.where(_table.c.project == project)
    if not archived:
        query = query.where(_table.c.archived_at.is_(None))
    if cursor is not None:
        created_at, run_id = _read_cursor(cursor)
        query = query.where(
            sa.or_(
                _table.c.created_at < created_at, sa.and_(_table.c.created_at == created_at, _table.c.run_id < run_id)
            )
        )
    with db.read() as connection:
        rows = connection.execute(query).all()
    found = [_run(row, now=now, lost_after_s=lost_after_s) for row in rows[:limit]]
    return RunPage(found, _cursor(found[-1]) if len(rows) > limit else None)


def count(db: Database, *, project: str | None = None) -> int:
    """How many runs there are, in all or in one project."""
    query = sa.select(sa.func.count()).select_from(_table)
    if project is not None:
        query = query.where(_table.c.project == project)
    with db.read() as connection:
        return int(connection.execute(query).scalar_one())


def update(
    db: Database, run_id: str, *, changes: Mapping[str, Any], now: float, lost_after_s: float = LOST_AFTER_S
) -> Run:
    """Change fields of `RunSpec`, or `archived`; what is not named stays.

    Raises:
        NotFound: no such run.
        KeyConflict: another run of the project has that name.
        Unprocessable: a field that cannot be changed.
    """
    unknown = sorted(set(changes) - set(_SPEC) - {"archived"})
    if unknown:
        raise Unprocessable.of(*(FieldError(column=name, reason="cannot be changed") for name in unknown))
    values = {name: value for name, value in changes.items() if name != "archived"} | {"updated_at": now}
    if "archived" in changes:
        values["archived_at"] = now if changes["archived"] else None
    try:
        with db.write() as connection:
            connection.execute(sa.update(_table).where(_table.c.run_id == run_id).values(values))
            return _get(connection, run_id, now=now, lost_after_s=lost_after_s)
    except sa.exc.IntegrityError as error:
        raise KeyConflict(f"the project has a run named {changes.get('name')!r:.300} already") from error


def delete(db: Database, run_id: str) -> None:
    """Delete a run with all that hangs on it; its token segments are swept later.

    Raises:
        NotFound: no such run.
    """
    with db.write() as connection:
        if connection.execute(sa.delete(_table).where(_table.c.run_id == run_id)).rowcount == 0:
            raise NotFound(f"run {run_id!r} does not exist")


def touch(connection: sa.Connection, run_ids: Iterable[str], *, now: float) -> None:
    """Note inside the caller's write transaction that something was heard of these runs."""
    # Once a second is enough to tell whether a run is lost, and spares the row a rewrite per batch.
    stale = _table.c.last_seen_at < now - _TOUCH_S
    where = sa.and_(_table.c.run_id.in_(sorted(run_ids)), stale)
    connection.execute(sa.update(_table).where(where).values(last_seen_at=now))


def announce_states(db: Database, *, now: float, lost_after_s: float = LOST_AFTER_S) -> list[str]:
    """Log `state_changed` once for every run whose state is not the one announced last; their ids."""
    state: sa.ColumnElement[str] = sa.case(
        (_table.c.finished_at.is_not(None), "finished"),
        (_table.c.last_seen_at < now - lost_after_s, "lost"),
        else_="running",
    )
    changed = sa.select(_table.c.run_id).where(_table.c.announced_state != state)
    with db.read() as connection:
        run_ids = list(connection.execute(changed).scalars())
    announced = []
    for run_id in run_ids:
        with db.write() as connection:
            where = sa.and_(_table.c.run_id == run_id, _table.c.announced_state != state)
            statement = sa.update(_table).where(where).values(announced_state=state)
            new = connection.execute(statement.returning(_table.c.announced_state)).scalar()
            if new is not None:
                events.insert(connection, run_id, kind="state_changed", now=now, payload={"state": new})
                announced.append(run_id)
    return announced


def _insert(connection: sa.Connection, said: Mapping[str, Any], *, now: float) -> tuple[str, bool]:
    same = sa.and_(_table.c.project == said["project"], _table.c.name == said["name"])
    known = connection.execute(sa.select(_table.c.run_id).where(same)).scalar()
    if known is not None:
        return known, False
    run_id = secrets.token_urlsafe(12)
    fixed = {"run_id": run_id, "attempt": 0, "announced_state": "running", "last_event_seq": 0}
    times = {"created_at": now, "updated_at": now, "last_seen_at": now}
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(_table).values({**said, **fixed, **times}))
    except sa.exc.IntegrityError:  # another replica was first
        return connection.execute(sa.select(_table.c.run_id).where(same)).scalar_one(), False
    events.insert(connection, run_id, kind="run_created", now=now, payload={"project": said["project"]})
    return run_id, True


def _lock(connection: sa.Connection, run_id: str) -> None:
    """Hold the run's row until the transaction ends (on SQLite every writer holds everything)."""
    connection.execute(sa.select(_table.c.run_id).where(_table.c.run_id == run_id).with_for_update())


def _attempt(connection: sa.Connection, run_id: str, *, session: str | None, resume: bool, now: float) -> int:
    """The attempt of a session, made if it is new; the run's row is locked."""
    known = schema.attempts
    latest = int(connection.execute(sa.select(_table.c.attempt).where(_table.c.run_id == run_id)).scalar_one())
    if session is not None:
        mine = sa.and_(known.c.run_id == run_id, known.c.session == session)
        found = connection.execute(sa.select(known.c.attempt).where(mine)).scalar()
        if found is not None:
            return int(found)
        if latest and _is_unused(connection, run_id, latest):
            where = sa.and_(known.c.run_id == run_id, known.c.attempt == latest)
            connection.execute(sa.update(known).where(where).values(session=session))
            return latest
    elif latest and not resume:
        return latest
    started = latest + 1
    row = {"run_id": run_id, "attempt": started, "session": session, "created_at": now}
    connection.execute(sa.insert(known).values(row))
    running = {"attempt": started, "finished_at": None}
    connection.execute(sa.update(_table).where(_table.c.run_id == run_id).values(running))
    events.insert(connection, run_id, kind="attempt_started", now=now, attempt=started)
    return started


def _is_unused(connection: sa.Connection, run_id: str, attempt: int) -> bool:
    """True where nobody claimed the attempt: made without a session, and nothing was sent for it."""
    known, used = schema.attempts, schema.series
    session = sa.select(known.c.session).where(known.c.run_id == run_id, known.c.attempt == attempt)
    if connection.execute(session).scalar() is not None:
        return False
    some = sa.select(used.c.series_id).where(used.c.run_id == run_id, used.c.attempt == attempt).limit(1)
    return connection.execute(some).scalar() is None


def _get(connection: sa.Connection, run_id: str, *, now: float, lost_after_s: float) -> Run:
    row = connection.execute(sa.select(_table).where(_table.c.run_id == run_id)).one_or_none()
    if row is None:
        raise NotFound(f"run {run_id!r:.80} does not exist")
    return _run(row, now=now, lost_after_s=lost_after_s)


def _run(row: sa.Row[Any], *, now: float, lost_after_s: float) -> Run:
    state: RunState = "running"
    if row.finished_at is not None:
        state = "finished"
    elif row.last_seen_at < now - lost_after_s:
        state = "lost"
    return Run(
        run_id=row.run_id,
        spec=RunSpec(**{name: row._mapping[name] for name in _SPEC}),
        attempt=row.attempt,
        state=state,
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_seen_at=row.last_seen_at,
        last_step=row.last_step,
        archived=row.archived_at is not None,
        last_event_seq=row.last_event_seq,
    )


def _cursor(run: Run) -> str:
    return base64.urlsafe_b64encode(f"{run.created_at!r} {run.run_id}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, run_id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        return float(created_at), run_id
    except (ValueError, binascii.Error) as error:
        raise Unprocessable.of(FieldError(column="cursor", reason=f"{cursor!r:.80} is not a cursor")) from error
