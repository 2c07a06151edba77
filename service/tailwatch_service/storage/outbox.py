"""The outbox: what has to be told to whom, written in the transaction that decided it.

A delivery is claimed by marking it in flight before it is sent, and marked done after. Its id never changes and goes
out with it, so that a receiver recognises the second copy of one whose answer was lost. Per destination the order of
one alert's deliveries is kept: an end never overtakes its beginning.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database

DeliveryState = Literal["pending", "in_flight", "sent", "failed"]

_table = schema.deliveries


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One message for one destination."""

    delivery_id: str
    alert_id: str | None
    """None: a test."""
    destination: str
    notice: str
    """firing, resolved or test."""
    payload: Mapping[str, Any]
    """The alert as it stood, ready to be put into the destination's form."""
    state: DeliveryState
    attempts: int
    """Times it was sent, the one in flight included."""
    next_at: float
    """Unix seconds before which it is not tried; while in flight: when its claim runs out."""
    created_at: float
    done_at: float | None
    last_error: str | None


def insert(
    connection: sa.Connection,
    *,
    destinations: Iterable[str],
    notice: str,
    payload: Mapping[str, Any],
    now: float,
    alert_id: str | None,
) -> list[str]:
    """Queue one message for each destination inside the caller's write transaction; the delivery ids."""
    rows = [
        {
            "delivery_id": secrets.token_hex(16),
            "alert_id": alert_id,
            "destination": destination,
            "notice": notice,
            "payload": dict(payload),
            "state": "pending",
            "attempts": 0,
            "next_at": now,
            "created_at": now,
        }
        for destination in destinations
    ]
    for row in rows:
        connection.execute(sa.insert(_table).values(row))
    return [str(row["delivery_id"]) for row in rows]


def claim(db: Database, destination: str, *, now: float, lease_s: float) -> Delivery | None:
    """Take the oldest delivery that is due, and mark it in flight until `lease_s` from now; None where none is."""
    earlier = _table.alias()
    blocked = sa.exists().where(
        earlier.c.destination == _table.c.destination,
        earlier.c.alert_id == _table.c.alert_id,
        earlier.c.done_at.is_(None),
        earlier.c.number < _table.c.number,
    )
    due = sa.and_(
        _table.c.destination == destination, _table.c.done_at.is_(None), _table.c.next_at <= now, sa.not_(blocked)
    )
    with db.read() as connection:  # the common case, nothing to do, costs no write lock
        if connection.execute(sa.select(_table.c.number).where(due).limit(1)).scalar() is None:
            return None
    with db.write() as connection:
        query = sa.select(_table).where(due).order_by(_table.c.number).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        taken = {"state": "in_flight", "attempts": row.attempts + 1, "next_at": now + lease_s}
        connection.execute(sa.update(_table).where(_table.c.number == row.number).values(taken))
    return _delivery({**row._mapping, **taken})


def sent(db: Database, delivery_id: str, *, now: float) -> None:
    """Note that it arrived."""
    _note(db, delivery_id, state="sent", done_at=now, last_error=None)


def failed(db: Database, delivery_id: str, *, now: float, error: str) -> None:
    """Note that it will never arrive."""
    _note(db, delivery_id, state="failed", done_at=now, last_error=error)


def retry(db: Database, delivery_id: str, *, at: float, error: str) -> None:
    """Try again then."""
    _note(db, delivery_id, state="pending", next_at=at, last_error=error)


def next_due(db: Database, destination: str) -> float | None:
    """Unix seconds at which the next delivery may be due; None where nothing waits."""
    query = sa.select(sa.func.min(_table.c.next_at)).where(
        _table.c.destination == destination, _table.c.done_at.is_(None)
    )
    with db.read() as connection:
        return connection.execute(query).scalar()


def get(db: Database, delivery_ids: Iterable[str]) -> list[Delivery]:
    """Deliveries by id, in the order in which they were queued."""
    query = sa.select(_table).where(_table.c.delivery_id.in_(list(delivery_ids))).order_by(_table.c.number)
    with db.read() as connection:
        return [_delivery(row._mapping) for row in connection.execute(query)]


def of_alert(db: Database, alert_id: str) -> list[Delivery]:
    """An alert's deliveries, oldest first."""
    query = sa.select(_table).where(_table.c.alert_id == alert_id).order_by(_table.c.number)
    with db.read() as connection:
        return [_delivery(row._mapping) for row in connection.execute(query)]


def waiting(db: Database) -> dict[str, int]:
    """Deliveries that are not done, by destination."""
    query = sa.select(_table.c.destination, sa.func.count()).where(_table.c.done_at.is_(None))
    with db.read() as connection:
        return {str(row[0]): int(row[1]) for row in connection.execute(query.group_by(_table.c.destination))}


def drop_done(db: Database, *, before: float) -> int:
    """Forget deliveries that were done before this moment; how many."""
    with db.write() as connection:
        return connection.execute(sa.delete(_table).where(_table.c.done_at < before)).rowcount


def _note(db: Database, delivery_id: str, **values: Any) -> None:
    with db.write() as connection:
        connection.execute(sa.update(_table).where(_table.c.delivery_id == delivery_id).values(values))


def _delivery(row: Mapping[Any, Any]) -> Delivery:
    return Delivery(**{name: row[name] for name in Delivery.__dataclass_fields__})
