"""Changed rules as they are stored: one table of changes for a project, one for a run; the run's lie on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database, upsert

_table = schema.rule_overrides


class Changes(NamedTuple):
    """What was changed for a project, and for a run of it."""

    project: Mapping[str, Any]
    run: Mapping[str, Any]


def read(connection: sa.Connection, *, project: str, run_id: str | None) -> Changes:
    """The changes that apply to a run, or to a project where `run_id` is None; empty where there are none."""
    places = [("" if key else project, key or "") for key in {None, run_id}]
    query = sa.select(_table.c.run, _table.c.changes).where(sa.tuple_(_table.c.project, _table.c.run).in_(places))
    found: dict[str, Mapping[str, Any]] = {row.run: row.changes for row in connection.execute(query)}
    return Changes(found.get("", {}), found.get(run_id or "-", {}))


def put(db: Database, *, project: str, run_id: str | None, changes: Mapping[str, Any], actor: str, now: float) -> None:
    """Replace the changes of a project, or of one run; empty ones are removed. The caller has checked them."""
    place = {"project": "" if run_id else project, "run": run_id or ""}
    with db.write() as connection:
        if not changes:
            connection.execute(sa.delete(_table).where(*(_table.c[name] == at for name, at in place.items())))
            return
        row = {**place, "run_id": run_id, "changes": dict(changes), "actor": actor, "updated_at": now}
        upsert(connection, _table, [row], key=("project", "run"), update=("changes", "actor", "updated_at"))
