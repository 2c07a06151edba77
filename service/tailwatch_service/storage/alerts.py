"""Alerts as they are stored. At most one open alert has a fingerprint: a partial unique index says so.

Whoever changes an alert reads it by `open_one` or `get_locked` in the same write transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database, upsert
from tailwatch_service.types import Alert, Finding

Which = Literal["open", "resolved", "all"]
"""Open: firing, acknowledged or silenced; pending ones are nobody's business yet."""

_table = schema.alerts
_open = _table.c.resolved_at.is_(None)
_told = _table.c.fired_at.is_not(None)


class Placed(NamedTuple):
    """An alert with the names of its run."""

    alert: Alert
    project: str
    run: str


class Firing(NamedTuple):
    """One line of the exposition."""

    project: str
    run: str
    rule: str
    severity: str


def put(connection: sa.Connection, alert: Alert) -> None:
    """Insert or overwrite an alert inside the caller's write transaction."""
    row = asdict(alert)
    upsert(connection, _table, [row], key=("alert_id",), update=tuple(name for name in row if name != "alert_id"))


def drop(connection: sa.Connection, alert_id: str) -> None:
    """Forget an alert that never fired."""
    connection.execute(sa.delete(_table).where(_table.c.alert_id == alert_id, _table.c.fired_at.is_(None)))


def open_of_run(connection: sa.Connection, run_id: str) -> dict[str, Alert]:
    """The open alerts of a run by fingerprint, pending ones too, locked until the write transaction ends."""
    query = sa.select(_table).where(_table.c.run_id == run_id, _open).with_for_update()
    return {row.fingerprint: _alert(row._mapping) for row in connection.execute(query)}


def get_locked(connection: sa.Connection, alert_id: str) -> Alert:
    """One alert, locked until the caller's write transaction ends.

    Raises:
        NotFound: no such alert.
    """
    row = connection.execute(sa.select(_table).where(_table.c.alert_id == alert_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"alert {alert_id!r:.80} does not exist")
    return _alert(row._mapping)


def get(db: Database, alert_id: str) -> Placed:
    """One alert.

    Raises:
        NotFound: no such alert.
    """
    with db.read() as connection:
        row = connection.execute(_placed().where(_table.c.alert_id == alert_id)).one_or_none()
    if row is None:
        raise NotFound(f"alert {alert_id!r:.80} does not exist")
    return _place(row)


def listed(
    db: Database,
    *,
    run_id: str | None = None,
    project: str | None = None,
    which: Which = "all",
    limit: int = 100,
) -> list[Placed]:
    """Alerts that fired, newest first; of one run or one project where named."""
    query = _placed().where(_told).order_by(_table.c.fired_at.desc(), _table.c.alert_id.desc()).limit(limit)
    if run_id is not None:
        query = query.where(_table.c.run_id == run_id)
    if project is not None:
        query = query.where(schema.runs.c.project == project)
    if which != "all":
        query = query.where(_open if which == "open" else sa.not_(_open))
    with db.read() as connection:
        return [_place(row) for row in connection.execute(query)]


def to_remind(db: Database) -> list[Placed]:
    """Alerts that receivers know and that are not silenced: those that have to be kept alive elsewhere."""
    query = _placed().where(_open, _table.c.notified.is_(sa.true()), _table.c.state != "silenced")
    with db.read() as connection:
        return [_place(row) for row in connection.execute(query.order_by(_table.c.fired_at))]


def firing(db: Database, *, project: str | None = None) -> list[Firing]:
    """What fires and is not silenced, one line for each project, run, rule and severity."""
    runs = schema.runs
    columns = (runs.c.project, runs.c.name, _table.c.rule, _table.c.severity)
    query = sa.select(*columns).join(runs).where(_open, _told, _table.c.state != "silenced").distinct()
    if project is not None:
        query = query.where(runs.c.project == project)
    with db.read() as connection:
        return [Firing(*row) for row in connection.execute(query)]


def silences_over(db: Database, *, now: float) -> list[str]:
    """Ids of silenced alerts whose time is over."""
    query = sa.select(_table.c.alert_id).where(_open, _table.c.silenced_until <= now)
    with db.read() as connection:
        return list(connection.execute(query).scalars())


def of_ended_runs(db: Database) -> list[tuple[str, str]]:
    """(alert_id, why) of open alerts whose run finished or was archived."""
    runs = schema.runs
    why = sa.case((runs.c.finished_at.is_not(None), "run_finished"), else_="run_archived")
    ended = sa.or_(runs.c.finished_at.is_not(None), runs.c.archived_at.is_not(None))
    query = sa.select(_table.c.alert_id, why).join(runs).where(_open, ended)
    with db.read() as connection:
        return [(alert_id, reason) for alert_id, reason in connection.execute(query)]


def all_open(db: Database) -> list[Alert]:
    """Every open alert, pending ones too."""
    with db.read() as connection:
        return [_alert(row._mapping) for row in connection.execute(sa.select(_table).where(_open))]


def _placed() -> sa.Select[Any]:
    runs = schema.runs
    query: sa.Select[Any] = sa.select(_table, runs.c.project.label("run_project"), runs.c.name.label("run_name"))
    return query.join(runs)


def _place(row: sa.Row[Any]) -> Placed:
    return Placed(_alert(row._mapping), row.run_project, row.run_name)


def _alert(row: Mapping[Any, Any]) -> Alert:
    values = {name: row[name] for name in Alert.__dataclass_fields__ if name != "finding"}
    return Alert(**values, finding=Finding(**row["finding"]))
